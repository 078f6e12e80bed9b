"""studies/rate_without_labels.py: its ways to memorize against plain computations, its rules on made-up figures."""

import json
from dataclasses import replace

import pytest
import torch
from studies import memory_variants, rate_without_labels, study_rows

from fastmem import FastMem, Recipe
from fastmem.calibrate import LIMITS
from fastmem.learn.memorize import drain
from fastmem.tiny import MODEL_DIR

DOCUMENT = "Clara plays the horn in Oakmere. The river of Oakmere is the Alder."


@pytest.fixture(scope="module")
def llm():
    return FastMem.from_pretrained(str(MODEL_DIR), dtype=torch.float32, recipe=Recipe(learning_rate=5e-4))


@pytest.fixture(scope="module")
def reading(llm):
    return llm.read(llm.memory_tokens(DOCUMENT))


def test_ridge_step_is_the_damped_least_squares_step_of_the_plain_model(llm, reading):
    from transformers import AutoModelForCausalLM

    tokens = llm.memory_tokens(DOCUMENT)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    matrix, kept = model.model.layers[-1].mlp.down_proj, []

    def record(module, arguments, output):
        output.retain_grad()
        kept.append((arguments[0], output))

    matrix.register_forward_hook(record)
    positions = tokens.scored[1:].nonzero()[:, 0]
    logits = model(tokens.ids[None]).logits[0, positions]
    torch.nn.functional.cross_entropy(logits, tokens.ids[positions + 1]).backward()
    inputs, gradients = kept[0][0][0, positions].detach().double(), kept[0][1].grad[0, positions].double()
    products = inputs @ inputs.T
    damping = memory_variants.DAMPING * products.diagonal().mean()
    inverse = torch.linalg.inv(products + damping * torch.eye(len(positions), dtype=torch.float64))
    expected = -len(positions) * gradients.T @ inverse @ inputs
    (found,) = memory_variants.ridge_step(llm, reading).items()
    assert found[0] == "model.layers.5.mlp.down_proj.weight"
    assert (found[1] - expected).norm() < 1e-4 * expected.norm()


def test_adamw_that_starts_at_the_untouched_weights_is_the_products_own(llm, reading):
    recipe = replace(llm.recipe, steps=2)
    ours = memory_variants.started(llm, reading, recipe, {})
    (memory,) = drain(llm.memorizing(reading, recipe, watch=False))
    assert all(torch.equal(ours[name], tensor) for name, tensor in memory.tensors.items())
    name = "model.layers.5.mlp.down_proj.weight"
    moved = memory_variants.started(llm, reading, recipe, {name: torch.full_like(memory.tensors[name], 0.1)})
    assert (moved[name] - 0.1).abs().max() < 0.01


def test_every_wanted_variant_comes_once_and_changes_the_document(llm, reading):
    wanted = {"adamw 1": (1e-3,), "adamw 3": (5e-4, 1e-3), "ridge": (0.5,), "ridge+adamw": (1e-3,)}
    made = list(memory_variants.memories(llm, reading, wanted, 0.2))
    assert sorted((v.name, v.rate) for v, _ in made) == sorted((n, r) for n, rates in wanted.items() for r in rates)
    untouched = memory_variants.effect(llm, reading, None)
    assert (untouched.kl, untouched.change) == (0.0, 0.0)
    for variant, memory in made:
        now = memory_variants.effect(llm, reading, memory)
        assert now.cross_entropy < untouched.cross_entropy, variant
        assert now.kl == pytest.approx(0.5, rel=0.1) if variant.name == "ridge" else now.kl > 0, variant


def test_the_rule_of_the_study_is_that_of_the_product():
    rates = (0.001, 0.002, 0.004, 0.008)
    signals = [{"variant": "adamw 3", "rate": r, "drift_reading": 100 * r**2, "loss_fall": 100 * r} for r in rates]
    signals += [{"variant": "adamw 10", "rate": 1.0, "drift_reading": 0.0, "loss_fall": 0.0}]
    drift = (LIMITS.drift / 100) ** 0.5  # 0.0045: the fall is 0.4 at 0.004, so it is not learnt there
    learnt = 0.004 * 2**0.5  # 0.6, half way between 0.4 and 0.8 in the logarithm
    assert drift < learnt < (LIMITS.drift_until_learnt / 100) ** 0.5
    assert rate_without_labels.rule_rate(signals) == pytest.approx(learnt, rel=0.01)
    slow = [one | {"loss_fall": one["loss_fall"] / 100} for one in signals]
    assert rate_without_labels.rule_rate(slow) == 0.008  # never learnt, and the drift stays within its wider limit
    fast = [one | {"loss_fall": 0.9} for one in signals]
    assert rate_without_labels.rule_rate(fast) == pytest.approx(drift, rel=0.02)
    wild = [one | {"drift_reading": 1.0} for one in signals]
    assert rate_without_labels.rule_rate(wild) == 0.001


def test_searched_rate_is_the_best_harmless_one(monkeypatch):
    monkeypatch.setattr(rate_without_labels, "WANTED", {"way": (1.0, 2.0, 3.0, 4.0)})
    points = {"contradicts": (0, 1, 1, 1), "agrees": (1, 1, 1, 0)}
    rows = [
        {"kind": kind, "scores": {"base": int(kind == "agrees")} | {f"way {r:g}": s for r, s in enumerate(scores, 1)}}
        for kind, scores in points.items()
    ]
    assert rate_without_labels.searched_rate(rows, "way") == 3.0  # 4 harms; 2 and 3 are equal


def test_an_interrupted_study_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rate_without_labels, "WANTED", {"adamw 1": (1e-3,), "adamw 3": (1e-3,), "adamw 10": (5e-4,)})
    monkeypatch.setattr(rate_without_labels, "DEV_ROWS", dict.fromkeys(("contradicts", "agrees", "irrelevant"), 2))
    monkeypatch.setattr(rate_without_labels, "TEST_ROWS", 1)
    monkeypatch.setattr(study_rows, "DOCUMENTS", 2)
    monkeypatch.setattr(study_rows, "QUESTIONS", 2)
    arguments = ["--output", str(tmp_path)]
    rate_without_labels.main(arguments)
    path = tmp_path / "dev.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    rate_without_labels.main(arguments)
    assert path.read_text() == whole
    rate_without_labels.main([*arguments, "--part", "test"])
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["contradicts", "agrees", "irrelevant"]
    assert set(rows[0]["scores"]) == {"base", "rule", "searched"}
    assert "rule: 0.001, 3 steps; searched: 0.0005, 10 steps" in capsys.readouterr().out
