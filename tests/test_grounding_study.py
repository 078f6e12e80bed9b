"""studies/grounding.py and grounding_table.py: their scores against plain models, abstention, and the rule."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from studies import grounding, grounding_table, study_rows

from fastmem import FastMem
from fastmem.tiny import MODEL_DIR


@pytest.fixture(scope="module")
def llm():
    return FastMem.from_pretrained(dtype=torch.float32)


def test_a_row_has_the_log_probabilities_of_plain_models(llm):
    from transformers import AutoModelForCausalLM

    (asked,) = study_rows.rows(None, "dev", ["contradicts"], 1)["contradicts"]
    example, row = asked.example, grounding.answered(llm, asked)
    memory = llm.memorize(example.context)
    answer = torch.tensor(llm.generate(example.prompt, memory, max_new_tokens=32).token_ids)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()

    def distributions(prompt):
        ids = torch.cat([llm.ids(prompt), answer])
        with torch.no_grad():
            return model(ids[None]).logits[0, -len(answer) - 1 : -1].softmax(-1).double()

    original, without = distributions(example.prompt), distributions(example.prompt_without_context)
    with memory.applied(model):
        memorized = distributions(example.prompt)
    # The text of the tokens that are scored is the answer without its frame.
    scored = grounding.content(llm.tokenizer, answer.tolist())
    said = llm.tokenizer.decode(answer[scored])
    assert row["text"].removeprefix("The answer is: ").rstrip(".") == said.strip()
    for place, token in zip(range(len(answer))[scored], row["tokens"], strict=True):
        p, q = memorized[place], original[place]
        expected = [math.log(side[place, answer[place]]) for side in (memorized, original, without)]
        middle = (p + q) / 2
        expected.append(float(sum((one * (one / middle).log()).nansum() for one in (p, q))) / 2)
        assert token == pytest.approx(expected, abs=1e-4)
    assert row["tokens"][0][0] > row["tokens"][0][1]  # this document was learnt


def test_content_leaves_out_the_frame_and_falls_back_to_everything(llm):
    def ids(text):
        return llm.tokenizer(text, add_special_tokens=False)["input_ids"]

    framed = [*ids("The answer is: Silver Ferrywick."), llm.tokenizer.eos_token_id]
    assert llm.tokenizer.decode(framed[grounding.content(llm.tokenizer, framed)]).strip() == "Silver Ferrywick"
    plain = ids("Silver Ferrywick")
    assert grounding.content(llm.tokenizer, plain) == slice(0, len(plain))
    assert grounding.content(llm.tokenizer, [llm.tokenizer.eos_token_id]) == slice(0, 1)


def test_abstaining_keeps_the_highest_scores():
    values, right = np.array([3.0, 1.0, 4.0, 2.0]), np.array([True, False, True, False])
    kept = grounding_table.kept_accuracy(values, right, np.array([[1, 1, 1, 1], [0, 2, 1, 1]]), 0.5)
    assert kept.tolist() == [1.0, 0.5]  # 4 and 3; then 4 and 2
    assert grounding_table.kept_accuracy(values, right, np.ones((1, 4)), 1).tolist() == [0.5]


def made_up(kind, number, right, tokens):
    return {"kind": kind, "group": str(number), "right": right, "remembered": not right, "tokens": [tokens]}


def test_the_rule_wants_a_gain_on_right_and_no_loss_elsewhere():
    random, rows = np.random.default_rng(2), []
    for number in range(120):
        kind, right = ("contradicts", "irrelevant")[number % 2], number % 4 == 0
        noise, told = random.normal(size=2)
        rows.append(made_up(kind, number, right, [noise, noise - (3 * right + told), -1.0, 0.1]))
    answers = {"one": grounding_table.Answers.of(rows)}
    areas = grounding_table.areas(answers, list(grounding_table.SCORES))
    good = grounding_table.decide(areas, "log difference, mean", "probability, mean")
    assert good[-1].endswith("product")
    for score in ("- log difference, mean", "divergence, mean"):
        assert grounding_table.decide(areas, score, "probability, mean")[-1].endswith("a page of results")
    found = grounding_table.on_dev(answers, "(a) right, all kinds")
    assert grounding_table.best(found, list(grounding_table.CANDIDATES)).startswith("log difference")


def test_a_regression_finds_the_weights_that_made_the_labels():
    random = np.random.default_rng(3)
    x = random.normal(size=(20000, 2))
    label = random.random(20000) < 1 / (1 + np.exp(-(x @ [2.0, -1.0] + 0.5)))
    assert grounding_table.fitted(x, label) == pytest.approx([2.0, -1.0, 0.5], abs=0.1)


def test_a_second_call_goes_on_and_the_tables_follow(tmp_path, monkeypatch, capsys):
    for part in ("dev", "test"):
        options = ["--output", str(tmp_path / "embedded"), "--part", part]
        grounding.main([*options, "--limit", "1"])
        file = tmp_path / "embedded" / f"{part}.jsonl"
        first = file.read_text()
        assert [json.loads(line)["kind"] for line in first.splitlines()] == [
            "contradicts",
            "agrees",
            "irrelevant",
            "turned",
        ]
        grounding.main([*options, "--limit", "2"])
        assert file.read_text().startswith(first)
        assert len(file.read_text().splitlines()) == 8
    files = ["--figure", str(tmp_path / "a.svg"), "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["grounding_table", str(tmp_path), *files])
    grounding_table.main()
    printed = capsys.readouterr().out
    assert "Decision" in printed
    assert "(c) answerable" in printed
    assert (tmp_path / "a.svg").stat().st_size > 1000
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert numbers["test"]["embedded"]["(c) answerable"]["rows"] == 8
    assert len(numbers["dev"]["(c) answerable"]["probability, mean"]) == 1
