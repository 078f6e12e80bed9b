"""From logits to the next token: pure functions, applied in the order of transformers' processors.

Repetition penalty (arXiv 1909.05858), temperature, top-k, top-p (arXiv 1904.09751), min-p (arXiv 2407.01082), then one
draw. Temperature 0 is greedy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.ranges import Number, check, ranged

GREEDY_BELOW = 1e-6  # a temperature at which logits, divided by it, may leave float32


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = ranged(0.0, Number(0))
    """0, or a value below 1e-6, takes the most likely token."""
    top_k: int = ranged(0, Number(0, whole=True))
    """Keep this many tokens; 0 keeps all."""
    top_p: float = ranged(1.0, Number(0, 1, above=True))
    """Keep the most likely tokens that together reach this probability."""
    min_p: float = ranged(0.0, Number(0, 1))
    """Keep tokens with at least this fraction of the top probability."""
    repetition_penalty: float = ranged(1.0, Number(0.001, 1000))
    """Divide positive and multiply negative logits of the tokens seen so far, prompt included; 1 does nothing."""
    seed: int | None = ranged(None, Number(-(2**63), 2**64 - 1, whole=True))
    """Seed of this answer's generator; None draws one."""

    def __post_init__(self) -> None:
        check(self)

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
    seen: Tensor,  # [S] token ids, prompt included
    generator: torch.Generator,
) -> Tensor:
    """[] int64: the next token, on the device of `logits`."""
    logits = penalized(logits, seen, sampling.repetition_penalty)
    if sampling.temperature < GREEDY_BELOW:
        return logits.argmax()
    # Drawn on the CPU in float64, so that a seed gives the same numbers on every device.
    probability = warped(logits, sampling).double().softmax(-1).cpu()
    return torch.multinomial(probability, 1, generator=generator)[0].to(logits.device)
