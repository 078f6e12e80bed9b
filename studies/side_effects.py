"""Does memorizing dull the model? Other texts, other questions, the form of answers, variety, and verbatim copying.

    python -m studies.side_effects --output DIR/embedded
    python -m studies.side_effects --output DIR/nq-mini --model FOLDER --data nq_swap_dev_333.json
    python -m studies.side_effects --table --output DIR --figure side-effects.svg --json side-effects.json    # of both

**Question.** A memory changes weights that every answer uses. What does the model lose on what has nothing to do with
the document: with one memory, with twenty, at which rates, and if memories are averaged or added?

**Design.** Every row is one of the first 40 development documents that contradict what the model knows. It is measured
under these conditions; rates are multiples of the model's own (`--rate`):

- `base`: the untouched model.
- `one, R x`: a memory of the document, R in 0.5, 1, 2 and 4.
- `one, 3 steps, R x`: the same with three steps, as many as `--recipe auto` takes, R in 1, 2 and 4.
- `20 in a row, R x`: the document and 19 others of the 40, drawn for the row, one after the other: every document is
  memorized from the weights that the one before left, and the KL refers to those. The row's document stands at each
  place in turn. R in 0.5, 1 and 2.
- `average of 20`, `sum of 20`: the mean and the sum of the differences of 20 memories of the same documents, 1 x.

What is *unrelated* is drawn for each row from development documents that nothing memorizes, and is the same under
all conditions: neither its subject nor its answers are mentioned in any of the 20 documents. Measured are:

- nats per token of 8 unrelated documents, and of the texts that come with FastMem (`neutral.jsonl`, another kind of
  text), both as a document is memorized; with the KL from the untouched model. The second counts only for a model that
  predicts these texts better than a uniform guess does.
- answers to 4 unrelated questions with a document that agrees, 4 with one that contradicts, and, in the embedded
  world, 4 without a document (recall). Greedy, the paper's prompt and containment.
- form: the share of the answers with a document that follow "The answer is: ..." as the prompt asks.
- variety: 4 sampled continuations (temperature 1, 60 tokens, fixed seeds) of the first 8 tokens of an unrelated
  document: distinct-1, distinct-2 and self-BLEU of the four.
- copying: in these continuations, the longest run of tokens that stands in a memorized document, and the share of
  8-grams that do. The base is held against the same documents: the twenty, or the one.
- what it buys: the answer to the row's own question, with its document in the prompt.

**Decision rule**, written before any measured row (a timing run of one document led to more unrelated questions, and
to leaving out texts that a model cannot predict). Differences from the base are paired, with 95 % intervals by
bootstrap over rows; p-values (McNemar for right and wrong, the sign-flip test for numbers) are corrected by Holm over
all conditions and measures of a model, the own question left out. The margin is 0.05 (nats per token or a share), and
2 tokens for the longest run. A condition *dulls* the model if some measure is worse at 0.05 and its interval is not
within the margin. It *does not* if the intervals of all measures are within the margin on the worse side. Else the
question is *open*. Where no answer differs, the interval is the exact one for the share of answers that differ.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean

import torch

from fastmem import FastMem, Memory, Tokens
from fastmem.answer.running_batch import Answer, answers
from fastmem.calibrate import ReadTexts, read_neutral
from fastmem.errors import InputError
from fastmem.lab.run.run_files import Appender
from fastmem.lab.scores.grading import graded
from fastmem.lab.tasks import Example
from fastmem.tiny import world
from studies import study_rows
from studies.compared_ways import BASE, Cells
from studies.continuation_measures import copied_share, distinct, longest_copied_run, self_bleu
from studies.several_memories import added, faster, memorized, one_after_the_other
from studies.study_rows import NEW_TOKENS, NQ_LEARNING_RATE

ONE_RATES, SHORT_RATES, ROW_RATES = (0.5, 1.0, 2.0, 4.0), (1.0, 2.0, 4.0), (0.5, 1.0, 2.0)
SHORT = 3  # steps
AGREEING, CONTRADICTING, RECALLED = 4, 4, 4  # unrelated questions of a row
OPENING, CONTINUATION, SAMPLES, COPIED = 8, 60, 4, 8  # tokens, tokens, continuations, tokens of an n-gram


@dataclass(frozen=True)
class Row:
    """A document with its question, the documents of the conditions with several, and what is unrelated to all.

    documents: the own one stands at `place`, from 0. unrelated: questions by kind.
    """

    own: Example
    documents: tuple[str, ...]
    place: int
    unrelated: Mapping[str, tuple[Example, ...]]

    @property
    def texts(self) -> list[str]:
        """The unrelated documents."""
        return [e.context for kind in ("agreeing", "contradicting") for e in self.unrelated[kind]]


@dataclass(frozen=True)
class Condition:
    """name: as in the table. make: the memory, None for the base."""

    name: str
    make: Callable[[FastMem, Row], Memory | None]


def examples(data: Path | None) -> dict[str, list[Example]]:
    """Development rows by kind: contradicting, agreeing, recalled. NQ has no questions to recall."""
    found = study_rows.rows(data, "dev", ("contradicts", "agrees", "recalled"))
    names = {"contradicting": "contradicts", "agreeing": "agrees", "recalled": "recalled"}
    return {name: [row.example for row in found.get(kind, ())] for name, kind in names.items()}


def rows(kinds: Mapping[str, Sequence[Example]], documents: int, pool_size: int, several: int) -> list[Row]:
    """The rows of the study.

    documents: how many rows. pool_size: from how many the others are drawn. several: how many are memorized together.
    """
    pool = kinds["contradicting"][:pool_size]
    groups = {e.group for e in pool}
    others = {kind: [e for e in found if e.group not in groups] for kind, found in kinds.items()}
    made = []
    for number, own in enumerate(pool[:documents]):
        random = Random(own.id)
        chosen = [e.context for e in random.sample([e for e in pool if e is not own], several - 1)]
        place = number % several
        chosen.insert(place, own.context)
        counts = {
            "agreeing": AGREEING,
            "contradicting": CONTRADICTING,
            "recalled": RECALLED if others["recalled"] else 0,
        }
        found = {kind: unrelated(others[kind], chosen, random, count) for kind, count in counts.items()}
        made.append(Row(own, tuple(chosen), place, found))
    return made


def unrelated(found: Sequence[Example], documents: Sequence[str], random: Random, count: int) -> tuple[Example, ...]:
    """Examples whose subject and answers no document mentions. Errors: `InputError` if there are too few."""
    joined, chosen = f" {world.normalize(' '.join(documents))} ", list[Example]()
    for example in random.sample(found, len(found)):
        if len(chosen) == count:
            break
        # In the world the subject is the last part of the id.
        subject = [example.id.split("/")[-1].replace("-", " ")] if "/" in example.id else []
        names = (*example.answers, *example.original_answers, *subject)
        if not any(f" {world.normalize(name)} " in joined for name in names):
            chosen.append(example)
    if len(chosen) < count:
        raise InputError(f"only {len(chosen)} of {count} questions are unrelated to the documents: give fewer.")
    return tuple(chosen)


def conditions(several: int) -> list[Condition]:
    """All that are compared."""

    def one(rate: float, steps: int | None = None) -> Callable[[FastMem, Row], Memory]:
        def make(llm: FastMem, row: Row) -> Memory:
            recipe = faster(llm.recipe, rate)
            return memorized(llm, row.own.context, replace(recipe, steps=steps or recipe.steps))

        return make

    def in_a_row(rate: float) -> Callable[[FastMem, Row], Memory]:
        return lambda llm, row: one_after_the_other(llm, row.documents, faster(llm.recipe, rate))

    return [
        Condition(BASE, lambda llm, row: None),
        *(Condition(f"one, {rate:g} x", one(rate)) for rate in ONE_RATES),
        *(Condition(f"one, {SHORT} steps, {rate:g} x", one(rate, SHORT)) for rate in SHORT_RATES),
        *(Condition(f"{several} in a row, {rate:g} x", in_a_row(rate)) for rate in ROW_RATES),
        Condition(f"average of {several}", lambda llm, row: added(llm, row.documents, 1 / several)),
        Condition(f"sum of {several}", lambda llm, row: added(llm, row.documents, 1.0)),
    ]


def measured(llm: FastMem, row: Row, made: Mapping[str, Memory | None]) -> Cells:
    """By condition: everything that is measured."""
    questions = [("own", row.own), *((kind, e) for kind, found in row.unrelated.items() for e in found)]
    opening = beginning(llm.memory_tokens(row.unrelated["agreeing"][0].context))
    seed = Random(f"{row.own.id} continued").randrange(2**31)
    keys, requests = [], []
    for name, memory in made.items():
        asked = [llm.request(e.prompt, memory, max_new_tokens=NEW_TOKENS) for _, e in questions]
        continued = [
            llm.request(
                opening,
                memory,
                max_new_tokens=CONTINUATION,
                min_new_tokens=CONTINUATION,
                temperature=1.0,
                seed=seed + sample,
            )
            for sample in range(SAMPLES)
        ]
        keys += [name] * (len(asked) + len(continued))
        requests += asked + continued
    given: dict[str, list[Answer]] = {}
    for name, answer in zip(keys, answers(llm.batch(), requests, 64), strict=True):
        given.setdefault(name, []).append(answer)
    texts = {
        "other": ReadTexts(llm, [llm.read(llm.memory_tokens(text)) for text in row.texts]),
        "neutral": ReadTexts(llm, [llm.read(llm.memory_tokens(text)) for text in read_neutral().documents]),
    }
    documents = [content(llm.memory_tokens(text)) for text in row.documents]
    own = [documents[row.place]]
    cells = {}
    for name, memory in made.items():
        found, samples = given[name][:-SAMPLES], [list(a.token_ids) for a in given[name][-SAMPLES:]]
        scores = [(kind, e, graded(a.text, e)) for (kind, e), a in zip(questions, found, strict=True)]
        cell = {
            kind: [bool(s["paper_correct"]) for k, _, s in scores if k == kind] for kind in ("own", *row.unrelated)
        }
        cell["form"] = [not s["failure"] for k, e, s in scores if k != "own" and e.context]
        losses = {kind: each.losses(llm.ffn(memory) or {}) for kind, each in texts.items()}
        cells[name] = {
            **cell,
            "loss": {kind: round(nats, 6) for kind, (nats, _) in losses.items()},
            "kl": {kind: round(nats, 6) for kind, (_, nats) in losses.items()},
            "uniform": round(math.log(llm.split_model.vocabulary_size), 6),
            "distinct": [distinct(samples, n) for n in (1, 2)],
            "self_bleu": self_bleu(samples),
            "run": [fmean([longest_copied_run(s, each) for s in samples]) for each in (own, documents)],
            "copied": [fmean([copied_share(s, each, COPIED) for s in samples]) for each in (own, documents)],
            "place": row.place,
        }
        if memory is not None:
            llm.release(memory)
    return cells


def content(document: Tokens) -> list[int]:
    """The tokens of a document without its frame and the end of its turn."""
    return document.ids[document.scored].tolist()[:-1]


def beginning(document: Tokens) -> Tokens:
    """The frame of a document and its first tokens."""
    return Tokens(document.ids[: int(document.scored.nonzero()[0]) + OPENING])


def study(llm: FastMem, wanted: Sequence[Row], compared: Sequence[Condition], path: Path) -> None:
    """Measure what the file does not have yet. Each line holds some conditions' cells of a row."""
    with Appender(path) as file:
        done = {(line["id"], name) for line in file.rows for name in line["cells"]}
        for number, row in enumerate(wanted):
            missing = [each for each in compared if (row.own.id, each.name) not in done]
            if missing:
                made = {each.name: each.make(llm, row) for each in missing}
                file.append({"id": row.own.id, "cells": measured(llm, row, made)})
                print(f"{path}: row {number + 1} of {len(wanted)}", end="\r", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure one model, or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m studies.side_effects", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of this model's results; with --table of all"
    )
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--data", type=Path, help="NQ-SWAP rows with the paper's columns; default: the embedded world")
    parser.add_argument("--rate", type=float, help="the model's own rate; default: its recipe's, with --data 1e-3")
    parser.add_argument("--documents", type=int, default=40, help="rows; later ones can be added")
    parser.add_argument("--several", type=int, default=20, help="documents that are memorized together")
    parser.add_argument("--pool", type=int, default=40, help="documents from which the others are drawn")
    parser.add_argument("--conditions", nargs="*", help="only these rows of the table; others can be added later")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path, help="with --table: every number of the tables as one JSON document")
    args = parser.parse_args(arguments)
    if args.table:
        from studies import side_effects_table

        side_effects_table.show(args.output, args.figure, args.json)
        return
    if not 1 <= args.several <= args.pool or not 1 <= args.documents <= args.pool:
        raise InputError("--several and --documents must be 1 or more, and at most --pool.")
    compared = conditions(args.several)
    unknown = set(args.conditions or ()) - {each.name for each in compared}
    if unknown:
        raise InputError(f"--conditions has {sorted(unknown)}: give some of {[each.name for each in compared]}.")
    llm = FastMem.from_pretrained(args.model, dtype=torch.float32)
    rate = args.rate or (NQ_LEARNING_RATE if args.data else llm.recipe.learning_rate)
    llm.recipe = replace(llm.recipe, learning_rate=rate)
    args.output.mkdir(parents=True, exist_ok=True)
    wanted = rows(examples(args.data), args.documents, args.pool, args.several)
    chosen = [each for each in compared if not args.conditions or each.name in args.conditions]
    study(llm, wanted, chosen, args.output / "rows.jsonl")


if __name__ == "__main__":
    main()
