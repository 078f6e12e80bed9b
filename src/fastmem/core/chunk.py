"""Scored positions that go through the head together: what they cost, and which way they pull their hidden states."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.core.objective import losses_and_gradient


@dataclass(frozen=True)
class Chunk:
    """n positions and the head they are scored by.

    head: hidden states [n, D] to logits [n, V], differentiable. targets: [n], columns of these logits. base_hidden:
    [n, D], the untouched model's. base_logits: what the head makes of these, or None where there is no room to keep
    them and they are computed again.
    """

    head: Callable[[Tensor], Tensor]
    targets: Tensor
    base_hidden: Tensor
    base_logits: Tensor | None = None

    def pull(self, hidden: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
        """(gradient [n, D] of the summed losses with respect to the hidden states, losses [n, 2]).

        losses: cross entropy and KL of every position, float64.
        """
        rows = hidden.detach().requires_grad_()
        logits = self.head(rows)
        # The gradient takes the place of the logits; autograd refuses where a head still needs them.
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
