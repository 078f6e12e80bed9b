"""The optimization under `memorize`: one document, or several in lockstep, each with weights of its own.

A step is the same for one and for many. Pieces of documents go through the FFN, each through its document's weights;
their hidden states go through the head together, in chunks, so that its matrix is read once for all; every piece's
share of the gradient goes back through its own FFN; every document's gradient is clipped by its own norm; and one
AdamW, which works number by number, updates them all.

With a shortlist the chunks are scored over some tokens instead of all (`shortlist.py`), and `check` says how far off
that was in the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from fastmem.core import lora
from fastmem.core.budget import Plan, plan
from fastmem.core.chunk import Chunk
from fastmem.core.memory import Recipe, Step
from fastmem.core.replay import Activations
from fastmem.core.shortlist import shortened
from fastmem.core.trunk import Trunk

# Two correct runs in a short type differ by so much (tests/test_memorize.py), so less is no error of a shortlist.
ROUNDING_NATS = 5e-3


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


@dataclass(frozen=True, eq=False)
class _Group:
    """Pieces that go through the head together, cut anew into chunks.

    pieces: (document, its activations). chunks: what a step scores. whole: the same positions over the vocabulary.
    """

    pieces: list[tuple[int, Activations]]
    chunks: list[Chunk]
    whole: list[Chunk]


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
        self.groups = _groups(trunk, readings, recipe, self.plan)
        self.kl_weight = recipe.kl_weight
        self.losses: list[Tensor] = []  # per step [documents, 3]

    def gradients(self, index: int) -> None:
        """Losses and gradients at the present weights, over all scored positions."""
        for tuning in self.tunings:
            tuning.refresh()
        if self.recipe.adaptive_kl is not None:
            self._adapt(index)
        sums = self._zeros()
        begun: set[int] = set()
        for group in self.groups:
            hidden = [self.trunk.tail(piece, self.tunings[document].ffn) for document, piece in group.pieces]
            sizes = [len(states) for states in hidden]
            parts = torch.cat([states.detach() for states in hidden]).split([len(c.targets) for c in group.chunks])
            pulled = [chunk.pull(rows, self.kl_weight) for chunk, rows in zip(group.chunks, parts, strict=True)]
            pulls, losses = (torch.cat(each).split(sizes) for each in zip(*pulled, strict=True))
            for (document, _), states, pull, loss in zip(group.pieces, hidden, pulls, losses, strict=True):
                sums[document] += loss.sum(0)
                tuning = self.tunings[document]
                leaves = list(tuning.leaves.values())
                found = torch.autograd.grad(states, leaves, pull / self.counts[document], allow_unused=True)
                tuning.add_gradients(found, first=document not in begun)
                begun.add(document)
        self.losses.append(self._means(sums))

    def update(self) -> None:
        """Clip and step."""
        for tuning in self.tunings:
            tuning.clip()
        self.optimizer.step()

    def trace(self, document: int = 0) -> list[Step]:
        """One `Step` per call of `gradients`. Synchronises with the device."""
        rows = torch.stack(self.losses)[:, document].tolist() if self.losses else []
        return [Step(i, *row) for i, row in enumerate(rows)]

    def check(self) -> list[float]:
        """Put the losses over the whole vocabulary in the place of the last ones, which a shortlist only estimated.

        Returns by how much each document's estimate was off, as a share of how far its loss had fallen; what rounding
        can do is no error. All 0 without a shortlist. Synchronises with the device.
        """
        if all(group.chunks is group.whole for group in self.groups) or not self.losses:
            return [0.0] * len(self.tunings)
        first, estimated = self.losses[0][:, 0], self.losses[-1][:, 0]
        self.losses[-1] = exact = self._evaluated([group.whole for group in self.groups])
        off = ((estimated - exact[:, 0]).abs() - ROUNDING_NATS) / (first - exact[:, 0]).abs()
        return off.clamp(min=0).tolist()

    @torch.no_grad()
    def _evaluated(self, chunks: Sequence[Sequence[Chunk]]) -> Tensor:
        """[documents, 3]: the losses of every group's chunks at the weights of the last gradients."""
        sums = self._zeros()
        for group, own in zip(self.groups, chunks, strict=True):
            hidden = [self.trunk.tail(piece, self.tunings[document].ffn) for document, piece in group.pieces]
            parts = torch.cat(hidden).split([len(chunk.targets) for chunk in own])
            losses = torch.cat([chunk.losses(rows) for chunk, rows in zip(own, parts, strict=True)])
            for (document, _), loss in zip(group.pieces, losses.split([len(h) for h in hidden]), strict=True):
                sums[document] += loss.sum(0)
        return self._means(sums)

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.tunings), 2, device=self.trunk.device, dtype=torch.float64)

    def _means(self, sums: Tensor) -> Tensor:
        """[documents, 3]: loss, cross entropy and KL per position."""
        ce, kl = (sums / sums.new_tensor(self.counts)[:, None]).T
        return torch.stack([ce + self.kl_weight * kl, ce, kl], -1)

    def _adapt(self, index: int) -> None:
        """Ziegler et al. 2019, eq. 4, as in the authors' code: the weight follows this step's KL, before its loss."""
        assert self.recipe.adaptive_kl is not None
        kl = self._evaluated([group.chunks for group in self.groups])[0, 2].item()
        error = kl / max(self.recipe.adaptive_kl, 1e-12) - 1
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
    short = recipe.shortlist if recipe.shortlist is not None and recipe.shortlist < trunk.vocabulary else None
    groups, room = [], plan.kept_logits_bytes
    for members in gathered:
        targets = torch.cat([targets for _, _, targets in members])
        with torch.no_grad():
            base_hidden = torch.cat([trunk.tail(piece, own) for _, piece, _ in members])
        size = _even(len(targets), plan.chunk_positions)
        whole, chunks = [], []
        for rows, wanted in zip(base_hidden.split(size), targets.split(size), strict=True):
            room -= len(rows) * trunk.vocabulary * trunk.dtype.itemsize
            logits = None
            if short is not None:
                listed, logits = shortened(trunk, rows, wanted, short)
                chunks.append(listed)
            elif room >= 0:
                with torch.no_grad():
                    logits = trunk.head(rows)
            whole.append(Chunk(trunk.head, wanted, rows, logits if room >= 0 else None))
        groups.append(_Group([(document, piece) for document, piece, _ in members], chunks or whole, whole))
    return groups


def _even(total: int, most: int) -> int:
    """The size of the parts when `total` is cut into equal ones of at most `most`."""
    return ceil(total / ceil(total / most))


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
