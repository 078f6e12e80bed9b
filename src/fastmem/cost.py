"""Measure what memorizing and answering cost on this machine, and their lower bounds.

Figures are medians of repeated runs after a warm-up, with the device synchronized. Only figures of one run are
compared. `card` is the short version for `fastmem bench`; the programs in `bench/` use the same functions on other
shapes.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastmem.answer.batch import Batch
from fastmem.answer.contrast import METHODS
from fastmem.answer.request import Request
from fastmem.device_memory import PeakMemory
from fastmem.errors import InputError
from fastmem.learn.budget import plan
from fastmem.learn.memorize import drain
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem
from fastmem.prompts import Tokens
from fastmem.split.split_model import SplitModel
from fastmem.timing import median_seconds, seconds_of, timed

# AdamW reads and writes the weight and both moments and reads the gradient, all in float32.
ADAMW_BYTES_PER_WEIGHT = 28
# Tokens before the scored ones of a synthetic document.
UNSCORED = 5


@dataclass(frozen=True)
class Ceiling:
    """The unavoidable part of a step of memorizing, measured alone.

    product_seconds, product_flops: the matrix products of FFN and head. adamw_bytes: the memory traffic of AdamW.
    read_bytes_per_second: the rate at which a product of one row reads the head's matrix, which bounds decoding.
    token_bytes: weights that one more token reads, the head and every layer. ffn_bytes: of the last FFN.
    """

    product_seconds: float
    product_flops: int
    adamw_bytes: int
    read_bytes_per_second: float
    token_bytes: int
    ffn_bytes: int

    @property
    def flops_per_second(self) -> float:
        """The measured rate of the products."""
        return self.product_flops / self.product_seconds


def ceiling(split_model: SplitModel, recipe: Recipe, positions: int, repeats: int = 3) -> Ceiling:
    """The products of one step over `positions` scored tokens, on matrices of the model's own shapes and type."""
    head = split_model.model.get_output_embeddings().weight.detach()
    V, D = head.shape
    weights = [w for w in split_model.parameters(recipe.layers).values() if w.ndim == 2]

    def states(width: int) -> Tensor:
        return torch.randn(positions, width, device=split_model.device).to(split_model.dtype)

    products = [(states(D), head.T), (states(V), head)]  # logits, and the gradient of the hidden states
    for weight in weights:
        n, m = weight.shape
        products += [(states(m), weight.T), (states(n).T, states(m))]  # forward, and the weight's gradient
        if n == D:  # the output matrix also passes its gradient on
            products.append((states(n), weight))
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in products)
    seconds = sum(median_seconds(lambda a=a, b=b: a @ b, split_model.device, repeats) for a, b in products)  # type: ignore[misc]
    one_row = states(D)[:1]
    read = median_seconds(lambda: one_row @ head.T, split_model.device, repeats)
    embedding = split_model.model.get_input_embeddings().weight
    body = sum(p.numel() * p.element_size() for p in split_model.model.parameters() if p is not embedding)
    tied = embedding.numel() * embedding.element_size() if embedding.data_ptr() == head.data_ptr() else 0
    return Ceiling(
        product_seconds=seconds,
        product_flops=flops,
        adamw_bytes=ADAMW_BYTES_PER_WEIGHT * sum(w.numel() for w in split_model.parameters(recipe.layers).values()),
        read_bytes_per_second=head.numel() * head.element_size() / read,
        token_bytes=body + tied,
        ffn_bytes=sum(w.numel() * w.element_size() for w in weights),
    )


def document(split_model: SplitModel, scored: int, unscored: int = UNSCORED) -> Tokens:
    """A synthetic document with this many scored tokens."""
    ids = (torch.arange(scored + unscored) * 7919 + 13) % split_model.vocabulary_size
    return Tokens(ids, torch.arange(scored + unscored) >= unscored)


@dataclass(frozen=True)
class Memorizing:
    """The cost of memorizing: the trunk pass, all steps, and the peak of bytes beside the model, measured and
    planned."""

    scored_tokens: int
    read_seconds: float
    steps_seconds: float
    peak_bytes: int
    expected_bytes: int
    memory_bytes: int


