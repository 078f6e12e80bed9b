"""`BatchedMuon`: `torch.optim.Muon` for all matrices of one shape at once, in the precision that is fast.

torch's own orthogonalizes one matrix after the other, in bfloat16. For a model of 5.8 million weights it took 10.5 s a
step on two cores without bfloat16 instructions; this takes 0.5 s (docs/log.md, 2026-11-26).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Of the quintic Newton-Schulz iteration (Keller Jordan, Muon, 2024), five of which bring all singular values near 1.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class BatchedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and updates scaled to the size of AdamW's (arXiv 2502.16982, eq. 4).

    params: matrices. dtype: of the orthogonalization; bfloat16 is slow on a CPU without instructions for it.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.02,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        steps = torch.stack([g.lerp(m, group["momentum"]) for g, m in zip(gradients, momenta, strict=True)])
        directions = orthogonal(steps.to(self.dtype)).to(steps.dtype)
        scale = 0.2 * max(matrices[0].shape) ** 0.5
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, list(directions.unbind()), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, A, B]: nearly the orthogonal factor of each matrix, all singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    found = matrices if wide else matrices.mT
    found = found / found.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(ITERATIONS):
        products = found @ found.mT
        found = a * found + (b * products + c * products @ products) @ found
    return found if wide else found.mT
