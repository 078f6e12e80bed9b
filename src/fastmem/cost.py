"""What memorizing and answering cost on this machine, with what bounds them stated first.

Medians of repeated runs after a warm-up, the device waited for; ratios only between figures of one run. `card` is the
two-minute version behind `fastmem bench`; the programs in `bench/` use the same pieces on shapes of their own.
"""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmem.core.budget import plan
from fastmem.core.contrast import METHODS
from fastmem.core.decode import Batch, Request
from fastmem.core.memorize import memorize, read
from fastmem.core.memory import Memory, Recipe
from fastmem.core.trunk import Trunk
from fastmem.model import FastMem

# AdamW reads and writes weight, both moments and reads the gradient, all float32.
ADAMW_BYTES_PER_WEIGHT = 28


def synchronize(device: torch.device) -> None:
    """Wait until everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int = 3, warmups: int = 1) -> float:
    """Median wall time of `repeats` calls, after `warmups` that do not count."""
    for _ in range(warmups):
        work()
    return statistics.median(seconds_of(work, device) for _ in range(repeats))


class Peak:
    """`with Peak(device) as peak: ...`, then `peak.bytes`: the most that was in use at once beyond the start."""

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        else:
            _forget_peak()
            self._start = _resident_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        cuda = self.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self.device) if cuda else _resident_bytes("VmHWM")
        self.bytes = max(0, most - self._start)


def _forget_peak() -> None:
    clear = Path("/proc/self/clear_refs")  # Linux: "5" sets the high-water mark to the present size
    if clear.exists():
        clear.write_text("5")


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


@dataclass(frozen=True)
class Ceiling:
    """What a step of memorizing cannot do without, measured alone.

    product_seconds, product_flops: the matrix products of FFN and head. adamw_bytes: what AdamW moves.
    read_bytes_per_second: the rate at which a product of one row reads the head's matrix; decoding is bound by it.
    token_bytes: weights that one more token has to read, the head and every layer. ffn_bytes: of the last FFN.
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


def ceiling(trunk: Trunk, recipe: Recipe, positions: int, repeats: int = 3) -> Ceiling:
    """The products of one step over `positions` scored tokens, on matrices of the model's own shapes and type."""
    head = trunk.model.get_output_embeddings().weight.detach()
    V, D = head.shape
    weights = [w for w in trunk.parameters(recipe.layers).values() if w.ndim == 2]

    def states(width: int) -> Tensor:
        return torch.randn(positions, width, device=trunk.device).to(trunk.dtype)

    products = [(states(D), head.T), (states(V), head)]  # logits, and their gradient's way back
    for weight in weights:
        n, m = weight.shape
        products += [(states(m), weight.T), (states(n).T, states(m))]  # forward, and the weight's gradient
        if n == D:  # the matrix that leads out of the FFN also hands its gradient on
            products.append((states(n), weight))
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in products)
    seconds = sum(median_seconds(lambda a=a, b=b: a @ b, trunk.device, repeats) for a, b in products)  # type: ignore[misc]
    one_row = states(D)[:1]
    read = median_seconds(lambda: one_row @ head.T, trunk.device, repeats)
    embedding = trunk.model.get_input_embeddings().weight
    body = sum(p.numel() * p.element_size() for p in trunk.model.parameters() if p is not embedding)
    tied = embedding.numel() * embedding.element_size() if embedding.data_ptr() == head.data_ptr() else 0
    return Ceiling(
        product_seconds=seconds,
        product_flops=flops,
        adamw_bytes=ADAMW_BYTES_PER_WEIGHT * sum(w.numel() for w in trunk.parameters(recipe.layers).values()),
        read_bytes_per_second=head.numel() * head.element_size() / read,
        token_bytes=body + tied,
        ffn_bytes=sum(w.numel() * w.element_size() for w in weights),
    )


