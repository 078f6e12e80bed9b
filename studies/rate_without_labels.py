"""Which rate suits a model that nobody has searched? A rule without labels, against a search with labels.

    python -m studies.rate_without_labels --model MODEL --output DIR [--data nq_swap_dev.json]

Question. FastMem needs a learning rate, and the right one differs a hundredfold between models. Is there a quantity
that can be measured without labelled questions, and whose value at the best rate is the same for all models?

Design. For every model:
1. `signals.json`: what every way to memorize (`memory_variants.py`) does at every rate to texts without labels, as
   means over 16 documents that no measured row uses: the *drift*, which is KL(untouched || memorized) per token of the
   model's own answers to 20 unrelated questions; the same for answers about another text in the prompt; KL on the
   document, after the first step and at the end; the fall of its loss; the relative change of the last hidden states.
2. `dev.jsonl`: answers to development rows at all these points: documents that contradict what the model knows (100
   rows), that agree (70), that are irrelevant while the model knows the answer (70; not for NQ, which no model here
   knows).
3. `test.jsonl`: 500 test rows of each kind (NQ: all that are left), with the base, with ten steps at the rate that was
   best on `dev` with labels, and with three steps at the rate of the rule; both in turn, with their seconds.

Decision. The rule is `fastmem.calibrate`'s. Its signals and limits were chosen on eight models: the embedded one,
nq-mini, a GPT-NeoX, and two each of Gemma and Llama and one of Qwen3, which had been meant to confirm an earlier rule
(drift alone) and refuted it. On two others (another Qwen3 and another GPT-NeoX) the rule counts as confirmed if three
steps at its rate are, on test rows, within 0.02 of the searched ten on contradicting documents, lose at most 0.01
against the base on agreeing and on irrelevant ones, and take at most 0.4 of the time. `rate_table.py` prints that
table.

On the models that confirm, `--variants "adamw 3,adamw 10"` leaves out the ways that only the choice needs. Every file
is written as it goes; a second call continues.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmem import FastMem, Recipe
from fastmem.answer.running_batch import answers
from fastmem.calibrate import LIMITS, Neutral, Point, own_answers
from fastmem.lab.run.run_files import Appender, complete_rows, read_json, write_json
from fastmem.learn.memorize import drain
from fastmem.memory.memory import Memory
from fastmem.prompts import question_prompt
from studies import study_rows
from studies.memory_variants import Variant, effect, memories
from studies.study_rows import NEW_TOKENS, Row

RATES = tuple(6.25e-5 * 2**i for i in range(10))  # to 0.032
RIDGE_KLS = (0.15, 0.3, 0.6, 1.2, 2.4)  # nats per token of the document
RIDGE_START = 0.3
WANTED = {
    "adamw 1": RATES[4:9],
    "adamw 3": RATES,
    "adamw 10": RATES,
    "ridge": RIDGE_KLS,
    "ridge+adamw": RATES[3:8],
}
Wanted = Mapping[str, tuple[float, ...]]  # the rates of every way to memorize
DEV_ROWS = {"contradicts": 100, "agrees": 70, "irrelevant": 70}
TEST_ROWS = 500
SIGNALS = ("drift", "drift_reading", "first_kl", "kl", "loss_fall", "change")
STEPS, SEARCHED_STEPS = 3, 10


def measure_signals(llm: FastMem, material: Neutral, wanted: Wanted) -> list[dict[str, Any]]:
    """One object per variant and rate: the mean of every signal over the documents without labels."""
    unrelated = own_answers(llm, material.questions)
    about = [question_prompt(d, q) for d, q in zip(material.documents, reversed(material.questions), strict=False)]
    reading_answers = own_answers(llm, about)
    found: dict[Variant, list[dict[str, float]]] = {}
    for number, text in enumerate(material.documents):
        reading = llm.read(llm.memory_tokens(text))
        untouched = effect(llm, reading, None)
        for variant, memory in memories(llm, reading, wanted, RIDGE_START):
            now = effect(llm, reading, memory)
            found.setdefault(variant, []).append(
                {
                    "drift": unrelated.losses(llm.ffn(memory) or {})[1],
                    "drift_reading": reading_answers.losses(llm.ffn(memory) or {}, skip=(number,))[1],
                    "first_kl": memory.trace[1].kl if len(memory.trace) > 1 else now.kl,
                    "kl": now.kl,
                    "loss_fall": 1 - now.cross_entropy / untouched.cross_entropy,
                    "change": now.change,
                }
            )
            llm.release(memory)
        print(f"signals: document {number + 1} of {len(material.documents)}", flush=True)
    means = []
    for variant, rows in found.items():
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in SIGNALS}
        means.append({"variant": variant.name, "rate": variant.rate, **mean})
    return means


def rule_rate(signals: Sequence[Mapping[str, Any]]) -> float:
    """The rate of `fastmem.calibrate`'s rule, from the signals of three steps at the rates of this study."""
    points = [
        Point(p["rate"], p["drift_reading"], p["loss_fall"], 1.0, 1.0 - p["loss_fall"])
        for p in sorted(signals, key=lambda p: p["rate"])
        if p["variant"] == f"adamw {STEPS}"
    ]
    low = max((i for i, point in enumerate(points) if LIMITS.allow(point)), default=-1)
    if low < 0 or low == len(points) - 1:
        return points[max(low, 0)].learning_rate
    return float(f"{LIMITS.between(points[low], points[low + 1]):.2g}")


