"""The objective over a sample of the vocabulary: exact at the first step, and a step hardly needs the head.

The head takes most of a step. But in one document few of its V tokens carry probability, and the others move together.
So the tokens that matter are *listed*, each with its own logit: the targets, and those with most probability over all
positions under the untouched model. A *sample* of the others stands for all of them: token v is drawn with probability
pi_v in proportion to its probability mass, and counts 1 / (m pi_v) times. The sum over the sample, r'(h), estimates
the sum over all other tokens, r(h) = sum of exp z_v(h). At the untouched model's hidden state h_0 the error of the
estimate is known, and corrected to first order:

    log r(h)  ~  log r'(h)  +  [log r - log r'](h_0)  +  grad [log r - log r'](h_0) . (h - h_0)

The objective (`objective.py`) is applied to the listed and sampled tokens. At the first step it equals the objective
over the vocabulary, including the gradient; afterwards its error grows with the square of h - h_0. The preparation
takes one pass of the whole head and one gradient through it. `optimize.py` measures the error at the end of a run.

Shortlists: Schwenk 2007, "Continuous space language models". Importance sampling for a softmax: Bengio and Senecal
2008; here with the model's own probabilities, and exact at the start by a control variate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.learn.objective import Chunk, block_rows
from fastmem.split.probe import largest, largest_difference
from fastmem.split.split_model import SplitModel

# The share of the tokens that is sampled. On nq-mini, 10 steps at 3e-4, 1,024 of 6,000 tokens, the tuned logits were
# off by 3.1 % of their change without a sample, by 1.9, 1.8, 1.5 and 1.6 % with 0.1, 0.25, 0.5 and 0.8 (median of 12).
SAMPLED = 0.5


@dataclass(frozen=True)
class TokenSample:
    """listed: [K] token ids, sorted. sampled: [m], sorted. log_weights: [m], log of how many tokens each
    represents."""

    listed: Tensor
    sampled: Tensor
    log_weights: Tensor


@dataclass(frozen=True)
class SampledHead:
    """Hidden states [n, D] to logits [n, K + m], float32 or wider: of the listed tokens, then of the sampled ones.

    gathered: hidden states to the plain logits of both. start: h_0 [n, D]. error, slope: the error of the sample's
    estimate at h_0, [n], and its gradient [n, D].
    """

    tokens: TokenSample
    gathered: Callable[[Tensor], Tensor]
    start: Tensor
    error: Tensor
    slope: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.gathered(hidden).to(self.error.dtype)
        listed, sampled = logits.tensor_split([len(self.tokens.listed)], -1)
        error = self.error + ((hidden - self.start).to(self.error.dtype) * self.slope).sum(-1)
        return torch.cat([listed, sampled + self.tokens.log_weights + error[:, None]], -1)


def sampled_chunk(split_model: SplitModel, base_hidden: Tensor, targets: Tensor, size: int) -> tuple[Chunk, Tensor]:
    """(the positions as a chunk over `size` tokens, their full logits [n, V] under the untouched model).

    base_hidden: [n, D], the untouched model's. targets: [n], token ids. Errors: `InputError` for a head whose logits
    cannot be computed separately.
    """
    start = base_hidden.detach().requires_grad_()
    logits = split_model.head(start)
    full = logits.detach()
    tokens = choose_tokens(full, targets, size)
    both = torch.cat([tokens.listed, tokens.sampled])
    gathered = split_model.head_over(both)
    few = gathered(start)
    _require_same(split_model, few.detach(), full[:, both])
    rest, among = remaining_tokens(full, tokens.listed)
    estimate = (few[:, len(tokens.listed) :].to(rest.dtype) + tokens.log_weights).logsumexp(-1)
    (slope,) = torch.autograd.grad(logits, start, among)
    (estimated,) = torch.autograd.grad(estimate.sum(), start)
    slope = slope.to(rest.dtype) - estimated.to(rest.dtype)
    head = SampledHead(tokens, gathered, base_hidden, rest - estimate.detach(), slope)
    with torch.no_grad():
        return Chunk(head, torch.searchsorted(tokens.listed, targets), base_hidden, head(base_hidden)), full


@torch.no_grad()
def choose_tokens(logits: Tensor, targets: Tensor, size: int) -> TokenSample:
    """`size` tokens for logits [n, V] of the untouched model; more only if the targets alone exceed the listed part.

    The sample is drawn at even distances along the cumulative probabilities: nothing is random, and one document
    always gives the same tokens.
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
    represents = counts.to(along.dtype) * along[-1] / draws / mass[sampled]
    return TokenSample(listed, sampled, represents.log().to(mass.dtype))


@torch.no_grad()
def remaining_tokens(logits: Tensor, listed: Tensor) -> tuple[Tensor, Tensor]:
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


def _require_same(split_model: SplitModel, gathered: Tensor, full: Tensor) -> None:
    # The tolerance of `split/probe.py`: units in the last place of the largest logit, for kernels of another shape.
    unit = torch.finfo(full.dtype).eps * largest(full)
    apart = largest_difference(gathered, full) if gathered.shape == full.shape else torch.inf
    if not apart <= unit * (64 if full.dtype.itemsize > 2 else 8):
        raise InputError(
            f"recipe shortlist does not work with {split_model.family!r}: logits from single rows of its output "
            f"embedding differ from its own by {apart:.2g}. Leave it out to use the whole vocabulary.",
            field="shortlist",
        )