def document(trunk: Trunk, scored: int, unscored: int = 5) -> tuple[Tensor, Tensor]:
    """(ids [S], scored [S]) of a document that says nothing."""
    ids = (torch.arange(scored + unscored) * 7919 + 13) % trunk.vocabulary
    return ids, torch.arange(scored + unscored) >= unscored


@dataclass(frozen=True)
class Memorizing:
    """What it took: the trunk pass, the steps, and the most bytes beyond the loaded model, measured and expected."""

    scored_tokens: int
    read_seconds: float
    steps_seconds: float
    peak_bytes: int
    expected_bytes: int
    memory_bytes: int


def memorizing(llm: FastMem, scored: int, recipe: Recipe, repeats: int = 3) -> tuple[Memorizing, Memory]:
    """Memorize a document of so many scored tokens, `repeats` times after one that does not count."""
    trunk, base = llm.trunk, llm.base(recipe.layers)
    ids, mask = document(trunk, scored)
    with Peak(trunk.device) as peak:
        memory = memorize(trunk, read(trunk, ids, mask, recipe.layers), recipe, base)
    reads, steps = [], []
    for _ in range(repeats):
        reads.append(seconds_of(lambda: read(trunk, ids, mask, recipe.layers), trunk.device))
        reading = read(trunk, ids, mask, recipe.layers)
        steps.append(seconds_of(lambda r=reading: memorize(trunk, r, recipe, base), trunk.device))  # type: ignore[misc]
    return Memorizing(
        scored,
        statistics.median(reads),
        statistics.median(steps),
        peak.bytes,
        plan(trunk, recipe, [scored]).need_bytes,
        memory.size_bytes,
    ), memory


def request(llm: FastMem, prompt: Tensor, memory: Memory | None, method: str, tokens: int) -> Request:
    """A request that runs to its length; CAD's second prompt is as long as the first, so contexts are equal."""
    wanted = METHODS[method]
    return Request(
        prompt,
        max_new_tokens=tokens,
        ffn=llm.ffn(memory) if wanted.memorized else None,
        contrast=wanted.contrast(),
        without=prompt.flip(0) if wanted.kind == "cad" else None,
    )


def token_seconds(trunk: Trunk, requests: Sequence[Request]) -> list[float]:
    """Seconds of every step after the first, which reads the prompts."""
    batch, seconds = Batch(trunk), []
    batch.join(requests)
    batch.step()
    while batch.rows:
        seconds.append(seconds_of(batch.step, trunk.device))
    return seconds


def decoding(
    llm: FastMem, memory: Memory, methods: Sequence[str], prompt_tokens: int, tokens: int = 16, rounds: int = 2
) -> dict[str, float]:
    """Median seconds per token of each method, one after the other, `rounds` times over, so that drift hits all."""
    prompt, _ = document(llm.trunk, prompt_tokens, 0)
    found: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name in methods:
            found[name] += token_seconds(llm.trunk, [request(llm, prompt, memory, name, tokens)])
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def card(llm: FastMem, recipe: Recipe, scored: int = 150, tokens: int = 12) -> dict[str, Any]:
    """The cost card: ceiling, memorizing and every method, in plain numbers that become JSON."""
    limit = llm.trunk.max_positions
    scored = min(scored, (limit or scored + 5) - 5 - tokens)
    bound = ceiling(llm.trunk, recipe, scored)
    cost, memory = memorizing(llm, scored, recipe, repeats=1)
    return {
        "model": llm.name,
        "device": str(llm.trunk.device),
        "dtype": str(llm.trunk.dtype).removeprefix("torch."),
        "cpu_threads": torch.get_num_threads(),
        "steps": recipe.steps,
        "shortlist": recipe.shortlist,
        "ceiling": asdict(bound) | {"flops_per_second": bound.flops_per_second},
        "memorize": asdict(cost),
        "seconds_per_token": decoding(llm, memory, list(METHODS), scored, tokens, rounds=1),
    }
