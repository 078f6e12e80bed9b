"""Ends of a memorization other than the fixed number of steps, each exact: the weights are those of a shorter run."""

import logging
import math

import pytest
import torch

from families import build
from fastmem import FastMem, Tokens
from fastmem.learn import memorize
from fastmem.learn.surprisal import token_surprisals
from test_memorize import QUERY, TOKENS, recipe


def test_a_loss_that_is_no_number_stops_at_the_last_good_step(caplog):
    """A rate of 10 in float16 overflows after a few updates."""
    llm = FastMem(build("llama", dtype=torch.float16), None)
    with caplog.at_level(logging.WARNING, logger="fastmem"):
        memory = llm.memorize(TOKENS, recipe(learning_rate=10.0, steps=10))
    kept = len(memory.trace)
    assert kept < 10
    assert all(math.isfinite(step.loss) for step in memory.trace)
    assert all(difference.isfinite().all() for difference in memory.tensors.values())
    assert f"kept step {kept}" in memory.stopped
    assert f"kept step {kept}" in caplog.text
    good = llm.memorize(TOKENS, recipe(learning_rate=10.0, steps=kept))
    assert all(torch.equal(good.tensors[name], memory.tensors[name]) for name in good.tensors)
    assert llm.logits(QUERY, memory).isfinite().all()


def test_a_target_loss_stops(llama):
    llm = FastMem(llama, None)
    full = llm.memorize(TOKENS, recipe(steps=10))
    target = (full.trace[3].loss + full.trace[4].loss) / 2
    memory = llm.memorize(TOKENS, recipe(steps=10, target_loss=target))
    assert_stopped(memory, llm, 4, f"reached the target {target:g} after 4 steps")


def test_a_target_loss_costs_no_second_run(llama, monkeypatch):
    """The weights at the stop are those that are kept: nothing is computed again. Those of an earlier step are."""
    llm, runs = FastMem(llama, None), []
    run = memorize.Optimization
    monkeypatch.setattr(memorize, "Optimization", lambda *arguments: runs.append(1) or run(*arguments))
    full = llm.memorize(TOKENS, recipe(steps=10))
    for rule, expected in (({"target_loss": full.trace[4].loss}, 1), ({"max_kl": full.trace[4].kl}, 2)):
        runs.clear()
        assert llm.memorize(TOKENS, recipe(steps=10, **rule)).stopped
        assert len(runs) == expected


def test_a_kl_ceiling_stops_below_it(llama):
    llm = FastMem(llama, None)
    full = llm.memorize(TOKENS, recipe(steps=10))
    ceiling = (full.trace[5].kl + full.trace[6].kl) / 2
    memory = llm.memorize(TOKENS, recipe(steps=10, max_kl=ceiling))
    assert_stopped(memory, llm, 5, f"exceeded {ceiling:g} after 6 steps; kept step 5")


def test_patience_keeps_the_best_step(llama):
    """Decay this strong and a rate this high: the loss falls for sixteen steps, then rises."""
    llm = FastMem(llama, None)
    high = {"learning_rate": 0.3, "weight_decay": 1.0, "steps": 30}
    full = [step.loss for step in llm.memorize(TOKENS, recipe(**high)).trace]
    best = full.index(min(full))
    assert 10 < best < 20
    memory = llm.memorize(TOKENS, recipe(**high, patience=3))
    assert_stopped(memory, llm, best, f"not improved for 3 steps; kept step {best}", **high)


# The last update, whose weights no step of the trace has measured.


@pytest.mark.parametrize(
    "changes", [{}, {"layers": (0, -1)}, {"shortlist": 100}, {"parametrization": "lora"}], ids=str
)
def test_a_kl_ceiling_holds_after_the_last_update(llama, changes):
    llm = FastMem(llama, None)
    changes = {"learning_rate": 1e-4, **changes}
    kl = [step.kl for step in llm.memorize(TOKENS, recipe(**changes, steps=5)).trace]
    ceiling = (kl[3] + kl[4]) / 2
    memory = llm.memorize(TOKENS, recipe(**changes, steps=4, max_kl=ceiling))
    assert_stopped(memory, llm, 3, f"exceeded {ceiling:g} after 4 steps; kept step 3", **changes)


def test_patience_counts_the_last_update(llama):
    llm = FastMem(llama, None)
    high = {"learning_rate": 0.3, "weight_decay": 1.0}
    full = [step.loss for step in llm.memorize(TOKENS, recipe(**high, steps=30)).trace]
    best = full.index(min(full))
    memory = llm.memorize(TOKENS, recipe(**high, steps=best + 1, patience=1))
    assert_stopped(memory, llm, best, f"not improved for 1 steps; kept step {best}", **high)


