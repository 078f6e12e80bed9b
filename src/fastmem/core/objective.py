"""The objective: make the document likely without leaving the untouched model.

    loss = mean over scored positions of  -log q(next)  +  kl_weight * mean of KL(p || q)

with q the distribution now and p that of the untouched model, both over the full vocabulary (arXiv 2406.16069,
section 3; `src/Trainer.py` of the authors' code). p is fixed, so KL is 0 before the first update.

`plain` is the definition. `losses_and_gradient` is what runs: for logits z of q the gradient of the loss of one
position is  q - onehot(next) + kl_weight * (q - p),  so soft-max, loss and gradient come from one pass over a chunk of
positions and no graph of [N, V] tensors is ever kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def plain(logits: Tensor, base_logits: Tensor, targets: Tensor, kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, cross entropy, KL), each a mean over the N positions; gradients by autograd.

    logits, base_logits: [N, V]. targets: [N] int64. All reductions in the type of `logits`, float32 or wider.
    """
    now, base = logits.log_softmax(-1), base_logits.log_softmax(-1)
    cross_entropy = F.nll_loss(now, targets)
    kl = F.kl_div(now, base, log_target=True, reduction="batchmean")
    return cross_entropy + kl_weight * kl, cross_entropy, kl


def losses_and_gradient(
    logits: Tensor, base_logits: Tensor, targets: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(cross entropy [N], KL [N], gradient [N, V] of the sum of both losses) of one chunk of positions.

    logits, base_logits: [N, V] in the model's type. Reductions in float32 (float64 for float64), the gradient in the
    type of `logits`. Equal to `plain` by autograd, summed instead of averaged.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    now, base = logits.to(wide).log_softmax(-1), base_logits.to(wide).log_softmax(-1)
    rows = torch.arange(len(targets), device=targets.device)
    cross_entropy = -now[rows, targets]
    p = base.exp()
    kl = (p * (base - now)).sum(-1).clamp_(min=0)  # rounding leaves -1e-7 where the two are nearly the same
    gradient = now.exp_().mul_(1 + kl_weight).sub_(p, alpha=kl_weight)
    gradient[rows, targets] -= 1
    return cross_entropy, kl, gradient.to(logits.dtype)
