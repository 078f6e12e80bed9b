"""Every decoding method the slow, obvious way: the truth of the decoding tests, on plain transformers models.

One prompt at a time, no cache: each token runs the whole sequence through the whole model again, and a method that
needs original and memorized weights is given two models. A method here is a function `answer -> scores`: the token ids
generated so far in, the float32 scores [V] of the next token out; `decode` turns it into tokens.

    tuned = memorized(model, memory_weights)
    decode(cad(model, with_context, without_context), max_new_tokens=8).tokens
"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

Ids = list[int]
Method = Callable[[Ids], torch.Tensor]

FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm", "embedding_norm", "layer_norm")


class Decoded(NamedTuple):
    """What a greedy run gave: token ids [T] and the scores [T, V] each was taken from."""

    tokens: Ids
    logits: torch.Tensor


def memorized(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """A copy of the model with these parameters (full names) replaced: the second of two models."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in weights.items():
            tuned.get_parameter(name).copy_(value)
    return tuned


@torch.no_grad()
def next_logits(model: PreTrainedModel, ids: Ids) -> torch.Tensor:
    """Logits [V] of the token after `ids`, float32."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def base(model: PreTrainedModel, prompt: Ids) -> Method:
    """The model itself; given the copy with tuned weights, this is `fastmem`."""
    return lambda answer: next_logits(model, prompt + answer)


def contrast(
    expert: PreTrainedModel, expert_prompt: Ids, amateur: PreTrainedModel, amateur_prompt: Ids, alpha: float = 0.5
) -> Method:
    """(1 + alpha) * expert - alpha * amateur; both continue with the same answer."""
    return lambda answer: (
        (1 + alpha) * next_logits(expert, expert_prompt + answer)
        - alpha * next_logits(amateur, amateur_prompt + answer)
    )


def cad(model: PreTrainedModel, with_context: Ids, without_context: Ids, alpha: float = 0.5) -> Method:
    """Context-aware decoding (arXiv 2305.14739): two prompts, the untouched model."""
    return contrast(model, with_context, model, without_context, alpha)


def fastmem_cd(tuned: PreTrainedModel, model: PreTrainedModel, prompt: Ids, alpha: float = 0.5) -> Method:
    """Memorized against original weights, the same prompt on both sides."""
    return contrast(tuned, prompt, model, prompt, alpha)


def fastmem_cad(
    tuned: PreTrainedModel, model: PreTrainedModel, with_context: Ids, without_context: Ids, alpha: float = 0.5
) -> Method:
    """Memorized weights with the context against original weights without it."""
    return contrast(tuned, with_context, model, without_context, alpha)


def dola(model: PreTrainedModel, prompt: Ids, *, final_norm: bool = False, relative_top: float = 0.1) -> Method:
    """DoLa (arXiv 2309.03883): the last layer against an earlier one; `fastmem+dola` is the tuned copy as `model`.

    Candidates are the outputs of every second layer of the upper half; the one farthest from the last layer in
    Jensen-Shannon divergence is taken. Tokens below `relative_top` of the top probability are -inf.
    """
    return lambda answer: dola_scores(model, prompt + answer, final_norm, relative_top)


@torch.no_grad()
def dola_scores(model: PreTrainedModel, ids: Ids, final_norm: bool, relative_top: float) -> torch.Tensor:
    """Scores [V] of the token after `ids`."""
    output = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    count = len(output.hidden_states) - 1  # entry i is the output of layer i, counted from 1; entry 0 the embeddings
    candidates = [
        early_logits(model, output.hidden_states[layer][:, -1:], final_norm).log_softmax(-1)
        for layer in range(count // 2, count, 2)
    ]
    final = output.logits[0, -1].float().log_softmax(-1)
    farthest = max(candidates, key=lambda candidate: jensen_shannon(final, candidate))
    plausible = final >= final.max() + torch.log(torch.tensor(relative_top))
    return (final - farthest).masked_fill(~plausible, -torch.inf)


def early_logits(model: PreTrainedModel, state: torch.Tensor, final_norm: bool) -> torch.Tensor:
    """Logits [V] of an early state [1, 1, D]: the head alone, or behind the final norm."""
    decoder = model.get_decoder()
    if final_norm:
        state = next(getattr(decoder, name) for name in FINAL_NORMS if hasattr(decoder, name))(state)
    project = getattr(decoder, "project_out", None)  # OPT's from the width of the layers to that of the embeddings
    if project is not None:
        state = project(state)
    return model.get_output_embeddings()(state)[0, 0].float()


def jensen_shannon(first: torch.Tensor, second: torch.Tensor) -> float:
    """Divergence of two distributions given as log-probabilities [V], in nats."""
    middle = ((first.exp() + second.exp()) / 2).log()
    return float(0.5 * (first.exp() * (first - middle)).sum() + 0.5 * (second.exp() * (second - middle)).sum())


def decode(method: Method, *, max_new_tokens: int, stop: tuple[int, ...] = ()) -> Decoded:
    """Greedy tokens of a method; a stop token ends the run and is part of it."""
    tokens: Ids = []
    rows = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in stop):
        rows.append(method(tokens))
        tokens.append(int(rows[-1].argmax()))
    return Decoded(tokens, torch.stack(rows))


def sampling_scores(
    scores: torch.Tensor,
    ids: Ids,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> torch.Tensor:
    """Scores [V] to sample from, through transformers' own processors in the order of its `generate`.

    `ids` are the prompt and the answer so far. A contrast comes before all of these.
    """
    processors = LogitsProcessorList()
    if repetition_penalty is not None:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    processors.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        processors.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        processors.append(MinPLogitsWarper(min_p))
    return processors(torch.tensor([ids]), scores[None].clone())[0]
