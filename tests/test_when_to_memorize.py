"""studies/when_to_memorize.py: its signals against plain models, the gate and its rule on made-up rows, resuming."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from studies import gate_signals, study_rows, when_to_memorize, when_to_memorize_table
from studies.area_under_curve import RESAMPLES
from studies.compared_ways import BASE
from studies.when_to_memorize_table import Answers, Gate

from fastmem import FastMem, Recipe
from fastmem.tiny import MODEL_DIR


@pytest.fixture(scope="module")
def llm():
    return FastMem.from_pretrained(str(MODEL_DIR), dtype=torch.float32, recipe=Recipe(learning_rate=2e-3, steps=3))


def test_the_signals_are_those_of_plain_models(llm):
    from transformers import AutoModelForCausalLM

    (row,) = study_rows.rows(None, "dev", ["contradicts"], 1)["contradicts"]
    example = row.example
    answer = llm.generate(example.prompt, max_new_tokens=8).token_ids
    base = gate_signals.BaseAnswer.of(llm, example, answer)
    document = llm.read(llm.memory_tokens(example.context))
    before = gate_signals.before_memorizing(llm, example, document, base)
    memory = when_to_memorize.memorized(llm, document, 2e-3)
    others = gate_signals.other_answers(llm)
    after = gate_signals.after_memorizing(llm, memory, document, base, others)

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()

    def logs(ids):
        with torch.no_grad():
            return model(ids[None]).logits[0].double().log_softmax(-1)

    tokens, chosen = torch.tensor(answer), gate_signals.content(llm.tokenizer, answer)

    def answered(prompt):
        ids = torch.cat([llm.ids(prompt), tokens])
        return logs(ids)[-len(tokens) - 1 : -1][chosen]

    def surprisals():
        read = llm.memory_tokens(example.context)
        scored = read.scored[1:].nonzero()[:, 0]
        return -logs(read.ids)[scored, read.ids[scored + 1]]

    with_document, alone = answered(example.prompt), answered(example.prompt_without_context)
    means = [float(one.gather(1, tokens[chosen, None]).mean()) for one in (with_document, alone)]
    assert [before["answer with document"], before["answer without document"]] == pytest.approx(means, abs=1e-4)
    assert before["answer, difference"] == pytest.approx(means[0] - means[1], abs=1e-4)
    first = surprisals()
    assert before["surprisal"] == pytest.approx(float(first.mean()), abs=1e-4)
    assert before["highest surprisal"] == pytest.approx(float(first.max()), abs=1e-4)
    with memory.applied(model):
        last, tail = surprisals(), answered(example.prompt)[0]
    assert after["fall of the loss"] == pytest.approx(1 - float(last.mean() / first.mean()), abs=1e-4)
    assert 0 < after["fall of the loss"] < 1
    divergence = float((with_document[0].exp() * (with_document[0] - tail)).sum())
    assert after["tails disagree"] == pytest.approx(divergence, rel=1e-3, abs=1e-5)
    assert after["drift"] > 0


def test_words_of_the_question_that_the_document_has():
    assert gate_signals.overlap("Who owns the Inn? Who?", "Mara owns an inn.") == 0.5  # owns, inn; not who, the
    assert gate_signals.overlap("?", "Mara") == 0.0


def test_two_documents_that_disagree_are_also_memorized_alone():
    rows = study_rows.rows(None, "test", ["disagree", "self"], 6)
    for row in rows["disagree"]:
        found = {one.name: one for one in when_to_memorize.conditions(row, (0.5,), alone=True)}
        if row.example.context.count("\n\n") > 1:  # the second document cannot be told from a second paragraph
            assert list(found) == [BASE, "memory 0.5"]
            continue
        assert list(found) == [BASE, "memory 0.5", "first alone 0.5", "second alone 0.5"]
        for name, own, other in (("first", 0, 1), ("second", 1, 0)):
            text = found[f"{name} alone 0.5"].document
            assert row.example.choices[own] in text
            assert row.example.choices[other] not in text
        assert len(when_to_memorize.conditions(row, (0.5, 1.0), alone=False)) == 3
    assert len(when_to_memorize.conditions(rows["self"][0], (0.5,), alone=True)) == 2


def test_a_row_that_exceeds_the_positions_of_the_model_does_not_fit(llm):
    (row,) = study_rows.rows(None, "dev", ["agrees"], 1)["agrees"]
    many = replace(row, example=replace(row.example, context=" ".join([row.example.context] * 60)))
    assert when_to_memorize.fits(llm, row)
    assert not when_to_memorize.fits(llm, many)


def answers_of(signal, before, after):
    n = len(signal)
    values = {"good": np.array(signal, dtype=float), "flat": np.zeros(n)}
    kinds, groups = np.full(n, "agrees"), np.array([str(i) for i in range(n)])
    return Answers(kinds, groups, np.array(before, dtype=bool), np.array(after, dtype=bool), values)


#                 corrected  spoiled   neither
SIGNAL = [1, 2, 5, 3, 9, 4, 2.5]
BEFORE = [0, 0, 0, 1, 1, 1, 0]
AFTER = [1, 1, 1, 0, 0, 1, 0]


def test_the_areas_are_those_of_pairs():
    answers = answers_of(SIGNAL, BEFORE, AFTER)
    low = Gate("good", -1)
    # (a): corrected 1, 2, 5 against spoiled 3, 9; low is right in all pairs but (5, 3).
    assert answers.areas(low, True, once=True).tolist() == [pytest.approx(5 / 6)]
    # (b): spoiled 3, 9 against 1, 2, 5, 4, 2.5; 3 is below 5 and 4, which are the two wrong pairs of ten.
    assert answers.areas(low, False, once=True).tolist() == [pytest.approx(8 / 10)]
    assert answers.areas(Gate("good", 1), True, once=True).tolist() == [pytest.approx(1 / 6)]
    assert len(answers.areas(low, True)) == 1 + RESAMPLES
    assert math.isnan(answers_of([1, 2], [0, 1], [1, 1]).areas(low, True, once=True)[0])  # nothing was spoiled


def test_the_gate_has_the_best_signal_the_right_sign_and_the_best_threshold():
    dev = answers_of(SIGNAL, BEFORE, AFTER)
    gate = when_to_memorize_table.chosen_gate(dev)
    assert (gate.signal, gate.sign) == ("good", -1)
    # At most 2.75: two corrected, none spoiled: 5 right. At most 7: three corrected, one spoiled: 5 as well, and
    # it memorizes more rows. Always: 4. Never: 3.
    assert gate.threshold == -7.0
    assert gate.right(dev).sum() == 5
    assert gate.text == "good at most 7"
    assert when_to_memorize_table.chosen_gate(answers_of([1, 2, 3], [0, 0, 1], [1, 1, 1])) is None
    always = when_to_memorize_table.with_threshold(answers_of([1, 2], [0, 0], [1, 1]), Gate("good", 1))
    never = when_to_memorize_table.with_threshold(answers_of([1, 2], [1, 1], [0, 0]), Gate("good", 1))
    assert (always.text, never.text) == ("good: always", "good: never")


def cell(kind, right, signals, **more):
    return {"right": {kind: right}, "text": "", "signals": signals} | more


def made_up(count, noisy, seed):
    """Rows of two kinds whose signal says exactly, or not at all, whether memorizing corrects or spoils."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        kind, corrected = ("contradicts", "irrelevant")[number % 2], number % 2 == 0
        signal = float(random.normal() if noisy else random.random() + corrected)
        cells = {BASE: cell(kind, not corrected, {"told": signal, "other": float(random.normal())})}
        for rate in when_to_memorize.RATES:
            cells[f"memory {rate:g}"] = cell(kind, corrected, {"while": float(random.normal())})
        rows.append({"id": f"{kind}/{number}", "kind": kind, "group": str(number), "cells": cells})
    return rows