def answered(llm: FastMem, row: Row, made: Sequence[tuple[str, Memory | None]]) -> dict[str, float]:
    """The score of the answer with every memory; None is the base."""
    requests = []
    for _, memory in made:
        request = llm.prepare(row.example.prompt, "fastmem" if memory else "base", max_new_tokens=NEW_TOKENS)
        requests.append(llm.with_memory(request, memory) if memory else request)
    texts = [answer.text for answer in answers(llm.batch(), requests, 64)]
    return {name: float(row.right(text)) for (name, _), text in zip(made, texts, strict=True)}


def dev_row(llm: FastMem, row: Row, wanted: Wanted) -> dict[str, Any]:
    """Scores of the base and of every point for one row, and the point's loss and KL on its own document."""
    reading = llm.read(llm.memory_tokens(row.example.context))
    points: list[tuple[str, Memory | None]] = [("base", None)]
    document = {}
    for variant, memory in memories(llm, reading, wanted, RIDGE_START):
        name = f"{variant.name} {variant.rate:.3g}"
        points.append((name, memory))
        now = effect(llm, reading, memory)
        document[name] = [round(now.cross_entropy, 4), round(now.kl, 4)]
    scores = answered(llm, row, points)
    return {"scores": scores, "document": document, "loss_before": effect(llm, reading, None).cross_entropy}


def test_row(llm: FastMem, row: Row, recipes: Mapping[str, Recipe], turn: int) -> dict[str, Any]:
    """Scores of the base and of every recipe, and the seconds of memorizing, in an order that changes by the row."""
    document, seconds, made = llm.memory_tokens(row.example.context), {}, dict[str, Memory | None]()
    for name in sorted(recipes, reverse=bool(turn % 2)):
        start = time.perf_counter()
        made[name] = drain(llm.memorizing(document, recipes[name], watch=False))[0]
        seconds[name] = round(time.perf_counter() - start, 6)
    return {"scores": answered(llm, row, [("base", None), *sorted(made.items())]), "seconds": seconds}


def searched_rate(rows: Sequence[Mapping[str, Any]], variant: str) -> float:
    """The best rate by labels: most right on contradicting rows, among those that lose at most 0.01 on agreeing ones;
    of equals the middle one."""

    def share(kind: str, name: str) -> float:
        scores = [row["scores"][name] for row in rows if row["kind"] == kind]
        return sum(scores) / len(scores)

    names = {rate: f"{variant} {rate:.3g}" for rate in WANTED[variant]}
    harmless = [r for r, name in names.items() if share("agrees", name) >= share("agrees", "base") - 0.01]
    best = max(share("contradicts", names[rate]) for rate in harmless or names)
    equal = [rate for rate in harmless or names if share("contradicts", names[rate]) == best]
    return equal[len(equal) // 2]


def missing(file: Appender, wanted: Sequence[Row]) -> Iterator[tuple[int, Row]]:
    """The rows that the file does not have yet, with their numbers."""
    done = {(row["kind"], row["id"]) for row in file.rows}
    for number, row in enumerate(wanted):
        if (row.kind, row.example.id) not in done:
            print(f"{file.path.name}: row {number + 1} of {len(wanted)}", end="\r", flush=True)
            yield number, row


def main(arguments: list[str] | None = None) -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(prog="python -m studies.rate_without_labels", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--output", type=Path, required=True, help="folder of this model's results")
    parser.add_argument("--data", type=Path, help="NQ-SWAP rows with the paper's columns; default: the embedded world")
    parser.add_argument("--variants", default=",".join(WANTED), help="the ways to memorize on dev; default: all")
    parser.add_argument("--part", choices=("dev", "test"), default="dev", help="test needs the files of dev")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    llm = FastMem.from_pretrained(args.model, dtype=torch.float32)
    kinds = [kind for kind in DEV_ROWS if not (args.data and kind == "irrelevant")]
    signals_path, dev_path = args.output / "signals.json", args.output / "dev.jsonl"
    variants = {name: WANTED[name] for name in args.variants.split(",")}
    if args.part == "dev":
        if not signals_path.exists():
            write_json(signals_path, {"points": measure_signals(llm, study_rows.texts(args.data), variants)})
        found = study_rows.rows(args.data, args.part, kinds, max(DEV_ROWS.values()))
        with Appender(dev_path) as file:
            for _, row in missing(file, [row for kind in kinds for row in found[kind][: DEV_ROWS[kind]]]):
                file.append({"kind": row.kind, "id": row.example.id, **dev_row(llm, row, variants)})
        return
    dev_rows = complete_rows(dev_path)[1]
    rule = rule_rate(read_json(signals_path)["points"])
    searched = searched_rate(dev_rows, f"adamw {SEARCHED_STEPS}")
    recipes = {
        "rule": replace(llm.recipe, learning_rate=rule, steps=STEPS),
        "searched": replace(llm.recipe, learning_rate=searched, steps=SEARCHED_STEPS),
    }
    print(f"rule: {rule:.2g}, {STEPS} steps; searched: {searched:.2g}, {SEARCHED_STEPS} steps", flush=True)
    found = study_rows.rows(args.data, args.part, kinds, TEST_ROWS)
    with Appender(args.output / "test.jsonl") as file:
        for number, row in missing(file, [row for kind in kinds for row in found[kind]]):
            known = {"kind": row.kind, "id": row.example.id, "rates": {"rule": rule, "searched": searched}}
            file.append(known | test_row(llm, row, recipes, number))


if __name__ == "__main__":
    main()
