"""The objective: make the document likely without leaving the untouched model.

    loss = mean over scored positions of  -log q(next)  +  kl_weight * mean of KL(p || q)

with q the distribution now and p that of the untouched model, both over the full vocabulary (arXiv 2406.16069,
section 3; `src/Trainer.py` of the authors' code). p is fixed, so KL is 0 before the first update.

`plain` is the definition. `losses_and_gradient` is what runs: for logits z of q the gradient of the loss of one
position is  q - onehot(next) + kl_weight * (q - p),  so soft-max, loss and gradient come from one pass, no graph of
[N, V] tensors is ever kept, and no [N, V] tensor in float32 exists: a few rows at a time are widened, few enough to
stay in the processor's cache (150 x 128,256 logits on 2 cores: 26 ms instead of 225 ms for all rows at once).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of one float32 block, of which four are alive. On a CPU 4 MB, so that the four fit into its last-level cache;
# elsewhere few and large.
BLOCK_NUMBERS = {"cpu": 2**20}
LARGEST_BLOCK_NUMBERS = 2**24


def plain(logits: Tensor, base_logits: Tensor, targets: Tensor, kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, cross entropy, KL), each a mean over the N positions; gradients by autograd.

    logits, base_logits: [N, V]. targets: [N] int64. All reductions in the type of `logits`, float32 or wider.
    """
    now, base = logits.log_softmax(-1), base_logits.log_softmax(-1)
    cross_entropy = F.nll_loss(now, targets)
    kl = F.kl_div(now, base, log_target=True, reduction="batchmean")
    return cross_entropy + kl_weight * kl, cross_entropy, kl


@torch.no_grad()
def losses_and_gradient(
    logits: Tensor, base_logits: Tensor, targets: Tensor, kl_weight: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(cross entropy [N], KL [N], gradient [N, V] of the sum of both losses) of one chunk of positions.

    logits, base_logits: [N, V] in the model's type. Reductions in float32 (float64 for float64), the gradient in the
    type of `logits`. Equal to `plain` by autograd, summed instead of averaged. out: where the gradient goes; `logits`
    itself will do.
    """
    out = torch.empty_like(logits) if out is None else out
    count, V = logits.shape
    size = block_rows(logits)
    # The same four blocks throughout: new ones would cost page faults (26 ms became 150 ms in some processes).
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
        kl[rows] = torch.linalg.vecdot(p, base.sub_(z)) + (top - base_top) + (log_p_top - log_q_top)
        q.sub_(p, alpha=kl_weight / (1 + kl_weight)).mul_(1 + kl_weight)
        out[rows] = q.scatter_add_(-1, target, q.new_full(target.shape, -1))
    return cross_entropy, kl.clamp_(min=0), out  # rounding leaves -1e-7 where the two are nearly the same


def block_rows(logits: Tensor) -> int:
    """How many rows of logits [N, V] make a block; at least one."""
    numbers = BLOCK_NUMBERS.get(logits.device.type, LARGEST_BLOCK_NUMBERS)
    return min(max(1, numbers // logits.shape[1]), len(logits))
