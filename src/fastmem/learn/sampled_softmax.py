"""The objective over a shortlist of the vocabulary: exact where it starts, and a step hardly needs the head.

The head is most of a step. But of its V tokens few carry probability in one document, and the others move together.
So the tokens that matter are *listed*, each with its own logit: the targets, and those that carry most probability
over all positions under the untouched model. Of all others a *sample* stands for the whole: token v is drawn with
chance pi_v in proportion to what it carries, and counts 1 / (m pi_v) times. Their sum estimates what the others
amount to, r(h) = sum of exp z_v(h); what the estimate lacks at the untouched model's hidden state h_0 is known and
added, to first order:

    log r(h)  ~  log r'(h)  +  [log r - log r'](h_0)  +  grad [log r - log r'](h_0) . (h - h_0)

The objective is the exact one over listed and sampled tokens (`chunk.py`). At the start it equals that over the
vocabulary, gradient included; from there its error grows with the square of h - h_0, by what the sample misses of the
spread of the others' rows. Preparing it takes one pass of the whole head and one gradient through it; a step then
takes its share of the head. `optimize.py` measures the error where a run ends.

Shortlists: Schwenk 2007, "Continuous space language models". Importance sampling of a soft-max: Bengio and Senecal
2008; here with the model's own probabilities, and exact at the start by a control variate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.core.chunk import Chunk
from fastmem.core.objective import block_rows
from fastmem.core.trunk import Trunk
from fastmem.errors import InputError

# The share of a shortlist that is sampled. On nq-mini, 10 steps at 3e-4, 1,024 of 6,000 tokens, the tuned logits were
# off by 3.1 % of their change without a sample, by 1.9, 1.8, 1.5 and 1.6 % with 0.1, 0.25, 0.5 and 0.8 (median of 12).
SAMPLED = 0.5


@dataclass(frozen=True)
class Shortlist:
    """Which tokens. listed: [K], sorted. sampled: [m], sorted. log_weights: [m], how many each of these stands for."""

    listed: Tensor
    sampled: Tensor
    log_weights: Tensor


@dataclass(frozen=True)
class ShortHead:
    """Hidden states [n, D] to logits [n, K + m], float32 or wider: of the listed tokens, then of the sampled ones.

    gathered: hidden states to the plain logits of both. start: h_0 [n, D]. lack, slope: what the sample lacks there,
    [n], and its gradient [n, D].
    """

    tokens: Shortlist
    gathered: Callable[[Tensor], Tensor]
    start: Tensor
    lack: Tensor
    slope: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.gathered(hidden).to(self.lack.dtype)
        listed, sampled = logits.tensor_split([len(self.tokens.listed)], -1)
        lack = self.lack + ((hidden - self.start).to(self.lack.dtype) * self.slope).sum(-1)
        return torch.cat([listed, sampled + self.tokens.log_weights + lack[:, None]], -1)


def shortened(trunk: Trunk, base_hidden: Tensor, targets: Tensor, size: int) -> tuple[Chunk, Tensor]:
    """(positions scored over a shortlist of `size` tokens, their logits [n, V] under the untouched model).

    base_hidden: [n, D], the untouched model's. targets: [n], token ids. Errors: `InputError` for a head whose logits
    cannot be had one by one.
    """
    start = base_hidden.detach().requires_grad_()
    logits = trunk.head(start)
    full = logits.detach()
    tokens = chosen(full, targets, size)
    both = torch.cat([tokens.listed, tokens.sampled])
    gathered = trunk.head_over(both)
    few = gathered(start)
    _require_same(trunk, few.detach(), full[:, both])
    rest, among = others(full, tokens.listed)
    estimate = (few[:, len(tokens.listed) :].to(rest.dtype) + tokens.log_weights).logsumexp(-1)
    (slope,) = torch.autograd.grad(logits, start, among)
    (estimated,) = torch.autograd.grad(estimate.sum(), start)
    slope = slope.to(rest.dtype) - estimated.to(rest.dtype)
    head = ShortHead(tokens, gathered, base_hidden, rest - estimate.detach(), slope)
    with torch.no_grad():
        return Chunk(head, torch.searchsorted(tokens.listed, targets), base_hidden, head(base_hidden)), full


@torch.no_grad()
def chosen(logits: Tensor, targets: Tensor, size: int) -> Shortlist:
    """`size` tokens for logits [n, V] of the untouched model; more only where there are more targets than are listed.

    Drawn at even distances along the sum of probabilities: nothing random, and the same again for the same document.
    """
    mass = logits.new_zeros(logits.shape[1], dtype=torch.promote_types(logits.dtype, torch.float32))
    blocks = mass.new_empty(2, block_rows(logits), len(mass))
    for rows in logits.split(blocks.shape[1]):
        wide, p = blocks[:, : len(rows)]
        mass += torch.softmax(wide.copy_(rows), -1, out=p).sum(0)
    mass.clamp_(min=torch.finfo(mass.dtype).tiny)
    draws = max(1, int(size * SAMPLED))
    ranked = mass.index_fill(0, targets, torch.inf)
    listed = ranked.topk(max(size - draws, int(ranked.isinf().sum()))).indices.sort().values
    along = mass.double().index_fill(0, listed, 0).cumsum(0)
    points = (torch.arange(draws, device=mass.device) + 0.5) / draws * along[-1]
    sampled, counts = torch.searchsorted(along, points).unique(return_counts=True)
    stands_for = counts.to(along.dtype) * along[-1] / draws / mass[sampled]
    return Shortlist(listed, sampled, stands_for.log().to(mass.dtype))


@torch.no_grad()
def others(logits: Tensor, listed: Tensor) -> tuple[Tensor, Tensor]:
    """(log r [n], probabilities [n, V] among the tokens that are not listed, in the type of the logits)."""
    rest = logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
    among = torch.empty_like(logits)
    blocks = rest.new_empty(2, block_rows(logits), logits.shape[1])
    parts = zip(*(tensor.split(blocks.shape[1]) for tensor in (logits, rest, among)), strict=True)
    for rows, log_r, found in parts:
        wide, p = blocks[:, : len(rows)]
        torch.softmax(wide.copy_(rows).index_fill_(-1, listed, -torch.inf), -1, out=p)
        log_r.copy_(wide.amax(-1) - p.amax(-1).log())
        found.copy_(p)
    return rest, among


def _require_same(trunk: Trunk, gathered: Tensor, full: Tensor) -> None:
    # As in the trunk's probe: units in the last place of the largest logit, for kernels of another shape.
    unit = torch.finfo(full.dtype).eps * full.abs().max().item()
    apart = (gathered - full).abs().max().item() if gathered.shape == full.shape else torch.inf
    if not apart <= unit * (64 if full.dtype.itemsize > 2 else 8):
        raise InputError(
            f"recipe shortlist (--shortlist) does not suit {trunk.family!r}: from some rows of its output embedding "
            f"alone its logits differ by {apart:.2g}. Leave it out; the objective then uses the whole vocabulary."
        )
