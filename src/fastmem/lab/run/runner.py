"""The runner: examples in batches, every method on each, every row written as it is made, and going on after a stop.

A batch is fixed by the order of the examples, not by what is left of it. So a run that was killed decodes the batch
it died in once more, whole, and writes the rows that are missing: they come out as they would have, to the bit.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastmem.environment import environment
from fastmem.lab.run import run_files
from fastmem.lab.run.evaluate_batch import BatchEvaluator, Record
from fastmem.lab.run.experiment import Experiment, by_context, claim, identity, model_name, recipe_values
from fastmem.lab.run.run_files import Appender
from fastmem.lab.scores import grading
from fastmem.lab.tasks import TASKS, Data, Example, cut
from fastmem.model import FastMem


@dataclass(frozen=True)
class Progress:
    """rows: written so far, those of earlier starts included, of `total`. seconds_left: from the measured mean of
    every method, None while a method that is still to come has not been measured."""

    rows: int
    total: int
    errors: int
    seconds: float
    seconds_left: float | None


def run(
    llm: FastMem,
    experiment: Experiment,
    data: Data,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> Record:
    """Answer every example with every method; the summary, which is also written to `folder`.

    Goes on where an earlier run of the same experiment stopped. Errors: `RunError` for a folder of another run, one
    that is in use or cannot be written, a full disk. Whatever interrupts it, finished rows stay and a summary of them
    is written.
    """
    examples = by_context(data.examples)
    if experiment.max_context_tokens is not None:
        examples = tuple(cut(e, experiment.max_context_tokens, llm.tokenizer) for e in examples)
    claim(folder, identity(experiment, data, examples, llm), llm, examples)
    with Appender(folder / run_files.ROWS) as appender:
        loop = _Loop(llm, experiment, examples, appender, on_progress)
        try:
            loop.run()
        finally:
            kept = _methods_of(appender.rows, experiment.methods)
            summary = summarize(llm, replace(experiment, methods=kept), examples, appender.rows)
            run_files.write_json(folder / run_files.SUMMARY, summary)
    return summary


class _Loop:
    def __init__(
        self,
        llm: FastMem,
        experiment: Experiment,
        examples: Sequence[Example],
        appender: Appender,
        on_progress: Callable[[Progress], None] | None,
    ):
        self.experiment, self.examples, self.appender = experiment, examples, appender
        self.on_progress = on_progress or (lambda _: None)
        self.evaluator = BatchEvaluator(llm, experiment)
        self.seconds: Counter[str] = Counter()  # by method, of this process
        self.measured: Counter[str] = Counter()
        self.done = {(row["id"], row["method"]) for row in appender.rows}
        self.base_texts = {row["id"]: row["text"] for row in appender.rows if row["method"] == "base"}
        self.started = time.perf_counter()

    def run(self) -> None:
        size = self.experiment.batch_size
        self._report()
        for start in range(0, len(self.examples), size):
            batch = self.examples[start : start + size]
            for method in self.experiment.methods:
                if any((example.id, method) not in self.done for example in batch):
                    self._answer(batch, method)

    def _answer(self, batch: Sequence[Example], method: str) -> None:
        started = time.perf_counter()
        rows = self.evaluator.rows(batch, method, self.base_texts)
        for row in rows:
            if method == "base":
                self.base_texts[row["id"]] = row["text"]
            if (row["id"], method) not in self.done:
                self.appender.append(row)
                self.appender.rows.append(row)
                self.done.add((row["id"], method))
        self.seconds[method] += time.perf_counter() - started  # type: ignore[assignment]
        self.measured[method] += len(batch)
        self._report()

    def _report(self) -> None:
        wanted = Counter({method: len(self.examples) for method in self.experiment.methods})
        left = wanted - Counter(method for _, method in self.done)
        seconds_left = None
        if all(self.measured[method] for method in left):
            seconds_left = sum(n * self.seconds[m] / self.measured[m] for m, n in left.items())
        rows = sum(wanted.values()) - sum(left.values())
        errors = sum(bool(row["error"]) for row in self.appender.rows)
        elapsed = time.perf_counter() - self.started
        self.on_progress(Progress(rows, sum(wanted.values()), errors, elapsed, seconds_left))


def summarize(llm: FastMem, experiment: Experiment, examples: Sequence[Example], rows: Sequence[Record]) -> Record:
    """Counts, means and the circumstances. complete: no row is missing."""
    kind = TASKS[experiment.task].kind
    methods = {m: summarized([row for row in rows if row["method"] == m], kind) for m in experiment.methods}
    return {
        "task": experiment.task,
        "model": {"name": model_name(llm), "revision": llm.revision},
        "examples": len(examples),
        "complete": all(found["rows"] == len(examples) for found in methods.values()),
        "methods": methods,
        "recipe": recipe_values(experiment.recipe),
        "alpha": experiment.alpha,
        "relative_top": experiment.relative_top,
        "batch_size": experiment.batch_size,
        "max_new_tokens": experiment.new_tokens,
        "scorers": asdict(experiment.scorers) if kind == "summary" else None,
        "seed": experiment.seed,
        "environment": environment(str(llm.split_model.device)),
    }


def summarized(rows: Sequence[Record], kind: Any) -> Record:
    """Scores with intervals, errors and cost of one method."""
    found: Record = {"rows": len(rows), "errors": sum(bool(row["error"]) for row in rows)}
    if not rows:
        return found
    found["scores"] = {name: asdict(value) for name, value in grading.means(rows, kind).items()}
    found["missing"] = grading.missing(rows)
    found["seconds"] = {
        part: sum(row["seconds"][part] for row in rows) / len(rows) for part in ("trunk", "steps", "decode")
    }
    found["peak_bytes"] = max(row["peak_bytes"] for row in rows)
    return found


def _methods_of(rows: Sequence[Record], wanted: Sequence[str]) -> tuple[str, ...]:
    """All methods of a folder: those asked for now, then others of earlier starts."""
    return tuple(dict.fromkeys([*wanted, *(row["method"] for row in rows)]))
