"""Contrasts: pure functions from logits to logits, row by row. None of them knows where its logits come from.

- `contrast`: memorized against original weights (CD, arXiv 2406.16069 section 3.3), or with against without the
  document (CAD, arXiv 2305.14739): `(1 + alpha) * logits - alpha * against`.
- `adaptive_alpha`: alpha as the Jensen-Shannon divergence of the two distributions (AdaCAD, arXiv 2409.07394), so that
  where both sides agree nothing is contrasted.
- `dola`: last layer against an earlier one (DoLa, arXiv 2309.03883).

A contrast can raise a token that both sides hold for impossible; `plausible`, the constraint of arXiv 2210.15097,
forbids that.

All take and return float32, [B, V] unless said otherwise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastmem.errors import InputError, one_of

Kind = Literal["cd", "cad", "dola"]
DOLA_CUT = 0.1


@dataclass(frozen=True)
class Contrast:
    """Which contrast, and how strong."""

    kind: Kind
    alpha: float = 0.5
    """Weight of what is contrasted away; the paper's value. Not used with `adaptive`."""
    adaptive: bool = False
    """Take alpha from the divergence of the two sides, token by token, instead of a constant."""
    relative_top: float | None = None
    """Tokens below this fraction of the top probability, before the contrast, are masked. None: as published, which
    is 0.1 for DoLa and no mask for CD and CAD."""
    final_norm: bool = False
    """DoLa: pass early states through the final norm before the head. The published code does not."""

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, int | float) and math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"alpha is {self.alpha!r}: give a number, 0 or more.", field="alpha")
        if self.relative_top is not None and not 0 <= self.relative_top <= 1:
            given = self.relative_top
            raise InputError(f"relative_top is {given!r}: give a number, 0 to 1.", field="relative_top")

    @property
    def cut(self) -> float:
        """The `relative_top` in force; 0 masks nothing."""
        return self.relative_top if self.relative_top is not None else DOLA_CUT if self.kind == "dola" else 0.0


@dataclass(frozen=True)
class Method:
    """A way to answer: with the memory or without it, and against what."""

    memorized: bool
    kind: Kind | None = None
    adaptive: bool = False

    def contrast(
        self, alpha: float = 0.5, relative_top: float | None = None, final_norm: bool = False
    ) -> Contrast | None:
        """The contrast to apply, or None for plain decoding."""
        return Contrast(self.kind, alpha, self.adaptive, relative_top, final_norm) if self.kind else None


METHODS: dict[str, Method] = {
    "base": Method(False),
    "cad": Method(False, "cad"),
    "adacad": Method(False, "cad", adaptive=True),
    "dola": Method(False, "dola"),
    "fastmem": Method(True),
    "fastmem+cd": Method(True, "cd"),
    "fastmem+adacd": Method(True, "cd", adaptive=True),
    "fastmem+cad": Method(True, "cad"),
    "fastmem+adacad": Method(True, "cad", adaptive=True),
    "fastmem+dola": Method(True, "dola"),
}


def method_named(name: str) -> Method:
    """The method of that name. Errors: `InputError` naming the nearest."""
    return METHODS[one_of(name, METHODS, "method")]


def contrast(logits: Tensor, against: Tensor, alpha: float | Tensor, relative_top: float = 0.0) -> Tensor:
    """`(1 + alpha) * logits - alpha * against`; alpha a number or [B, 1]. Implausible tokens are -inf."""
    scores = (1 + alpha) * logits - alpha * against
    return scores.masked_fill_(~plausible(logits, relative_top), -torch.inf) if relative_top else scores


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the two distributions in bits, [B]: 0 where they agree, at most 1."""
    p, q = logits.log_softmax(-1), other.log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    nats = ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2
    return (nats / math.log(2)).clamp(0, 1)


def adaptive_alpha(logits: Tensor, against: Tensor) -> Tensor:
    """AdaCAD's weight, [B, 1]: the divergence of the two sides."""
    return divergence(logits, against)[:, None]


def plausible(logits: Tensor, relative_top: float) -> Tensor:
    """Which tokens have at least `relative_top` of the top probability, [B, V] bool."""
    return logits >= logits.amax(-1, keepdim=True) + math.log(max(relative_top, 1e-38))


def dola(final: Tensor, early: Tensor, relative_top: float = DOLA_CUT) -> Tensor:
    """Log-probabilities of the last layer minus those of the early layer that diverges most from it, row by row.

    final: [B, V]. early: [L, B, V], one per candidate layer. Implausible tokens are -inf.
    """
    apart = torch.stack([divergence(final, candidate) for candidate in early])  # [L, B]
    chosen = early[apart.argmax(0), torch.arange(final.shape[0], device=final.device)]
    scores = final.log_softmax(-1) - chosen.log_softmax(-1)
    return scores.masked_fill(~plausible(final, relative_top), -torch.inf)


def candidate_layers(depth: int) -> tuple[int, ...]:
    """DoLa's candidates: every second layer of the upper half; 16, 18, .., 30 of 32. Layer i gives the input of i+1.

    Counted as outputs of the i-th layer from 1, which is the input of layer index i from 0.
    """
    return tuple(range(depth // 2, depth, 2)) or (depth - 1,)
