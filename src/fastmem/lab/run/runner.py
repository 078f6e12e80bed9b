"""The runner: all examples are answered with all methods in batches; it writes each row at once, and resumes.

A batch is determined by the order of the examples, not by the rows that are missing. So a run that was killed decodes
the interrupted batch again as a whole and writes its missing rows, which are identical to those of an undisturbed run.
"""

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastmem.environment import environment
from fastmem.lab.run import run_files
from fastmem.lab.run.evaluate_batch import Batch, BatchEvaluator, BatchRows
from fastmem.lab.run.experiment import (
    Experiment,
    by_context,
    identity,
    model_name,
    open_run_folder,
    recipe_values,
    record_methods,
)
from fastmem.lab.run.run_files import Appender, Record
from fastmem.lab.scores import grading
from fastmem.lab.tasks import Data, Example, Kind, cut
from fastmem.lab.workers import Lost, ThisProcess, Workers
from fastmem.model import FastMem


@dataclass(frozen=True)
class Progress:
    """rows: written so far, including earlier starts, of `total`. seconds_left: estimated from the mean time of every
    method, None while a method that has rows to write is not measured yet."""

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
    workers: Workers | None = None,
) -> Record:
    """Answer every example with every method. Returns the summary, which is also written to `folder`.

    workers: who answers; by default this process. The rows do not depend on it, except for their order and seconds.

    It resumes an earlier run of the same experiment. If it is interrupted, finished rows are kept and a summary of
    them is written. Errors: `RunError` for the folder of another run, a folder that is in use or cannot be written,
    and a full disk.
    """
    examples = by_context(data.examples)
    if experiment.max_context_tokens is not None:
        examples = tuple(cut(e, experiment.max_context_tokens, llm.tokenizer) for e in examples)
    headline, task = experiment.headline(examples), experiment.definition
    opened = functools.partial(
        open_run_folder, folder, identity(experiment, data, examples, llm), llm, examples, task, headline
    )
    opened()
    with Appender(folder / run_files.ROWS) as appender:
        opened()  # again: another process may have begun a run here before this one had the folder for itself
        run_files.require_rows(appender.path, appender.rows)
        record_methods(folder, experiment.own_methods, appender.rows)
        loop = _Loop(llm, experiment, examples, appender, on_progress)
        try:
            loop.run(workers or ThisProcess(llm))
        finally:
            # The methods of this start, then those of earlier ones.
            methods = tuple(dict.fromkeys([*experiment.methods, *(row["method"] for row in appender.rows)]))
            summary = summarize(llm, experiment, methods, examples, appender.rows)
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
        self.seconds: dict[str, float] = defaultdict(float)  # by method, in this start
        self.measured: Counter[str] = Counter()  # examples by method, in this start
        self.done = {(row["id"], row["method"]) for row in appender.rows}
        self.started = time.perf_counter()
        self.parallel = 1

    def run(self, workers: Workers) -> None:
        self.parallel = workers.count
        self._report()
        make = functools.partial(BatchEvaluator, experiment=self.experiment)
        for found in workers.results(make, self._batches()):
            for rows in self.evaluator.given_up(found.unit, found.reason) if isinstance(found, Lost) else [found]:
                self._write(rows)

    def _batches(self) -> Iterator[Batch]:
        """The batches that lack rows."""
        base_texts = {row["id"]: row["text"] for row in self.appender.rows if row["method"] == "base"}
        for start in range(0, len(self.examples), self.experiment.batch_size):
            batch = tuple(self.examples[start : start + self.experiment.batch_size])
            missing = tuple(m for m in self.experiment.methods if any((e.id, m) not in self.done for e in batch))
            if missing:
                texts = {e.id: base_texts[e.id] for e in batch if e.id in base_texts}
                yield Batch(batch, missing, texts)

    def _write(self, found: BatchRows) -> None:
        for row in found.rows:
            if (row["id"], found.method) not in self.done:
                self.appender.append(row)
                self.appender.rows.append(row)
                self.done.add((row["id"], found.method))
        self.seconds[found.method] += found.seconds
        self.measured[found.method] += len(found.rows)
        self._report()

    def _report(self) -> None:
        wanted = Counter({method: len(self.examples) for method in self.experiment.methods})
        left = wanted - Counter(method for _, method in self.done)
        seconds_left = None
        if all(self.measured[method] for method in left):
            seconds_left = sum(n * self.seconds[m] / self.measured[m] for m, n in left.items()) / self.parallel
        errors = sum(bool(row["error"]) for row in self.appender.rows)
        elapsed = time.perf_counter() - self.started
        self.on_progress(Progress(wanted.total() - left.total(), wanted.total(), errors, elapsed, seconds_left))


def summarize(
    llm: FastMem, experiment: Experiment, names: Sequence[str], examples: Sequence[Example], rows: Sequence[Record]
) -> Record:
    """Counts, means, settings and environment of a run. names: its methods. complete: no row is missing."""
    kind = experiment.definition.kind
    methods = {m: method_summary([row for row in rows if row["method"] == m], kind) for m in names}
    return {
        "task": experiment.task,
        "model": {"name": model_name(llm), "revision": llm.revision},
        "examples": len(examples),
        "complete": all(found["rows"] == len(examples) for found in methods.values()),
        "methods": methods,
        "recipe": recipe_values(experiment.recipe),
        "alpha": experiment.alpha,
        "relative_top": experiment.relative_top,
        "repetition_penalty": experiment.repetition_penalty,
        "batch_size": experiment.batch_size,
        "max_new_tokens": experiment.new_tokens,
        "scorers": asdict(experiment.scorers) if kind == "summary" else None,
        "seed": experiment.seed,
        "environment": environment(str(llm.split_model.device)),
    }


def method_summary(rows: Sequence[Record], kind: Kind) -> Record:
    """Scores with intervals, errors and cost of one method."""
    found: Record = {"rows": len(rows), "errors": sum(bool(row["error"]) for row in rows)}
    if not rows:
        return found
    found["scores"] = {name: asdict(value) for name, value in grading.means(rows, kind).items()}
    found["missing"] = grading.missing(rows)
    found["seconds"] = grading.seconds(rows)
    found["peak_bytes"] = grading.peak_bytes(rows)
    return found
