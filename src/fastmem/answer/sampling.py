"""From logits to the next token: pure functions, applied in the order of transformers' processors.

Bias, repetition penalty (arXiv 1909.05858), presence and frequency penalty (OpenAI's API), temperature, top-k, top-p
(arXiv 1904.09751), min-p (arXiv 2407.01082), then one draw. Temperature 0 is greedy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmem.ranges import Number, Other, check, ranged

GREEDY_BELOW = 1e-6  # a temperature at which logits, divided by it, may leave float32


def _bias(given: Any) -> tuple[tuple[int, float], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    found = {Number(0, whole=True).accept(token): float(Number(-100, 100).accept(value)) for token, value in pairs}
    return tuple(sorted((int(token), value) for token, value in found.items()))


BIAS = Other("token ids with numbers from -100 to 100, as {262: -100}", _bias)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = ranged(0.0, Number(0))
    """0, or a value below 1e-6, always gives the most likely token."""
    top_k: int = ranged(0, Number(0, whole=True))
    """Keep this many tokens; 0 keeps all."""
    top_p: float = ranged(1.0, Number(0, 1, above=True))
    """Keep the most likely tokens that together reach this probability."""
    min_p: float = ranged(0.0, Number(0, 1))
    """Keep tokens with at least this fraction of the top probability."""
    repetition_penalty: float = ranged(1.0, Number(0.001, 1000))
    """Divide positive and multiply negative logits of the tokens seen so far, prompt included; 1 does nothing."""
    presence_penalty: float = ranged(0.0, Number(-2, 2))
    """Subtract this from the logit of every token that is in the answer."""
    frequency_penalty: float = ranged(0.0, Number(-2, 2))
    """Subtract this from the logit of a token once for every time that it is in the answer."""
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ranged((), BIAS)
    """Numbers to add to logits, by token id."""
    seed: int | None = ranged(None, Number(-(2**63), 2**64 - 1, whole=True))
    """Seed of this answer's random generator; None draws a seed."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def adjusts(self) -> bool:
        """Whether `adjusted` changes logits."""
        penalized = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return penalized or bool(self.logit_bias)

    def generator(self) -> torch.Generator:
        """A new generator for one answer, so that it does not depend on the other answers in its batch."""
        generator = torch.Generator()
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        return generator


def penalized(
    logits: Tensor,  # [V]
    seen: Tensor,  # [S] token ids
    penalty: float,
) -> Tensor:
    """[V]: the logits after the repetition penalty."""
    if penalty == 1:
        return logits
    seen = seen.unique()
    score = logits[seen]
    return logits.index_copy(0, seen, torch.where(score < 0, score * penalty, score / penalty))


def adjusted(
    logits: Tensor,  # [V]
    sampling: Sampling,
    prompt: Tensor,  # [S] token ids
    answer: Tensor,  # [T] token ids
    forbidden: Iterable[int] = (),
) -> Tensor:
    """[V]: the logits after bias and penalties; those of forbidden tokens are -inf.

    The repetition penalty counts prompt and answer, the others the answer only.
    """
    if sampling.logit_bias:
        tokens, values = zip(*sampling.logit_bias, strict=True)
        logits = logits.index_add(0, _like(logits, tokens), logits.new_tensor(values))
    logits = penalized(logits, torch.cat([prompt, answer]), sampling.repetition_penalty)
    if len(answer) and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, counts = answer.unique(return_counts=True)
        penalty = sampling.presence_penalty + sampling.frequency_penalty * counts
        logits = logits.index_add(0, tokens, -penalty.to(logits.dtype))
    if forbidden:
        logits = logits.index_fill(0, _like(logits, forbidden), -torch.inf)
    return logits


def _like(logits: Tensor, tokens: Iterable[int]) -> Tensor:
    return torch.tensor(list(tokens), device=logits.device)


def warped(
    logits: Tensor,  # [V]
    sampling: Sampling,
) -> Tensor:
    """[V]: the logits after temperature, top-k, top-p and min-p; removed tokens are -inf."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort()
        cut = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        cut[-1] = False
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(0, order, cut), -torch.inf)
    if sampling.min_p > 0:
        probability = logits.softmax(-1)
        logits = logits.masked_fill(probability < sampling.min_p * probability.max(), -torch.inf)
    return logits


def choose(
    logits: Tensor,  # [V]
    sampling: Sampling,
    generator: torch.Generator,
) -> Tensor:
    """[] int64: the next token from `adjusted` logits, on their device."""
    if sampling.temperature < GREEDY_BELOW:
        return logits.argmax()
    # Drawn on the CPU in float64, so that a seed gives the same numbers on every device.
    probability = warped(logits, sampling).double().softmax(-1).cpu()
    return torch.multinomial(probability, 1, generator=generator)[0].to(logits.device)