def test_the_rule_wants_more_right_answers_than_always_and_than_never():
    good = when_to_memorize_table.Results.of(made_up(40, False, 1), made_up(60, False, 2))
    assert good.rate == when_to_memorize.RATES[1]  # of equals the middle one
    assert good.gate.signal == "told"
    assert good.worth_having
    assert good.effects["contradicts", "memory", "right"].comparison.difference.value == 1.0
    assert good.effects["irrelevant", "memory", "right"].comparison.difference.value == -1.0
    noise = when_to_memorize_table.Results.of(made_up(40, True, 1), made_up(60, True, 2))
    assert not noise.worth_having
    assert when_to_memorize_table.worth_having({"a": good})
    assert not when_to_memorize_table.worth_having({"a": good, "b": noise})
    assert not when_to_memorize_table.worth_having({})


def test_p_values_are_corrected_over_all_comparisons():
    pair = ([False] * 6, [True] * 6, [str(n) for n in range(6)])
    alone = when_to_memorize_table.effects({"a": pair})["a"]
    among = when_to_memorize_table.effects({"a": pair, "b": pair, "c": pair})["a"]
    assert alone.corrected == pytest.approx(2 / 64)
    assert among.corrected == pytest.approx(6 / 64)
    assert alone.text.endswith("*")
    assert not among.text.endswith("*")


def test_an_interrupted_study_continues_and_prints_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(when_to_memorize, "KINDS", ("contradicts", "irrelevant", "disagree", "self"))
    monkeypatch.setattr(when_to_memorize, "RATES", (2e-3, 8e-3))
    monkeypatch.setattr(when_to_memorize, "STEPS", 1)
    call = ["--output", str(tmp_path / "tiny"), "--dev-rows", "1", "--test-rows", "1"]
    when_to_memorize.main(call)
    path = tmp_path / "tiny" / "test.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:2]) + '{"id": "cut')  # as if it was killed while writing
    when_to_memorize.main(call)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [
        json.loads(line)["id"] for line in whole.splitlines()
    ]
    assert path.read_text() == whole
    dev = when_to_memorize.read(tmp_path / "tiny" / "dev.jsonl")
    assert [set(row["cells"]) for row in dev] == [{BASE, "memory 0.002", "memory 0.008"}] * 4
    assert [set(row["cells"][BASE].get("said", ())) for row in dev] == [set(), set()] + [
        {"first", "second", "remembered"}
    ] * 2
    table = ["--output", str(tmp_path), "--table", "--figure", str(tmp_path / "a.svg"), "--json"]
    when_to_memorize.main([*table, str(tmp_path / "a.json")])
    printed = capsys.readouterr().out
    assert "| kind | rows | without | with | difference | corrected, spoiled |" in printed
    assert "| disagree | none | 1 |" in printed
    assert "| disagree | the second | 1 |" in printed
    assert "word overlap" in printed
    assert "Decision: a gate is not worth having." in printed
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["models"]["tiny"]["rows"] == {"development": 4, "test": 4}
    assert not told["worth having"]
