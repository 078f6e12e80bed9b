"""Misleading, ambiguous, irrelevant documents: when should one not memorize?

    python -m studies.when_to_memorize --output DIR/embedded
    python -m studies.when_to_memorize --output DIR/nq-mini --model FOLDER --data nq_swap_dev_333.json
    python -m studies.when_to_memorize --table --output DIR --figure when-to-memorize.svg --json when-to-memorize.json

**Question.** A memory makes a model believe its document. Which documents should not be memorized, what does a memory
of them do, and can one tell before the answer is given?

**Design.** Every row has a document in the prompt and is answered without and with a memory of it, greedy. Kinds of
rows of the embedded world: the document agrees with what the model knows, contradicts it, is about a new subject,
names the answer before the subject (turned), is long, is irrelevant (the model knows the answer), does not hold an
answer that the model cannot know either (unanswerable), consists of two documents one of which contradicts the model
(disagree), or says two things none of which the model knows (self). Of real text: NQ-SWAP contradicts, NQ agrees.
Right is the main score of the task; where two things are said, the last. For these two kinds, the shares of answers
with what is said first, what is said second, and what the model remembers are compared as well; of two documents that
disagree, also with a memory of the first alone and of the second alone, both still in the prompt. (A row in which an
empty line inside a document hides where the second begins has no such memory.)

Three steps at one of three rates. The rate is chosen as in `compared_ways.py`, on development rows of its kinds.

A *gate* memorizes only where a signal is above a threshold, or below it. `gate_signals.py` has the signals: known
before memorizing are the share of the question's words that the document has (free of any model), the mean and the
highest surprisal of the document's tokens, and the log-probability of the base's own answer, with the document,
without it, and the difference; while memorizing, the fall of the loss, the drift of answers about other documents,
and the KL between the two tails at the first token of the base's answer. Signals are judged by the area under the ROC
curve:
(a) rows that memorizing corrected against rows that it spoiled;
(b) rows that it spoiled against all others (1: the gate puts every spoiled row below all others).
Intervals are 95 %, by bootstrap over questions (one is drawn with all its rows).

**Decision rule**, written before any row was answered. On development rows, the signal with the largest (a), with
either sign, becomes the gate, at the threshold with the most right answers; of equal ones the one that memorizes most.
One gate is chosen for each model. A gate is worth having if on the test rows of every model it has more right answers
than always memorizing and than never, with both intervals above 0 and both McNemar tests below 0.05 after Holm's
correction. Otherwise the advice is by kind: do not memorize where the paired difference is below 0 at 0.05, corrected
by Holm over all comparisons of the two tables of a model. The areas depend on the mixture of kinds, which is even
here; they are also given without `disagree` and `self`, where it is a convention which answer is right.

Rows that are longer than the model's positions are left out, and their number is printed. Rows are written as they are
answered; a second call continues. The kinds take turns, so an unfinished file has all.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmem import FastMem, Memory
from fastmem.answer.running_batch import answers
from fastmem.calibrate import ReadTexts
from fastmem.lab.run.run_files import Appender, complete_rows
from fastmem.lab.tasks import TASKS
from fastmem.learn.memorize import drain
from fastmem.learn.optimize import Reading
from fastmem.prompts import token_count
from fastmem.tiny import world
from studies import study_rows
from studies.compared_ways import BASE, CHOOSING_KINDS, NQ_KINDS, Cells, Way, chosen_rates, load
from studies.gate_signals import BaseAnswer, after_memorizing, before_memorizing, other_answers
from studies.study_rows import Row
from studies.which_layer import RATES, STEPS

KINDS = ("agrees", "contradicts", "new", "turned", "long", "irrelevant", "unanswerable", "disagree", "self")
TWO_ANSWERS = ("disagree", "self")
FRAME = 32  # tokens that a chat template may add
MEMORY, FIRST, SECOND = "memory", "first alone", "second alone"


@dataclass(frozen=True)
class Condition:
    """What is memorized before a row is answered. name: in the file. rate: None for no memory."""

    name: str
    rate: float | None
    document: str


def memory_name(rate: float) -> str:
    """The name of the condition with a memory of the whole document."""
    return f"{MEMORY} {rate:g}"


def conditions(row: Row, rates: Sequence[float], alone: bool) -> list[Condition]:
    """No memory, a memory at every rate, and, if `alone`, one of each of two documents that disagree."""
    text = row.example.context
    found = [Condition(BASE, None, text), *(Condition(memory_name(rate), rate, text) for rate in rates)]
    parts = text.split("\n\n")
    if alone and row.kind == "disagree" and len(parts) == 2:
        (rate,) = rates
        found += [Condition(f"{name} {rate:g}", rate, part) for name, part in zip((FIRST, SECOND), parts, strict=True)]
    return found


def memorized(llm: FastMem, document: Reading, rate: float) -> Memory:
    """A memory of this study; a high rate may diverge without a warning."""
    recipe = replace(llm.recipe, learning_rate=rate, steps=STEPS)
    return drain(llm.memorizing(document, recipe, watch=False))[0]


def measured(llm: FastMem, row: Row, wanted: Sequence[Condition], others: ReadTexts) -> Cells:
    """By condition: whether the answer is right, its text, and the signals. The base is answered in any case, because
    the signals are about its answer. others: the answers whose change is the drift."""
    example = row.example
    readings = {text: llm.read(llm.memory_tokens(text)) for text in {one.document for one in wanted}}
    memories = {one.name: memorized(llm, readings[one.document], one.rate) for one in wanted if one.rate is not None}
    requests = [llm.request(example.prompt, max_new_tokens=row.max_new_tokens)]
    requests += [
        llm.request(example.prompt, memory, "fastmem", max_new_tokens=row.max_new_tokens)
        for memory in memories.values()
    ]
    given = dict(zip([BASE, *memories], answers(llm.batch(), requests, 64), strict=True))
    base = BaseAnswer.of(llm, example, given[BASE].token_ids)
    cells: Cells = {}
    for one in wanted:
        text, memory = given[one.name].text, memories.get(one.name)
        cells[one.name] = cell = {"right": {row.kind: row.right(text)}, "text": text}
        if row.kind in TWO_ANSWERS:
            score = TASKS[row.task].score
            assert score is not None
            cell["said"] = {name.split()[0]: bool(value) for name, value in score(text, example).items()}
        if memory is None:
            cell["signals"] = before_memorizing(llm, example, readings[one.document], base)
        else:
            cell["signals"] = after_memorizing(llm, memory, readings[one.document], base, others)
            llm.release(memory)
    return cells


def run(llm: FastMem, rows: Sequence[Row], rates: Sequence[float], alone: bool, path: Path) -> None:
    """Answer what the file does not have yet: each line holds some conditions' cells of a row."""
    others = None
    with Appender(path) as file:
        done = {(line["id"], name) for line in file.rows for name in line["cells"]}
        for number, row in enumerate(rows):
            missing = [one for one in conditions(row, rates, alone) if (row.id, one.name) not in done]
            if missing:
                others = others or other_answers(llm)
                cells = measured(llm, row, missing, others)
                file.append({"id": row.id, "kind": row.kind, "group": row.example.group, "cells": cells})
                print(f"{path}: row {number + 1} of {len(rows)}", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, each with the cells of all its lines."""
    merged: dict[str, dict[str, Any]] = {}
    for line in complete_rows(path)[1]:
        known = merged.setdefault(line["id"], line | {"cells": {}})
        known["cells"] |= line["cells"]
    return list(merged.values())


def chosen_rate(dev: Sequence[dict[str, Any]]) -> float:
    """The rate that development rows choose."""
    rows = [row["cells"] for row in dev if row["kind"] in CHOOSING_KINDS]
    return chosen_rates(rows, [Way(MEMORY, RATES, lambda *_: None)])[MEMORY]  # type: ignore[arg-type]


def study(llm: FastMem, folder: Path, data: Path | None, limits: dict[world.Part, int]) -> None:
    """Development rows at all rates, then test rows at the chosen one. limits: rows of each kind, by part."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = NQ_KINDS if data else KINDS
    for part, limit in limits.items():
        rates = RATES if part == "dev" else (chosen_rate(read(folder / "dev.jsonl")),)
        found = list(study_rows.in_turns(study_rows.rows(data, part, kinds, limit)))
        fitting = [row for row in found if fits(llm, row)]
        if len(fitting) < len(found):
            print(f"{part}: {len(found) - len(fitting)} rows are too long for the model", file=sys.stderr)
        run(llm, fitting, rates, part == "test", folder / f"{part}.jsonl")


def fits(llm: FastMem, row: Row) -> bool:
    """Whether prompt and answer are within the model's positions; the document alone is shorter."""
    limit = llm.split_model.max_positions
    return limit is None or token_count(llm.tokenizer, row.example.prompt) + FRAME + row.max_new_tokens <= limit


def main(arguments: list[str] | None = None) -> None:
    """Measure one model, or print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.when_to_memorize", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of this model's results; with --table of all"
    )
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--data", type=Path, help="NQ-SWAP rows with the paper's columns; default: the embedded world")
    parser.add_argument("--dev-rows", type=int, default=60, help="of each kind")
    parser.add_argument("--test-rows", type=int, default=200, help="of each kind")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path, help="with --table: every number of the tables as one JSON document")
    args = parser.parse_args(arguments)
    if args.table:
        from studies import when_to_memorize_table

        when_to_memorize_table.show(args.output, args.figure, args.json)
    else:
        study(load(args.model), args.output, args.data, {"dev": args.dev_rows, "test": args.test_rows})


if __name__ == "__main__":
    main()
