"""Ends of a memorization other than the fixed number of steps, each exact: the weights are those of a shorter run."""

import logging
import math

import pytest
import torch

from families import build
from fastmem import FastMem
from fastmem.learn import memorize
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


def assert_stopped(memory, llm, kept, reason, **changes):
    """Stopped for this reason with exactly the weights of `kept` plain steps."""
    assert reason in memory.stopped
    assert len(memory.trace) == kept
    exact = llm.memorize(TOKENS, recipe(**{**changes, "steps": kept}))
    assert exact.stopped is None
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
