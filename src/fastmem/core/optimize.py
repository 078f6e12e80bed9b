"""The optimization under `memorize`: one document, or several in lockstep, each with weights of its own.

A step is the same for one and for many. Pieces of documents go through the FFN, each through its document's weights;
their hidden states go through the head together, in chunks, so that its matrix is read once for all; every piece's
share of the gradient goes back through its own FFN; every document's gradient is clipped by its own norm; and one
AdamW, which works number by number, updates them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor

from fastmem.core import lora
from fastmem.core.budget import Plan, plan
from fastmem.core.memory import Recipe, Step
from fastmem.core.objective import losses_and_gradient
from fastmem.core.replay import Activations
from fastmem.core.trunk import Trunk


@dataclass(frozen=True)
class Reading:
    """One document, read once: what the tuned layers need at the scored positions, and what comes next there.

    activations: at N positions. targets: [N], the token that follows each.
    """

    activations: Activations
    targets: Tensor


class Tuning:
    """The weights under way of one document.

    masters: what AdamW updates, float32 or wider: the weights themselves, or their low-rank factors.
    leaves: the weights in the model's type, for whose gradients a pass is asked.
    """

    def __init__(self, trunk: Trunk, recipe: Recipe):
        self.recipe = recipe
        self.originals = trunk.parameters(recipe.layers)
        self.low_rank = recipe.parametrization == "lora"
        if self.low_rank:
            self.masters = lora.start(self.originals, recipe.rank, recipe.seed)
        else:
            self.masters = {name: w.to(_wide(w), copy=True) for name, w in self.originals.items()}
        self.leaves = {name: w.clone().requires_grad_() for name, w in self.originals.items()}
        self.ffn = trunk.ffn(self.leaves)
        self.gradients: dict[str, Tensor] = {}

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the leaves up to the masters."""
        for name, weight in self.weights().items():
            self.leaves[name].copy_(weight)

    def add_gradients(self, found: Sequence[Tensor | None], first: bool) -> None:
        """Gradients of the leaves from one piece; into the same float32 buffers in every step."""
        for (name, leaf), gradient in zip(self.leaves.items(), found, strict=True):
            if gradient is None:  # a bias that only picks experts has none
                continue
            if name not in self.gradients:
                self.gradients[name] = torch.empty_like(leaf, dtype=_wide(leaf))
            if first:
                self.gradients[name].copy_(gradient)
            else:
                self.gradients[name].add_(gradient)

    def clip(self) -> None:
        """Hand the gradients to the masters, scaled to the recipe's norm over all of them together."""
        gradients = self.gradients
        if self.low_rank:
            gradients = lora.pulled_back(gradients, self.masters, self.recipe.lora_scale)
        for name, master in self.masters.items():
            master.grad = gradients.get(name)
        torch.nn.utils.clip_grad_norm_(self.masters.values(), self.recipe.max_grad_norm)

    def weights(self) -> Mapping[str, Tensor]:
        """The present weights of every tuned tensor, float32 or wider."""
        if not self.low_rank:
            return self.masters
        differences = lora.differences(self.masters, self.recipe.lora_scale)
        return {name: self.originals[name].to(d.dtype) + d for name, d in differences.items()}

    def tensors(self, last: bool = False) -> dict[str, Tensor]:
        """What a memory keeps: w - w_0 of every tuned tensor, or the low-rank factors of it.

        last: no step follows, so the masters themselves become that, and no other memory is taken.
        """
        if self.low_rank:
            return {name: m if last else m.clone() for name, m in self.masters.items()}
        return {name: (m if last else m.clone()).sub_(self.originals[name]) for name, m in self.masters.items()}


@dataclass(eq=False)
class _Group:
    """Pieces that go through the head together. chunks: positions of each of its passes.

    pieces: (document, its activations). targets, base_hidden: [n], [n, D] over all pieces. base_logits: of the first
    chunks, as far as there is room for them.
    """

    pieces: list[tuple[int, Activations]]
    targets: Tensor
    base_hidden: Tensor
    chunks: list[int]
    base_logits: list[Tensor] = field(default_factory=list)


