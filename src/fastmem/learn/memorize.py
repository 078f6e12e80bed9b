"""Memorize: tune the FFNs of a recipe's layers on one document. Activations in, `Memory` out.

One trunk pass (`read`) keeps what the tuned layers need; every step then costs the FFN, the final norm and the head
over the scored positions, in chunks (design: "The one idea that shapes everything"). The method is that of arXiv
2406.16069 and its code, `src/Trainer.py`: AdamW with constant rate, gradient norm clipped over all tuned tensors
together, float32 master weights, forward and backward pass in the model's type.

Nothing random happens: the same document, recipe and model give the same bytes. That is also how the weights of an
earlier step are found again when a later one turns out worse: by running up to it once more.
"""

import functools
import logging
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastmem.core.budget import plan, side_by_side
from fastmem.core.memory import Base, Memory, Recipe, Step
from fastmem.core.optimize import Optimization, Reading
from fastmem.core.replay import Recording
from fastmem.core.trunk import Trunk
from fastmem.errors import InputError

log = logging.getLogger("fastmem")

NOTHING_SCORED = "no token is scored: mark at least one token after the first as a target of the loss."
# Tokens of one trunk pass over several documents: enough to fill a GPU, 0.5 GB of FFN activations at 8 B parameters.
BATCH_TOKENS = 8192
# What a shortlist may be off by in the end, as a share of the loss's change; beyond, the run is repeated without it.
SHORTLIST_ERROR = 0.02


def read(trunk: Trunk, ids: Tensor, scored: Tensor, layers: Sequence[int] = (-1,), cache: object = None) -> Reading:
    """Run the trunk once over ids [S]. `cache`, a transformers cache, is filled for decoding to go on from.

    Errors: `InputError` where no token is scored.
    """
    positions = scored[1:].nonzero()[:, 0]
    if len(positions) == 0:
        raise InputError(NOTHING_SCORED)
    return Reading(trunk.read(ids, positions, layers, cache), ids[positions + 1].to(trunk.device))


class Document(Protocol):
    """ids [S] and scored [S], as `prompts.Tokens` has them."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def scored(self) -> Tensor: ...


def read_many(trunk: Trunk, documents: Sequence[Document]) -> list[Reading]:
    """`read` of several documents for the last layer, those of similar length in one pass.

    Shorter ones are padded behind, where a causal model never looks: no mask, and the numbers of a pass alone.
    """
    readings: dict[int, Reading] = {}
    for bucket in buckets([len(document.ids) for document in documents]):
        ids = [documents[i].ids for i in bucket]
        batch = torch.zeros(len(bucket), max(map(len, ids)), dtype=torch.int64)
        for row, tokens in enumerate(ids):
            batch[row, : len(tokens)] = tokens
        scored = [documents[i].scored[1:].nonzero()[:, 0].to(trunk.device) for i in bucket]
        counts = [len(positions) for positions in scored]
        if not all(counts):
            raise InputError(NOTHING_SCORED)
        rows = torch.arange(len(bucket), device=trunk.device).repeat_interleave(
            torch.tensor(counts, device=trunk.device)
        )
        recording = Recording(frozenset({trunk.depth - 1}), functools.partial(_at, rows, torch.cat(scored)))
        with torch.no_grad():
            trunk.forward(batch, record=recording)
        whole = trunk.activations(recording)
        mixed = {name: states.split(counts) for name, states in whole.mixed.items()}
        for row, (i, hidden) in enumerate(zip(bucket, whole.hidden.split(counts), strict=True)):
            own = replace(whole, hidden=hidden, mixed={name: parts[row] for name, parts in mixed.items()})
            readings[i] = Reading(own, ids[row].to(trunk.device)[scored[row] + 1])
    return [readings[i] for i in range(len(documents))]


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Which documents are read together: padding at most a quarter, `BATCH_TOKENS` tokens at most if several."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        last = found[-1] if found else []
        if last and lengths[i] <= 1.25 * lengths[last[0]] and (len(last) + 1) * lengths[i] <= BATCH_TOKENS:
            last.append(i)
        else:
            found.append([i])
    return found


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
    run = Optimization(trunk, [reading], recipe)
    ruled = any(rule is not None for rule in (recipe.target_loss, recipe.max_kl, recipe.patience))
    found: dict[int, dict[str, Tensor]] = {}
    stop: _Stop | None = None
    for index in range(max(at) + 1):
        if index in at:
            found[index] = run.tunings[0].tensors(last=index == max(at))
        if index == max(at):
            break
        run.gradients(index)
        steps = run.trace() if watch or ruled else []
        yield steps[-1] if steps else None
        if steps:
            stop = _should_stop(steps, recipe)
        if stop is not None:
            if stop.keep == index:
                found[index] = run.tunings[0].tensors(last=True)
            break
        run.update()
    (off,) = run.check()
    if not off <= SHORTLIST_ERROR:
        log.warning(
            "recipe shortlist %d was too short: its loss was off by %.1f %% of the change, %g allowed; memorizing "
            "again over the whole vocabulary.", recipe.shortlist, 100 * off, 100 * SHORTLIST_ERROR
        )  # fmt: skip
        return (yield from stepwise(trunk, reading, replace(recipe, shortlist=None), base, at, watch=False))
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


def memorize_all(trunk: Trunk, documents: Sequence[Document], recipe: Recipe, base: Base) -> list[Memory]:
    """Documents to memories, as many in lockstep as the free memory allows."""
    memories: dict[int, Memory] = {}
    counts = [int(document.scored[1:].sum()) for document in documents]
    for group in side_by_side(trunk, recipe, counts):
        plan(trunk, recipe, [counts[i] for i in group])
        if trunk.indices(recipe.layers) == (trunk.depth - 1,):
            readings = read_many(trunk, [documents[i] for i in group])
        else:
            readings = [read(trunk, documents[i].ids, documents[i].scored, recipe.layers) for i in group]
        memories |= zip(group, memorize_many(trunk, readings, recipe, base), strict=True)
    return [memories[i] for i in range(len(documents))]


def memorize_many(trunk: Trunk, readings: Sequence[Reading], recipe: Recipe, base: Base) -> list[Memory]:
    """`memorize` of several documents in lockstep: the same memories, the head's matrix read once for all.

    What can end one document before the others (a stop rule, an adaptive weight, a diverging loss) is done one by one,
    and so is what a shortlist scores: each document has its own.
    """
    alone = recipe.adaptive_kl is not None or recipe.shortlist is not None or recipe != _without_rules(recipe)
    if alone or len(readings) == 1:
        return [memorize(trunk, reading, recipe, base) for reading in readings]
    run = Optimization(trunk, readings, recipe)
    for index in range(recipe.steps):
        run.gradients(index)
        run.update()
    memories = []
    for document, tuning in enumerate(run.tunings):
        trace, tensors = run.trace(document), tuning.tensors(last=True)
        stopped = _diverged(trace, {recipe.steps: tensors})
        again = memorize(trunk, readings[document], recipe, base) if stopped else None
        memories.append(again or Memory(tensors, recipe, base, tuple(trace)))
    return memories


@dataclass(frozen=True)
class _Stop:
    """End early: with the weights of after `keep` updates, for `reason`."""

    keep: int
    reason: str


def _at(rows: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
    return hidden[rows, positions]


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
        if not all(bool(t.sum().isfinite()) for t in tensors.values()):  # one read, where isfinite() writes
            return _Stop(n - 1, f"the weights were no longer finite after {n} steps; kept step {n - 1}")
    return None
