"""Memorize: tune the FFNs of a recipe's layers on one document. Activations in, `Memory` out.

One trunk pass (`read`) keeps what the tuned layers need; every step then costs the FFN, the final norm and the head
over the scored positions, in chunks (design: "The one idea that shapes everything"). The method is that of arXiv
2406.16069 and its code, `src/Trainer.py`: AdamW with constant rate, gradient norm clipped over all tuned tensors
together, float32 master weights, forward and backward pass in the model's type.

Nothing random happens: the same document, recipe and model give the same bytes. That is also how the weights of an
earlier step are found again when a later one turns out worse: by running up to it once more.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastmem.core import lora
from fastmem.core.memory import Base, Memory, Recipe, Step
from fastmem.core.objective import losses_and_gradient
from fastmem.core.trunk import Activations, Trunk
from fastmem.errors import InputError

# Positions a step handles at once. The logits of a chunk are the largest thing alive: 256 positions of a 128,256-token
# vocabulary are 66 MB in bfloat16 and three times 131 MB while the soft-max runs in float32.
CHUNK_POSITIONS = 256


@dataclass(frozen=True)
class Reading:
    """One document, read once: what the tuned layers need at the scored positions, and what comes next there.

    activations: at N positions. targets: [N], the token that follows each.
    """

    activations: Activations
    targets: Tensor


def read(trunk: Trunk, ids: Tensor, scored: Tensor, layers: Sequence[int] = (-1,), cache: object = None) -> Reading:
    """Run the trunk once over ids [S]. `cache`, a transformers cache, is filled for decoding to go on from.

    Errors: `InputError` where no token is scored.
    """
    positions = scored[1:].nonzero()[:, 0]
    if len(positions) == 0:
        raise InputError("no token is scored: mark at least one token after the first as a target of the loss.")
    return Reading(trunk.read(ids, positions, layers, cache), ids[positions + 1].to(trunk.device))


def memorize(
    trunk: Trunk, reading: Reading, recipe: Recipe, base: Base, on_step: Callable[[Step], None] | None = None
) -> Memory:
    """The memory after `recipe.steps` updates, or after fewer where a stop rule or a diverging loss says so.

    on_step: called before every update; costs a synchronisation with the device.
    """
    return memorize_path(trunk, reading, recipe, base, (recipe.steps,), on_step)[0]


def memorize_path(
    trunk: Trunk,
    reading: Reading,
    recipe: Recipe,
    base: Base,
    at: Sequence[int],
    on_step: Callable[[Step], None] | None = None,
) -> list[Memory]:
    """One memory for each number of steps in `at`, all from one run: 10 and 20 lie on the way to 50."""
    running = stepwise(trunk, reading, recipe, base, at, watch=on_step is not None)
    while True:
        try:
            step = next(running)
        except StopIteration as end:
            return end.value
        if on_step is not None and step is not None:
            on_step(step)


def stepwise(
    trunk: Trunk, reading: Reading, recipe: Recipe, base: Base, at: Sequence[int], watch: bool = True
) -> Generator[Step | None, None, list[Memory]]:
    """`memorize_path` one update at a time, for who has other work to do in between: yields before every update and
    returns the memories. watch: yield the `Step`s, each a synchronisation with the device, instead of None."""
    if recipe.adaptive_kl is not None and len(set(at)) > 1:
        raise InputError("adaptive_kl depends on the number of steps: memorize once for each instead of along a path.")
    run = _Run(trunk, reading, recipe)
    ruled = any(rule is not None for rule in (recipe.target_loss, recipe.max_kl, recipe.patience))
    found: dict[int, dict[str, Tensor]] = {}
    stop: _Stop | None = None
    for index in range(max(at) + 1):
        if index in at:
            found[index] = run.tensors()
        if index == max(at):
            break
        run.gradients(index)
        steps = run.trace() if watch or ruled else []
        yield steps[-1] if steps else None
        if steps:
            stop = _should_stop(steps, recipe)
        if stop is not None:
            break
        run.update()
    trace = run.trace()
    stop = stop or _diverged(trace, found)
    kept = {n: min(n, stop.keep) if stop else n for n in at}
    if stop is not None and (missing := sorted(set(kept.values()) - found.keys())):
        again = yield from stepwise(trunk, reading, _without_rules(recipe), base, missing, watch=False)
        found |= {n: dict(memory.tensors) for n, memory in zip(missing, again, strict=True)}
    return [
        Memory(
            tensors=found[kept[n]],
            recipe=replace(recipe, steps=n),
            base=base,
            trace=tuple(trace[: kept[n]]),
            stopped=stop.reason if stop and kept[n] < n else None,
        )
        for n in at
    ]


@dataclass(frozen=True)
class _Stop:
    """End early: with the weights of after `keep` updates, for `reason`."""

    keep: int
    reason: str


class _Run:
    """The state of one optimization: float32 masters, their gradients, AdamW, the losses so far.

    masters: what AdamW updates, the weights themselves or their low-rank factors.
    """

    def __init__(self, trunk: Trunk, reading: Reading, recipe: Recipe):
        self.trunk, self.reading, self.recipe = trunk, reading, recipe
        self.originals = trunk.parameters(recipe.layers)
        self.low_rank = recipe.parametrization == "lora"
        if self.low_rank:
            self.masters = lora.start(self.originals, recipe.rank, recipe.seed)
        else:
            self.masters = {name: w.to(_wide(w), copy=True) for name, w in self.originals.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.masters.values()), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        with torch.no_grad():
            self.base_hidden = torch.cat([trunk.tail(p) for p in reading.activations.split(CHUNK_POSITIONS)])
        self.kl_weight = recipe.kl_weight
        self.losses: list[Tensor] = []

    def gradients(self, index: int) -> None:
        """Losses and gradients at the present weights, over all scored positions."""
        if self.recipe.adaptive_kl is not None:
            self._adapt(index)
        count = len(self.reading.targets)
        leaves = {k: w.to(self.originals[k].dtype).detach().requires_grad_() for k, w in self.weights().items()}
        ffn = self.trunk.ffn(leaves)
        gradients: dict[str, Tensor] = {}
        sums = torch.zeros(2, device=self.trunk.device, dtype=torch.float64)
        start = 0
        for part in self.reading.activations.split(CHUNK_POSITIONS):
            hidden = self.trunk.tail(part, ffn)
            pulls = []
            for rows in hidden.detach().split(CHUNK_POSITIONS):
                pull, losses = self._head_gradient(rows, slice(start, start + len(rows)))
                pulls.append(pull)
                sums += losses
                start += len(rows)
            found = torch.autograd.grad(hidden, list(leaves.values()), torch.cat(pulls) / count, allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:  # a bias that only picks experts has none
                    wide = gradient.to(_wide(gradient))
                    gradients[name] = gradients[name].add_(wide) if name in gradients else wide
        if self.low_rank:
            gradients = lora.pulled_back(gradients, self.masters, self.recipe.lora_scale)
        for name, master in self.masters.items():
            master.grad = gradients.get(name)
        ce, kl = sums / count
        self.losses.append(torch.stack([ce + self.kl_weight * kl, ce, kl]))

    def update(self) -> None:
        """Clip and step."""
        torch.nn.utils.clip_grad_norm_(self.masters.values(), self.recipe.max_grad_norm)
        self.optimizer.step()

    def trace(self) -> list[Step]:
        """One `Step` per call of `gradients`. Synchronises with the device."""
        rows = torch.stack(self.losses).tolist() if self.losses else []
        return [Step(i, *row) for i, row in enumerate(rows)]

    def weights(self) -> dict[str, Tensor]:
        """The present weights of every tuned tensor, float32 or wider."""
        if not self.low_rank:
            return self.masters
        differences = lora.differences(self.masters, self.recipe.lora_scale)
        return {name: self.originals[name].to(d.dtype) + d for name, d in differences.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a memory keeps: w - w_0 of every tuned tensor, or the low-rank factors of it."""
        if self.low_rank:
            return {name: m.clone() for name, m in self.masters.items()}
        return {name: m - self.originals[name].to(m.dtype) for name, m in self.masters.items()}

    def _head_gradient(self, rows: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        """(gradient of the summed losses with respect to hidden states [n, D], [cross entropy, KL] summed)."""
        rows = rows.requires_grad_()
        logits = self.trunk.head(rows)
        with torch.no_grad():
            base_logits = self.trunk.head(self.base_hidden[where])
            ce, kl, gradient = losses_and_gradient(
                logits.detach(), base_logits, self.reading.targets[where], self.kl_weight
            )
        (pull,) = torch.autograd.grad(logits, rows, gradient)
        return pull, torch.stack([ce.sum(), kl.sum()]).double()

    def _adapt(self, index: int) -> None:
        """Ziegler et al. 2019, eq. 4, as in the authors' code: the weight follows this step's KL, before its loss."""
        total = 0.0
        with torch.no_grad():
            ffn, start = self.trunk.ffn(self.weights()), 0
            for part in self.reading.activations.split(CHUNK_POSITIONS):
                for rows in self.trunk.tail(part, ffn).split(CHUNK_POSITIONS):
                    where = slice(start, start + len(rows))
                    base_logits, targets = self.trunk.head(self.base_hidden[where]), self.reading.targets[where]
                    total += losses_and_gradient(self.trunk.head(rows), base_logits, targets, 0.0)[1].sum().item()
                    start += len(rows)
        assert self.recipe.adaptive_kl is not None
        error = total / len(self.reading.targets) / max(self.recipe.adaptive_kl, 1e-12) - 1
        self.kl_weight *= 1 + min(max(error, -0.2), 0.2) * (index + 1) / max(self.recipe.steps, 1)


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _without_rules(recipe: Recipe) -> Recipe:
    return replace(recipe, target_loss=None, max_kl=None, patience=None)


def _should_stop(trace: list[Step], recipe: Recipe) -> _Stop | None:
    now = trace[-1]
    if recipe.target_loss is not None and now.loss <= recipe.target_loss:
        reason = f"loss {now.loss:.4g} reached the target {recipe.target_loss:g} after {now.index} steps"
        return _Stop(now.index, reason)
    if recipe.max_kl is not None and now.kl > recipe.max_kl:
        keep = max(now.index - 1, 0)
        return _Stop(keep, f"KL {now.kl:.4g} exceeded {recipe.max_kl:g} after {now.index} steps; kept step {keep}")
    if recipe.patience is not None:
        best = min(trace, key=lambda step: step.loss)
        if now.index - best.index >= recipe.patience:
            return _Stop(best.index, f"loss had not improved for {recipe.patience} steps; kept step {best.index}")
    return None


def _diverged(trace: list[Step], found: dict[int, dict[str, Tensor]]) -> _Stop | None:
    """The first loss, or the weights at the end, that are not finite, and the last good step before."""
    for step in trace:
        if not math.isfinite(step.loss):
            keep = max(step.index - 1, 0)
            return _Stop(keep, f"the loss was no longer finite after {step.index} steps; kept step {keep}")
    for n, tensors in sorted(found.items()):
        if not all(bool(t.isfinite().all()) for t in tensors.values()):
            return _Stop(n - 1, f"the weights were no longer finite after {n} steps; kept step {n - 1}")
    return None