def test_a_target_that_the_last_update_reaches_is_no_early_end(llama):
    llm = FastMem(llama, None)
    full = llm.memorize(TOKENS, recipe(steps=5))
    memory = llm.memorize(TOKENS, recipe(steps=4, target_loss=full.trace[4].loss))
    assert (memory.stopped, len(memory.trace)) == (None, 4)


def test_every_number_of_updates_is_checked(llama):
    llm = FastMem(llama, None)
    kl = [step.kl for step in llm.memorize(TOKENS, recipe(steps=5)).trace]
    run = llm.memorizing(TOKENS, recipe(steps=4, max_kl=(kl[3] + kl[4]) / 2), at=(2, 4))
    two, four = memorize.drain(run)
    assert (two.stopped, len(two.trace)) == (None, 2)
    assert_stopped(four, llm, 3, "after 4 steps; kept step 3")


@pytest.mark.parametrize("changes", [{}, {"layers": (0, -1)}, {"max_kl": 1e9}, {"parametrization": "lora"}], ids=str)
def test_a_last_update_that_leaves_no_number_is_not_kept(changes):
    """One update at a rate of 10 in float16: the loss before it is finite, no logit after it is."""
    llm = FastMem(build("llama", dtype=torch.float16), None)
    one = recipe(learning_rate=10.0, steps=1, **changes)
    memory = llm.memorize(TOKENS, one)
    assert memory.stopped == "the loss was no longer finite after 1 steps; kept step 0"
    assert memory.trace == ()
    assert llm.logits(QUERY, memory).isfinite().all()


def test_weights_beyond_the_models_type_are_not_kept(monkeypatch):
    """Finite in float32, not in float16, and at no position that is looked at."""
    llm = FastMem(build("llama", dtype=torch.float16), None)
    monkeypatch.setattr(memorize, "token_surprisals", lambda *_: torch.zeros(1))
    update = memorize.Optimization.update

    def far(run):
        update(run)
        if len(run.trace()) == 3:
            next(iter(run.masters.values()))[0, 0] = 1e5

    monkeypatch.setattr(memorize.Optimization, "update", far)
    memory = llm.memorize(TOKENS, recipe(steps=3))
    assert memory.stopped == "the weights were no longer finite after 3 steps; kept step 2"


@pytest.mark.parametrize("layers", [(-1,), (0, -1)], ids=str)
def test_without_rules_the_last_update_is_looked_at_in_some_positions(llama, monkeypatch, layers):
    """No more than 32, from the first to the last; fewer if there are fewer."""
    llm, seen = FastMem(llama, None), []
    surprisals = memorize.token_surprisals

    def watched(split_model, reading, ffn):
        seen.append((reading.targets, surprisals(split_model, reading, ffn)))
        return seen[-1][1]

    monkeypatch.setattr(memorize, "token_surprisals", watched)
    for count, expected in ((24, 20), (100, 32)):
        tokens = Tokens(torch.arange(count) * 11 % 288, torch.arange(count) >= 4)
        memory = llm.memorize(tokens, recipe(layers=layers))
        targets, found = seen.pop()
        every = token_surprisals(llm.split_model, llm.read(tokens, layers), llm.ffn(memory))
        index = torch.linspace(0, count - 5, expected).long()
        assert torch.equal(targets, tokens.ids[4:][index])
        torch.testing.assert_close(found, every[index])


def assert_stopped(memory, llm, kept, reason, **changes):
    """Stopped for this reason with exactly the weights of `kept` plain steps."""
    assert reason in memory.stopped
    assert len(memory.trace) == kept
    exact = llm.memorize(TOKENS, recipe(**{**changes, "steps": kept}))
    assert exact.stopped is None
    if "shortlist" not in changes:  # there the last loss of a run is exact, and the others estimates
        assert exact.trace == memory.trace
    assert all(torch.equal(exact.tensors[name], memory.tensors[name]) for name in exact.tensors)


def test_adaptive_kl_follows_its_rule(llama):
    """Ziegler et al. 2019: the weight grows with a KL above the target and shrinks below, by at most 0.2 of itself."""
    llm = FastMem(llama, None)
    steps = 10
    for target in (1e-4, 5.0):
        memory = llm.memorize(TOKENS, recipe(steps=steps, adaptive_kl=target))
        weight = 0.3
        for step in memory.trace:
            weight *= 1 + max(-0.2, min(0.2, step.kl / target - 1)) * (step.index + 1) / steps
            assert step.loss == pytest.approx(step.cross_entropy + weight * step.kl, rel=1e-5)
    assert weight < 0.15
