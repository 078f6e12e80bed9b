"""The objective: make the document likely without leaving the untouched model.

    loss = mean over scored positions of  -log q(next)  +  kl_weight * mean of KL(p || q)

q is the distribution now and p that of the untouched model, both over the full vocabulary (arXiv 2406.16069, section
3; `src/Trainer.py` of the authors' code). p is fixed, so the KL is 0 before the first update.

`plain` is the definition. `losses_and_gradient` is what runs. For logits z of q, the gradient of the loss of one
position is  q - onehot(next) + kl_weight * (q - p),  so softmax, losses and gradient come from one pass. No graph of
[N, V] tensors is kept, and no [N, V] tensor in float32 exists: a few rows at a time are widened, few enough to stay in
the processor's cache (150 x 128,256 logits on 2 cores: 26 ms instead of 225 ms for all rows at once). `Chunk` applies
it to the positions that go through the head together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers in one float32 block; four blocks are in use. On a CPU a block takes 4 MB, so that four fit into its
# last-level cache; on other devices blocks are few and large.
BLOCK_NUMBERS = {"cpu": 2**20}
LARGEST_BLOCK_NUMBERS = 2**24


def plain(
    logits: Tensor,  # [N, V]
    base_logits: Tensor,  # [N, V]
    targets: Tensor,  # [N] int64
    kl_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, cross entropy, KL), each a mean over the N positions; gradients by autograd.

    All reductions in the type of `logits`, float32 or wider. A token of logit -inf on the untouched side adds nothing
    to the KL: p log p goes to 0 with p.
    """
    now, base = logits.log_softmax(-1), base_logits.log_softmax(-1)
    cross_entropy = F.nll_loss(now, targets)
    kl = (base.exp() * (base - now).masked_fill(base.isneginf(), 0)).sum(-1).mean()
    return cross_entropy + kl_weight * kl, cross_entropy, kl


@torch.no_grad()
def losses_and_gradient(
    logits: Tensor,  # [N, V], in the model's type
    base_logits: Tensor,  # [N, V]
    targets: Tensor,  # [N] int64
    kl_weight: float,
    out: Tensor | None = None,  # [N, V]
) -> tuple[Tensor, Tensor, Tensor]:
    """(cross entropy [N], KL [N], gradient [N, V] of the sum of both losses) of one chunk of positions.

    Equal to `plain` by autograd, summed instead of averaged. Reductions in float32 (float64 for float64), the gradient
    in the type of `logits`. out: receives the gradient; it may be `logits`.
    """
    out = torch.empty_like(logits) if out is None else out
    count, V = logits.shape
    size = block_rows(logits)
    # The same four blocks for all rows: new ones would cause page faults (150 ms instead of 26 ms in some processes).
    blocks = logits.new_empty(4, size, V, dtype=torch.promote_types(logits.dtype, torch.float32))
    cross_entropy, kl = blocks.new_empty(count), blocks.new_empty(count)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        target = targets[rows, None]
        z, base, q, p = blocks[:, : len(target)]
        torch.softmax(z.copy_(logits[rows]), -1, out=q)
        torch.softmax(base.copy_(base_logits[rows]), -1, out=p)
        # log q_i = z_i - top + log q_top, and likewise for p: no second pass of exponentials.
        top, base_top = z.amax(-1), base.amax(-1)
        log_q_top, log_p_top = q.amax(-1).log(), p.amax(-1).log()
        cross_entropy[rows] = top - log_q_top - z.gather(-1, target)[:, 0]
        # For a token of logit -inf, 0 * inf is NaN, which counts as 0. A NaN logit is not lost: `top` is NaN, too.
        kl[rows] = base.sub_(z).mul_(p).nansum(-1) + (top - base_top) + (log_p_top - log_q_top)
        q.lerp_(p, -kl_weight)  # q + kl_weight * (q - p)
        out[rows] = q.scatter_add_(-1, target, q.new_full(target.shape, -1))
    return cross_entropy, kl.clamp_(min=0), out  # rounding leaves -1e-7 where the two are nearly the same


def block_rows(logits: Tensor) -> int:
    """Rows of logits [N, V] in a block, at least one."""
    numbers = BLOCK_NUMBERS.get(logits.device.type, LARGEST_BLOCK_NUMBERS)
    return min(max(1, numbers // logits.shape[1]), len(logits))


@dataclass(frozen=True)
class Chunk:
    """n scored positions that go through the head together.

    head: hidden states [n, D] to logits [n, V], differentiable. targets: [n], columns of these logits. base_hidden:
    [n, D], the untouched model's. base_logits: [n, V], the head of `base_hidden`, or None to compute them every time.
    """

    head: Callable[[Tensor], Tensor]
    targets: Tensor
    base_hidden: Tensor
    base_logits: Tensor | None = None

    def gradient(self, hidden: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
        """(gradient [n, D] of the summed losses with respect to `hidden` [n, D], losses [n, 2]).

        losses: cross entropy and KL of every position, float64.
        """
        rows = hidden.detach().requires_grad_()
        logits = self.head(rows)
        # The gradient overwrites the logits; autograd raises an error if a head still needs them.
        gradient = logits.detach()
        cross_entropy, kl, _ = losses_and_gradient(gradient, self._base(), self.targets, kl_weight, out=gradient)
        return torch.autograd.grad(logits, rows, gradient)[0], torch.stack([cross_entropy, kl], -1).double()

    @torch.no_grad()
    def losses(self, hidden: Tensor) -> Tensor:
        """[n, 2], float64: cross entropy and KL of every position."""
        logits = self.head(hidden)
        cross_entropy, kl, _ = losses_and_gradient(logits, self._base(), self.targets, 0.0, out=logits)
        return torch.stack([cross_entropy, kl], -1).double()

    @torch.no_grad()
    def _base(self) -> Tensor:
        return self.head(self.base_hidden) if self.base_logits is None else self.base_logits
