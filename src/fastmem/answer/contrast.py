"""Contrastive decoding: pure functions from logits to scores, row by row, in float32.

- `contrast`: memorized against original weights (CD, arXiv 2406.16069 section 3.3), or the prompt with the document
  against the prompt without it (CAD, arXiv 2305.14739): `(1 + alpha) * logits - alpha * against`.
- `adaptive_alpha`: alpha as the Jensen-Shannon divergence of the two distributions (AdaCAD, arXiv 2409.07394), so
  equal distributions are not contrasted.
- `dola`: the last layer against an earlier one (DoLa, arXiv 2309.03883).
- `Combination`: any other function of the logits of these sides.

A contrast can raise a token that is very unlikely on both sides. The plausibility constraint of arXiv 2210.15097
(`plausible`) prevents that.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from fastmem.errors import InputError, one_of
from fastmem.ranges import FLAG, RANGE, Number, check, ranged

Kind = Literal["cd", "cad", "dola"]
# What can be compared: memorized and original weights, with the document in the prompt; original weights without it;
# the candidate layers of DoLa, without the final norm.
Side = Literal["memorized", "original", "without_document", "early_layers"]
DOLA_CUT = 0.1
ALPHA = Number(0, 1000)  # far beyond, the two sides leave float32
RELATIVE_TOP = Number(0, 1)


@dataclass(frozen=True)
class Contrast:
    """The kind and the strength of a contrast."""

    kind: Kind = field(metadata={RANGE: get_args(Kind)})
    alpha: float = ranged(0.5, ALPHA)
    """Weight of the other side; the paper's value. Not used with `adaptive`."""
    adaptive: bool = ranged(False, FLAG)
    """Compute alpha from the divergence of the two sides, token by token."""
    relative_top: float | None = ranged(None, RELATIVE_TOP)
    """Mask tokens below this fraction of the top probability before the contrast. None: as published, which is 0.1 for
    DoLa and no mask for CD and CAD."""
    final_norm: bool = ranged(False, FLAG)
    """DoLa: apply the final norm to early hidden states. The published code does not."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def cut(self) -> float:
        """The effective `relative_top`; 0 masks nothing."""
        return self.relative_top if self.relative_top is not None else DOLA_CUT if self.kind == "dola" else 0.0

    @property
    def needs(self) -> frozenset[Side]:
        """The sides that are compared; for CAD and DoLa also the weights in use, with the document."""
        sides: dict[Kind, tuple[Side, ...]] = {
            "cd": ("memorized", "original"),
            "cad": ("without_document",),
            "dola": ("early_layers",),
        }
        return frozenset(sides[self.kind])


@dataclass(frozen=True)
class Combination:
    """A contrast by your own function. needs: with "memorized" or "original", the weights that answer.

    scores: from the logits of these sides, float32 [V] each, [L, V] for early layers, to scores [V]. The next token is
    chosen from them; -inf excludes a token.
    """

    needs: frozenset[Side]
    scores: Callable[[Mapping[Side, Tensor]], Tensor]


@dataclass(frozen=True)
class Method:
    """How to answer. memorized: with a memory. kind: the contrast, or None. adaptive: see `Contrast`."""

    memorized: bool
    kind: Kind | None = None
    adaptive: bool = False

    @property
    def compares_prompts(self) -> bool:
        """Whether it needs the prompt without the document."""
        return self.kind == "cad"

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
"""Method by name. `base` is plain decoding; `fastmem` answers with a memory; a contrast can be added to either."""


def method_named(name: str) -> Method:
    """The method with this name. Errors: `InputError` that suggests the nearest name."""
    return METHODS[one_of(name, METHODS, "method")]


def uses_memory(name: str, given: bool) -> bool:
    """Whether a method uses a memory. Errors: `InputError` if one is given and the method does not."""
    memorized = method_named(name).memorized
    if given and not memorized:
        text = f"method {name!r} uses no memory: leave memory out, or use method {with_memory(name)!r}."
        raise InputError(text, field="memory")
    return memorized


def with_memory(name: str) -> str:
    """The method that a method becomes with a memory: `cad` is `fastmem+cad`."""
    if METHODS[name].memorized:
        return name
    return "fastmem" if name == "base" else f"fastmem+{name}"


def contrast(
    logits: Tensor,  # [B, V]
    against: Tensor,  # [B, V]
    alpha: float | Tensor,  # a number or [B, 1]
    relative_top: float = 0.0,
) -> Tensor:
    """[B, V]: `(1 + alpha) * logits - alpha * against`, -inf for implausible and for impossible tokens."""
    scores = (1 + alpha) * logits - alpha * _finite(against)
    return scores.masked_fill_(~plausible(logits, relative_top), -torch.inf) if relative_top else scores


def divergence(
    logits: Tensor,  # [B, V]
    other: Tensor,  # [B, V]
) -> Tensor:
    """[B]: the Jensen-Shannon divergence of the two distributions in bits, from 0 (equal) to 1."""
    p, q = logits.log_softmax(-1), other.log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    nats = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return (nats / math.log(2)).clamp(0, 1)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """[B], in nats, from log-probabilities [B, V]. Where p is 0, p log p is 0."""
    return (p.exp() * (p - q)).masked_fill(p.isneginf(), 0).sum(-1)


def _finite(against: Tensor) -> Tensor:
    """Logits or log-probabilities [B, V] to contrast with: a token that is impossible there (-inf) counts as the least
    likely possible one, so a score is -inf where the contrasted side is, and never NaN or +inf."""
    impossible = against.isneginf()
    return torch.where(impossible, against.masked_fill(impossible, torch.inf).amin(-1, keepdim=True), against)


def adaptive_alpha(
    logits: Tensor,  # [B, V]
    against: Tensor,  # [B, V]
) -> Tensor:
    """[B, 1]: the weight of AdaCAD, the divergence of the two sides."""
    return divergence(logits, against)[:, None]


def plausible(
    logits: Tensor,  # [B, V]
    relative_top: float,
) -> Tensor:
    """[B, V] bool: the tokens with at least `relative_top` of the top probability."""
    return logits >= logits.amax(-1, keepdim=True) + math.log(max(relative_top, 1e-38))


def dola(
    final: Tensor,  # [B, V], logits of the last layer
    early: Tensor,  # [L, B, V], logits of the candidate layers
    relative_top: float = DOLA_CUT,
) -> Tensor:
    """[B, V]: log-probabilities of the last layer minus those of the candidate that diverges most from it in each row.

    Implausible tokens are -inf.
    """
    divergences = torch.stack([divergence(final, candidate) for candidate in early])  # [L, B]
    chosen = early[divergences.argmax(0), torch.arange(final.shape[0], device=final.device)]  # [B, V]
    scores = final.log_softmax(-1) - _finite(chosen.log_softmax(-1))
    return scores.masked_fill(~plausible(final, relative_top), -torch.inf)


def candidate_layers(depth: int) -> tuple[int, ...]:
    """DoLa's candidates: every second layer of the upper half, such as 16, 18, .., 30 of 32.

    Candidate i is the output of the i-th layer counted from 1, which is the input of layer i counted from 0.
    """
    return tuple(range(depth // 2, depth, 2)) or (depth - 1,)