class Optimization:
    """The state of tuning on `readings`: their weights, AdamW, the losses so far.

    Errors: `ResourceError` where it cannot fit.
    """

    def __init__(self, trunk: Trunk, readings: Sequence[Reading], recipe: Recipe):
        self.trunk, self.recipe = trunk, recipe
        self.counts = [len(reading.targets) for reading in readings]
        self.plan = plan(trunk, recipe, self.counts)
        self.tunings = [Tuning(trunk, recipe) for _ in readings]
        masters = [master for tuning in self.tunings for master in tuning.masters.values()]
        self.optimizer = torch.optim.AdamW(
            masters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        with torch.no_grad():
            self.groups = _groups(trunk, readings, recipe, self.plan)
        self.kl_weight = recipe.kl_weight
        self.losses: list[Tensor] = []  # per step [documents, 3]

    def gradients(self, index: int) -> None:
        """Losses and gradients at the present weights, over all scored positions."""
        for tuning in self.tunings:
            tuning.refresh()
        if self.recipe.adaptive_kl is not None:
            self._adapt(index)
        sums = torch.zeros(len(self.tunings), 2, device=self.trunk.device, dtype=torch.float64)
        begun: set[int] = set()
        for group in self.groups:
            hidden = [self.trunk.tail(piece, self.tunings[document].ffn) for document, piece in group.pieces]
            sizes = [len(states) for states in hidden]
            pulls, losses = self._through_head(group, torch.cat([states.detach() for states in hidden]))
            pieces = zip(group.pieces, hidden, pulls.split(sizes), losses.split(sizes), strict=True)
            for (document, _), states, pull, loss in pieces:
                sums[document] += loss.sum(0)
                tuning = self.tunings[document]
                leaves = list(tuning.leaves.values())
                found = torch.autograd.grad(states, leaves, pull / self.counts[document], allow_unused=True)
                tuning.add_gradients(found, first=document not in begun)
                begun.add(document)
        ce, kl = (sums / sums.new_tensor(self.counts)[:, None]).T
        self.losses.append(torch.stack([ce + self.kl_weight * kl, ce, kl], -1))

    def update(self) -> None:
        """Clip and step."""
        for tuning in self.tunings:
            tuning.clip()
        self.optimizer.step()

    def trace(self, document: int = 0) -> list[Step]:
        """One `Step` per call of `gradients`. Synchronises with the device."""
        rows = torch.stack(self.losses)[:, document].tolist() if self.losses else []
        return [Step(i, *row) for i, row in enumerate(rows)]

    def _through_head(self, group: _Group, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient of the summed losses with respect to hidden [n, D], [n, 2] cross entropy and KL)."""
        pulls, losses = [], []
        for i, rows in enumerate(hidden.split(group.chunks)):
            rows = rows.requires_grad_()
            logits = self.trunk.head(rows)
            # The gradient takes the place of the logits; autograd refuses where a head still needs them.
            gradient = logits.detach()
            ce, kl, _ = losses_and_gradient(gradient, *self._base(group, i), self.kl_weight, out=gradient)
            pulls += torch.autograd.grad(logits, rows, gradient)
            losses.append(torch.stack([ce, kl], -1).double())
        return torch.cat(pulls), torch.cat(losses)

    @torch.no_grad()
    def _base(self, group: _Group, i: int) -> tuple[Tensor, Tensor]:
        """(the untouched model's logits, the targets) of a group's i-th chunk."""
        targets = group.targets.split(group.chunks)[i]
        if i < len(group.base_logits):
            return group.base_logits[i], targets
        return self.trunk.head(group.base_hidden.split(group.chunks)[i]), targets

    @torch.no_grad()
    def _adapt(self, index: int) -> None:
        """Ziegler et al. 2019, eq. 4, as in the authors' code: the weight follows this step's KL, before its loss."""
        assert self.recipe.adaptive_kl is not None
        total = 0.0
        for group in self.groups:
            hidden = torch.cat([self.trunk.tail(piece, self.tunings[d].ffn) for d, piece in group.pieces])
            for i, rows in enumerate(hidden.split(group.chunks)):
                total += losses_and_gradient(self.trunk.head(rows), *self._base(group, i), 0.0)[1].sum().item()
        error = total / sum(self.counts) / max(self.recipe.adaptive_kl, 1e-12) - 1
        self.kl_weight *= 1 + min(max(error, -0.2), 0.2) * (index + 1) / max(self.recipe.steps, 1)


def _groups(trunk: Trunk, readings: Sequence[Reading], recipe: Recipe, plan: Plan) -> list[_Group]:
    """Cut every document into pieces of about one size, and gather those of short documents."""
    gathered: list[list[tuple[int, Activations, Tensor]]] = []
    room = 0
    for document, reading in enumerate(readings):
        size = _even(len(reading.targets), plan.piece_positions)
        pieces = list(reading.activations.split(size))
        size = size if len(pieces) > 1 else len(reading.targets)  # where layers above attend, one piece it is
        for piece, targets in zip(pieces, reading.targets.split(size), strict=True):
            if len(targets) > room:
                gathered.append([])
                room = plan.piece_positions
            gathered[-1].append((document, piece, targets))
            room -= len(targets)
    # The untouched model of the objective is the one that is tuned: of a quantized FFN its float copy.
    own = trunk.ffn(trunk.parameters(recipe.layers))
    groups, room = [], plan.kept_logits_bytes
    for members in gathered:
        targets = torch.cat([targets for _, _, targets in members])
        base_hidden = torch.cat([trunk.tail(piece, own) for _, piece, _ in members])
        chunks = [len(part) for part in targets.split(_even(len(targets), plan.chunk_positions))]
        group = _Group([(document, piece) for document, piece, _ in members], targets, base_hidden, chunks)
        for rows in base_hidden.split(chunks):
            room -= len(rows) * trunk.vocabulary * trunk.dtype.itemsize
            if room < 0:
                break
            group.base_logits.append(trunk.head(rows))
        groups.append(group)
    return groups


def _even(total: int, most: int) -> int:
    """The size of the parts when `total` is cut into equal ones of at most `most`."""
    return ceil(total / ceil(total / most))


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
