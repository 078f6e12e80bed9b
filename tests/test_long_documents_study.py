"""studies/long_documents.py: its documents, its choice by surprisal against the plain model, its rule, resuming."""

import argparse
import json
import sys
from dataclasses import replace

import pytest
import torch
from studies import long_documents as study

from fastmem import FastMem
from fastmem.documents import sentences
from fastmem.lab.tasks import load
from fastmem.tiny import MODEL_DIR
from fastmem.tiny.world import mentions

TEXT = "Clara plays the horn. Oakmere lies on the Alder.\n\nA cat slept there. The mayor is Bo Lind."


@pytest.fixture(scope="module")
def llm():
    return FastMem.from_pretrained()


def test_a_document_holds_its_own_context_and_no_other_answer(llm):
    examples = load("world_swap", split="dev").examples
    for number in range(8):
        own = examples[number]
        document = study.long_document(llm, examples, number, 300)
        paragraphs = document.split("\n\n")
        assert own.context in paragraphs
        assert len(paragraphs) > 2
        others = "\n\n".join(paragraph for paragraph in paragraphs if paragraph != own.context)
        assert not any(mentions(others, answer) for answer in (*own.answers, *own.original_answers))
        assert document == study.long_document(llm, examples, number, 300)
        assert 250 <= len(llm.tokenizer(document)["input_ids"]) <= 330


def test_sentences_are_ranked_by_the_plain_models_surprisal(llm):
    from transformers import AutoModelForCausalLM

    tokens = llm.memory_tokens(TEXT)
    logits = AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()(tokens.ids[None]).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], tokens.ids[1:], reduction="none")
    # Where each token ends, from the tokenizer's own offsets.
    start = len(llm.tokenizer.decode(tokens.ids[: int(tokens.scored.nonzero()[0])]))
    whole = llm.tokenizer.decode(tokens.ids)
    ends = [
        end for _, end in llm.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    bounds = [TEXT.index(one) + len(one) + start for one in sentences(TEXT)]
    sums: dict[int, list[float]] = {}
    for place, end in enumerate(ends):
        if tokens.scored[place]:
            number = next((n for n, bound in enumerate(bounds) if end <= bound), 3)
            sums.setdefault(number, []).append(losses[place - 1].item())
    expected = sorted(sums, key=lambda n: -sum(sums[n]) / len(sums[n]))
    assert study.by_surprisal(llm, TEXT, tokens) == expected
    chosen = study.with_sentences_scored(llm, TEXT, tokens, [1], 0.01)
    assert llm.tokenizer.decode(chosen.ids[chosen.scored]).strip() == "Oakmere lies on the Alder."
    assert torch.equal(chosen.ids, tokens.ids)


def test_one_half_chooses_and_the_other_judges():
    groups = [f"question {n}" for n in range(60)]
    searched = [study.is_searched(group) for group in groups]

    def column(right):
        return [{"right": one} for one in right]

    none, every = [False] * 60, [True] * 60
    columns = {
        ("whole", "whole", "r"): column(none),
        ("whole", "part 100", "r"): column([not one for one in searched]),  # right only where it is not chosen
        ("whole", "part 200", "r"): column(searched),
        ("part 100", "part 100", "r"): column(every),
    }
    said = study.decide(columns, groups)
    assert said[0].startswith("r, part: part 200 less the whole document +0.000")
    assert said[1].startswith("r, part, alone in the prompt: part 100 less the whole document +1.000")
    assert f"on {60 - sum(searched)} questions" in said[0]


def test_a_question_that_shares_no_word_with_any_part_has_none_and_is_counted(llm, capsys):
    examples = load("world_swap", split="dev").examples
    given = argparse.Namespace(parts=[60], shares=[], recipes="1x5e-4")
    document = study.long_document(llm, examples, 0, 150)
    rows = [
        {"setting": {"model": "m", "task": "t"}, "group": str(number), "document": 150, "cells": found}
        for number, found in enumerate(
            study.cells(llm, example, document, given)
            for example in (examples[0], replace(examples[0], question="zzz?"))
        )
    ]
    assert {cell["memory"] for cell in rows[0]["cells"]} == {"none", "whole", "part 60"}
    assert [(cell["prompt"], cell["memory"]) for cell in rows[1]["cells"]] == [("whole", "none"), ("whole", "whole")]
    study.print_table(rows)
    assert "2 questions; 1 of them lack a part, since none shares a word" in capsys.readouterr().out


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    output = tmp_path / "rows.jsonl"
    call = [
        "study",
        "--tokens",
        "150",
        "--parts",
        "60",
        "--shares",
        "0.5",
        "--recipes",
        "1x5e-4",
        "--output",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", [*call, "--limit", "2"])
    study.main()
    first = output.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    cells = [(c["prompt"], c["memory"]) for c in rows[0]["cells"]]
    assert cells == [
        ("whole", "none"),
        *(("whole", memory) for memory in ("whole", "part 60", "surprising 0.5", "random 0.5")),
        ("part 60", "none"),
        ("part 60", "whole"),
        ("part 60", "part 60"),
    ]
    by_name = {c["memory"]: c for c in rows[0]["cells"] if c["prompt"] == "whole"}
    assert by_name["whole"]["passes"] == by_name["whole"]["tokens"] > 150 * 0.8
    assert by_name["surprising 0.5"]["passes"] == by_name["surprising 0.5"]["tokens"] + by_name["whole"]["tokens"]
    output.write_text(first + '{"setting": {"model"')  # a killed writer
    monkeypatch.setattr(sys, "argv", [*call, "--limit", "3"])
    monkeypatch.setattr(study, "cells", lambda *given: rows[0]["cells"])
    study.main()
    assert output.read_text().startswith(first)
    assert len(output.read_text().splitlines()) == 3
    assert "3 questions" in capsys.readouterr().out
