"""Memorize one document: tune the FFNs of a recipe's layers, one update at a time.

One trunk pass (`read`) keeps what the tuned layers need; then every step costs the FFN, the final norm and the head
over the scored positions. The method is that of arXiv 2406.16069 and its code, `src/Trainer.py`: AdamW with a constant
rate, the gradient norm clipped over all tuned tensors together, float32 master weights, passes in the model's type.

`memorizing` is the only loop over steps. It is deterministic: the same document, recipe and model give the same bytes.
That is also how the weights of an earlier step are recovered when a later one turns out worse: the run is repeated up
to that step, instead of keeping a copy of the weights at every step.
"""

import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fastmem.errors import InputError
from fastmem.learn.optimize import Optimization, Reading, finite
from fastmem.learn.surprisal import token_surprisals
from fastmem.memory.effect import NOT_FINITE
from fastmem.memory.memory import Base, Memory, Step
from fastmem.memory.recipe import Recipe
from fastmem.split.split_model import SplitModel
from fastmem.torch_modes import in_own_modes

log = logging.getLogger("fastmem")

# The largest acceptable error of a sampled softmax at the end of a run, as a share of the change of the loss. A less
# accurate run is repeated over the whole vocabulary.
SAMPLED_SOFTMAX_ERROR = 0.02
# Without a stop rule, the positions at which the weights after the last update are tried: one product with the head.
CHECKED_POSITIONS = 32

# Yields once before every update: the step if the caller watches, else None. Returns the memories.
Run = Generator[Step | None, None, list[Memory]]


@in_own_modes
def read(
    split_model: SplitModel,
    ids: Tensor,  # [S]
    scored: Tensor,  # [S] bool
    layers: Sequence[int] = (-1,),
    cache: object = None,
    encoded: Tensor | None = None,
) -> Reading:
    """Run the trunk once over the document. cache: a transformers cache, filled so that decoding can go on from it.
    encoded: of an encoder-decoder, what its encoder made of the source.

    Errors: `InputError` if no token is scored.
    """
    positions = scored[1:].nonzero()[:, 0]
    if len(positions) == 0:
        text = "no token is scored: mark at least one token after the first as a target of the loss."
        raise InputError(text, field="scored")
    activations = split_model.read(ids, positions, layers, cache, encoded)
    return Reading(activations, ids[positions + 1].to(split_model.device))


