"""`Optimization`: one document being memorized. Its weights, AdamW, the losses so far.

A step cuts the document into pieces that go through the FFN, and every piece into chunks that go through the head.
Each chunk yields losses and the gradient of its hidden states, which is propagated back through the FFN. The summed
gradient is clipped, and AdamW updates float32 master weights; passes run in the model's type.

With `Recipe.shortlist` the chunks are scored over a sample of the vocabulary (`sampled_softmax.py`), and
`replace_last_losses_with_exact` measures the error at the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from fastmem.learn.budget import Plan, even_size, plan
from fastmem.learn.objective import Chunk
from fastmem.learn.sampled_softmax import sampled_chunk
from fastmem.memory import low_rank
from fastmem.memory.memory import Step
from fastmem.memory.recipe import Recipe
from fastmem.split.hooks import Activations
from fastmem.split.split_model import SplitModel

# Two correct runs in a short type differ by this much (tests/test_memorize.py), so a smaller difference is no error.
ROUNDING_NATS = 5e-3


@dataclass(frozen=True)
class Reading:
    """A document after its trunk pass.

    activations: at its N scored positions. targets: [N], the token after each. details: where the document came from,
    for the memory's record.
    """

    activations: Activations
    targets: Tensor
    details: Mapping[str, Any] = field(default_factory=dict)

    def spread(self, most: int) -> "Reading":
        """At most `most` of the positions, evenly spread from the first to the last."""
        index = torch.linspace(0, len(self.targets) - 1, min(most, len(self.targets))).long()
        own = self.activations
        if own.positions is None:
            some = own.rows(index.tolist())
        else:  # layers above attend to all positions
            some = replace(own, positions=own.positions[index])
        return replace(self, activations=some, targets=self.targets[index])


@dataclass(frozen=True, eq=False)
class _Piece:
    """Positions that go through the FFN together. chunks: what a step scores. exact: the same over the vocabulary."""

    activations: Activations
    chunks: list[Chunk]
    exact: list[Chunk]


class Optimization:
    """The optimization of one document. Errors: `ResourceError` if it cannot fit.

    masters: what AdamW updates, float32 or wider: the weights themselves, or their low-rank factors. leaves: the
    weights in the model's type, with respect to which a pass is differentiated. kl_weight: changes if it is adaptive.
    """

    def __init__(self, split_model: SplitModel, reading: Reading, recipe: Recipe):
        self.split_model, self.recipe, self.kl_weight = split_model, recipe, recipe.kl_weight
        self.positions = len(reading.targets)
        self.originals = split_model.parameters(recipe.layers)
        self.low_rank = recipe.parametrization == "lora"
        planned = plan(split_model, recipe, self.positions)
        if self.low_rank:
            self.masters = low_rank.start(self.originals, recipe.rank, recipe.seed)
        else:
            self.masters = {name: w.to(_wide(w), copy=True) for name, w in self.originals.items()}
        self.leaves = {name: w.clone().requires_grad_() for name, w in self.originals.items()}
        self.ffn = split_model.ffn(self.leaves)
        self.optimizer = torch.optim.AdamW(
            self.masters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.pieces = _pieces(split_model, reading, recipe, planned)
        self._gradients: dict[str, Tensor] = {}  # of this step: the tensors that have one
        self._buffers: dict[str, Tensor] = {}  # float32, used again in every step
        self._losses: list[Tensor] = []  # per step [3]

    def compute_gradients(self) -> None:
        """Losses and gradients at the present weights, over all scored positions."""
        # 1. Bring the weights in the model's type up to date.
        self.write_leaves()
        if self.recipe.adaptive_kl is not None:
            self._adapt_kl_weight(self.recipe.adaptive_kl)
        # 2. Forward and backward, piece by piece.
        sums = self._zeros()
        self._gradients = {}
        for piece in self.pieces:
            hidden = self.split_model.tail(piece.activations, self.ffn)  # [n, D]
            parts = hidden.detach().split([len(chunk.targets) for chunk in piece.chunks])
            found = [chunk.gradient(part, self.kl_weight) for chunk, part in zip(piece.chunks, parts, strict=True)]
            gradient, losses = (torch.cat(each) for each in zip(*found, strict=True))  # [n, D], [n, 2]
            sums += losses.sum(0)
            leaves = list(self.leaves.values())
            self._add(torch.autograd.grad(hidden, leaves, gradient / self.positions, allow_unused=True))
        # 3. Keep the losses on the device; `trace` reads them.
        self._losses.append(self._means(sums))

    def update(self) -> None:
        """Clip the gradient over all tuned tensors together, and take one step of AdamW."""
        gradients = self._gradients
        if self.low_rank:
            gradients = low_rank.factor_gradients(gradients, self.masters, self.recipe.lora_scale)
        for name, master in self.masters.items():
            master.grad = gradients.get(name)
        torch.nn.utils.clip_grad_norm_(self.masters.values(), self.recipe.max_grad_norm)
        self.optimizer.step()

    @torch.no_grad()
    def write_leaves(self) -> None:
        """Bring the weights in the model's type up to date."""
        for name, weight in self.weights().items():
            self.leaves[name].copy_(weight)

    def losses(self) -> Step:
        """The losses at the leaves, over all scored positions and the whole vocabulary. Synchronizes."""
        return Step(len(self._losses), *self._evaluated([piece.exact for piece in self.pieces]).tolist())

    def weights(self) -> Mapping[str, Tensor]:
        """The present value of every tuned tensor, float32 or wider."""
        if not self.low_rank:
            return self.masters
        differences = low_rank.differences(self.masters, self.recipe.lora_scale)
        return {name: self.originals[name].to(d.dtype) + d for name, d in differences.items()}

    def memory_tensors(self, last: bool = False) -> dict[str, Tensor]:
        """The tensors of a memory of the present weights: w - w_0, or the low-rank factors of it.

        last: no step follows, so the masters themselves are turned into the result instead of a copy.
        """
        if self.low_rank:
            return {name: m if last else m.clone() for name, m in self.masters.items()}
        return {name: (m if last else m.clone()).sub_(self.originals[name]) for name, m in self.masters.items()}

    def trace(self) -> list[Step]:
        """One `Step` per call of `compute_gradients`. Synchronizes with the device."""
        rows = torch.stack(self._losses).tolist() if self._losses else []
        return [Step(i, *row) for i, row in enumerate(rows)]

    def replace_last_losses_with_exact(self) -> float:
        """Compute the last losses over the whole vocabulary, where a sample only estimated them.

        Returns the error of the estimate as a share of the total change of the loss; rounding does not count. 0
        without a sample. Synchronizes with the device.
        """
        if all(piece.chunks is piece.exact for piece in self.pieces) or not self._losses:
            return 0.0
        first, estimated = self._losses[0][0], self._losses[-1][0]
        self._losses[-1] = exact = self._evaluated([piece.exact for piece in self.pieces])
        return float((((estimated - exact[0]).abs() - ROUNDING_NATS) / (first - exact[0]).abs()).clamp(min=0))

    def _add(self, found: Sequence[Tensor | None]) -> None:
        """Add the gradients of one piece. A tensor that no position uses has none: the expert that none chose."""
        for (name, leaf), gradient in zip(self.leaves.items(), found, strict=True):
            if gradient is None:
                continue
            if name in self._gradients:
                self._gradients[name].add_(gradient)
                continue
            if name not in self._buffers:
                self._buffers[name] = torch.empty_like(leaf, dtype=_wide(leaf))
            self._gradients[name] = self._buffers[name].copy_(gradient)

    @torch.no_grad()
    def _evaluated(self, chunks: Sequence[Sequence[Chunk]]) -> Tensor:
        """[3]: the losses of every piece's chunks at the leaves."""
        sums = self._zeros()
        for piece, own in zip(self.pieces, chunks, strict=True):
            parts = self.split_model.tail(piece.activations, self.ffn).split([len(chunk.targets) for chunk in own])
            for chunk, part in zip(own, parts, strict=True):
                sums += chunk.losses(part).sum(0)
        return self._means(sums)

    def _zeros(self) -> Tensor:
        return torch.zeros(2, device=self.split_model.device, dtype=torch.float64)

    def _means(self, sums: Tensor) -> Tensor:
        """[3]: loss, cross entropy and KL per position, from their sums [2]."""
        cross_entropy, kl = sums / self.positions
        return torch.stack([cross_entropy + self.kl_weight * kl, cross_entropy, kl])

    def _adapt_kl_weight(self, target: float) -> None:
        """Ziegler et al. 2019, eq. 4, as in the authors' code: the weight follows this step's KL, before its loss."""
        kl = self._evaluated([piece.chunks for piece in self.pieces])[2].item()
        error = kl / max(target, 1e-12) - 1
        self.kl_weight *= 1 + min(max(error, -0.2), 0.2) * (len(self._losses) + 1) / max(self.recipe.steps, 1)