def memorizing(llm: FastMem, scored: int, recipe: Recipe, repeats: int = 3) -> tuple[Memorizing, Memory]:
    """Memorize a document of this many scored tokens, `repeats` times after a warm-up."""
    tokens, device = document(llm.split_model, scored), llm.split_model.device
    peak = PeakMemory(device)
    (memory,) = drain(llm.memorizing(tokens, recipe, watch=False))
    peak_bytes = peak.added_bytes
    reads, steps = [], []
    for _ in range(repeats):
        run = llm.memorizing(tokens, recipe, watch=False)
        with timed(device) as read_seconds:
            next(run)
        with timed(device) as steps_seconds:
            drain(run)
        reads += read_seconds
        steps += steps_seconds
    return Memorizing(
        scored_tokens=scored,
        read_seconds=statistics.median(reads),
        steps_seconds=statistics.median(steps),
        peak_bytes=peak_bytes,
        expected_bytes=plan(llm.split_model, recipe, scored).need_bytes,
        memory_bytes=memory.size_bytes,
    ), memory


def request(
    llm: FastMem,
    prompt: Tensor,  # [S]
    memory: Memory | None,
    method: str,
    tokens: int,
) -> Request:
    """A request that decodes all `tokens`. CAD's second prompt is as long as the first, for equal contexts."""
    chosen = METHODS[method]
    without = prompt.flip(0) if chosen.kind == "cad" else None
    plain = Request(prompt, method, max_new_tokens=tokens, contrast=chosen.contrast(), without=without)
    return llm.with_memory(plain, memory) if chosen.memorized and memory is not None else plain


def token_seconds(split_model: SplitModel, requests: Sequence[Request]) -> list[float]:
    """Seconds of every step after the first, which reads the prompts."""
    batch, seconds = Batch(split_model), []
    batch.join(requests)
    batch.step()
    while batch.rows:
        seconds.append(seconds_of(batch.step, split_model.device))
    return seconds


def decoding(
    llm: FastMem, memory: Memory, methods: Sequence[str], prompt_tokens: int, tokens: int = 16, rounds: int = 2
) -> dict[str, float]:
    """Median seconds per token of each method. The methods take turns for `rounds` rounds, so drift affects all."""
    prompt = document(llm.split_model, prompt_tokens, 0).ids
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name in methods:
            seconds[name] += token_seconds(llm.split_model, [request(llm, prompt, memory, name, tokens)])
    return {name: statistics.median(values) for name, values in seconds.items()}


def card(llm: FastMem, recipe: Recipe, scored: int = 150, tokens: int = 12) -> dict[str, Any]:
    """The lower bounds and the costs of memorizing and of every method, as JSON values.

    scored: tokens of the document, fewer if the model's positions end before. tokens: to decode. Errors: `InputError`
    if these leave no room for a document.
    """
    llm.split_model.require_decoder_only("the benchmark")
    limit = llm.split_model.max_positions
    if limit is not None:
        scored = min(scored, limit - UNSCORED - tokens)
        if scored < 1:
            least = UNSCORED + 1
            raise InputError(
                f"new_tokens is {tokens}: the model has {limit} positions, and the shortest document takes {least} of "
                f"them. Give {limit - least} or fewer.",
                field="new_tokens",
            )
    bound = ceiling(llm.split_model, recipe, scored)
    cost, memory = memorizing(llm, scored, recipe, repeats=1)
    return {
        "model": llm.name,
        "device": str(llm.split_model.device),
        "dtype": str(llm.split_model.dtype).removeprefix("torch."),
        "cpu_threads": torch.get_num_threads(),
        "steps": recipe.steps,
        "shortlist": recipe.shortlist,
        "ceiling": asdict(bound) | {"flops_per_second": bound.flops_per_second},
        "memorize": asdict(cost),
        "seconds_per_token": decoding(llm, memory, list(METHODS), scored, tokens, rounds=1),
    }