def memorizing(
    split_model: SplitModel,
    reading: Reading,
    recipe: Recipe,
    base: Base,
    at: Sequence[int] | None = None,
    watch: bool = True,
) -> Run:
    """Memorize as a generator, so callers can interleave other work: it yields before every update.

    at: numbers of updates after which a memory is wanted, all from one run; by default `recipe.steps` alone. A run
    ends early if a stop rule of the recipe applies or the loss diverges. watch: yield every `Step`, which synchronizes
    with the device, instead of None. Returns one memory per number in `at`.
    """
    at = (recipe.steps,) if at is None else at
    if recipe.adaptive_kl is not None and len(set(at)) > 1:
        raise InputError(
            "adaptive_kl depends on the number of steps: memorize separately for each.", field="adaptive_kl"
        )
    run = Optimization(split_model, reading, recipe)
    last = max(at)
    watch_losses = watch or _has_stop_rules(recipe)
    found: dict[int, dict[str, Tensor]] = {}  # number of updates -> tensors
    stop: _Stop | None = None
    # 1. Steps, until all are done or a rule says stop.
    for index in range(last):
        if index in at:
            found[index] = run.memory_tensors()
        run.compute_gradients()
        steps = run.trace() if watch_losses else []
        yield steps[-1] if watch else None
        stop = _stop_rule(steps, recipe) if steps else None
        if stop is not None:
            if stop.keep == index:
                found[index] = run.memory_tensors(last=True)
            break
        run.update()
    # 2. A sampled softmax that was too inaccurate: again, exactly.
    error = run.replace_last_losses_with_exact()
    if not error <= SAMPLED_SOFTMAX_ERROR:
        log.warning(
            "recipe shortlist %d is too small: the loss was off by %.1f %% of its change, %g %% is allowed; "
            "memorizing again over the whole vocabulary.", recipe.shortlist, 100 * error, 100 * SAMPLED_SOFTMAX_ERROR
        )  # fmt: skip
        asked = replace(reading, details={**reading.details, "replaced_shortlist": recipe.shortlist})
        return (yield from memorizing(split_model, asked, replace(recipe, shortlist=None), base, at, watch=False))
    # 3. Whether all of it is finite, and the weights after the last update, which no step has measured.
    trace = run.trace()
    stop = stop or _divergence(trace, found)
    if stop is None:
        stop = _last_update(split_model, reading, recipe, run) if last else None
        found[last] = run.memory_tensors(last=True)
    # 4. The weights of an earlier step, if a later one was worse: again, up to that step.
    kept = {n: min(n, stop.keep) if stop else n for n in at}
    if stop is not None and (missing := sorted(set(kept.values()) - found.keys())):
        plain = _without_stop_rules(recipe)
        again = yield from memorizing(split_model, reading, plain, base, missing, watch=False)
        found |= {n: dict(memory.tensors) for n, memory in zip(missing, again, strict=True)}
    return [
        Memory(
            tensors=found[kept[n]],
            recipe=replace(recipe, steps=n),
            base=base,
            trace=tuple(trace[: kept[n]]),
            stopped=stop.reason if stop and kept[n] < n else None,
            details=reading.details,
        )
        for n in at
    ]


def drain(run: Run, on_step: Callable[[Step], None] | None = None) -> list[Memory]:
    """Run to the end; the memories. on_step: called with every step before its update."""
    while True:
        try:
            step = next(run)
        except StopIteration as end:
            return end.value
        if on_step is not None and step is not None:
            on_step(step)


@dataclass(frozen=True)
class _Stop:
    """End early, with the weights after `keep` updates."""

    keep: int
    reason: str


def _without_stop_rules(recipe: Recipe) -> Recipe:
    return replace(recipe, target_loss=None, max_kl=None, patience=None)


def _has_stop_rules(recipe: Recipe) -> bool:
    return recipe != _without_stop_rules(recipe)


def _stop_rule(trace: list[Step], recipe: Recipe) -> _Stop | None:
    """The first of the recipe's rules that applies at the last step."""
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


def _divergence(trace: list[Step], found: Mapping[int, Mapping[str, Tensor]]) -> _Stop | None:
    """The first loss, or the first weights, that are not finite; the last good step before is kept."""
    for step in trace:
        if not math.isfinite(step.loss):
            return _not_finite("the loss was", step.index)
    for n, tensors in sorted(found.items()):
        if not finite(tensors.values()):
            return _not_finite("the weights were", n)
    return None


def _last_update(split_model: SplitModel, reading: Reading, recipe: Recipe, run: Optimization) -> _Stop | None:
    """Check the weights after the last update, in the model's type.

    With a stop rule the losses are computed at all positions, which costs a third of a step. Without one it is enough
    that the surprisal is finite at some positions (docs/log.md: 1.6 % of ten steps).
    """
    run.write_leaves()
    if not finite(run.leaves.values()):
        return _not_finite("the weights were", len(run.trace()))
    if _has_stop_rules(recipe):
        steps = [*run.trace(), run.losses()]
        return _stop_rule(steps, recipe) or _divergence(steps, {})
    if not finite([token_surprisals(split_model, reading.spread(CHECKED_POSITIONS), run.ffn)]):
        return _not_finite("the loss was", len(run.trace()))
    return None


def _not_finite(what: str, updates: int) -> _Stop:
    keep = max(updates - 1, 0)
    return _Stop(keep, f"{what} {NOT_FINITE} after {updates} steps; kept step {keep}")