def _pieces(split_model: SplitModel, reading: Reading, recipe: Recipe, planned: Plan) -> list[_Piece]:
    """Cut the document into pieces of equal size, and each piece into chunks of equal size."""
    sampled = recipe.shortlist is not None and recipe.shortlist < split_model.vocabulary_size
    # The KL refers to the model as it is tuned: the float copy of a quantized FFN.
    own = split_model.ffn(split_model.parameters(recipe.layers))
    parts = list(reading.activations.split(even_size(len(reading.targets), planned.piece_positions)))
    counts = [len(part.hidden) for part in parts] if len(parts) > 1 else [len(reading.targets)]
    room, pieces = planned.kept_logits_bytes, []
    for part, targets in zip(parts, reading.targets.split(counts), strict=True):
        with torch.no_grad():
            base_hidden = split_model.tail(part, own)  # [n, D]
        size = even_size(len(targets), planned.chunk_positions)
        exact, chunks = [], []
        for rows, wanted in zip(base_hidden.split(size), targets.split(size), strict=True):
            room -= len(rows) * split_model.vocabulary_size * split_model.dtype.itemsize
            logits = None
            if sampled and recipe.shortlist is not None:
                listed, logits = sampled_chunk(split_model, rows, wanted, recipe.shortlist)
                chunks.append(listed)
            elif room >= 0:
                with torch.no_grad():
                    logits = split_model.head(rows)
            exact.append(Chunk(split_model.head, wanted, rows, logits if room >= 0 else None))
        pieces.append(_Piece(part, chunks or exact, exact))
    return pieces


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite. Synchronizes with the device."""
    # Both ends: one pass, and no overflow as in a sum (50 M bfloat16 on 2 cores: 0.06 s; isfinite().all() 1.1 s).
    return all(isfinite(end) for t in tensors for end in torch.stack(torch.aminmax(t)).tolist())


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
