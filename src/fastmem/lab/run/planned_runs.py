"""Several runs in one folder, each resumable, and their cost: what the paper's tables and the suite have in common."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmem.errors import MissingPackageError, TaskError, one_of
from fastmem.lab.run.experiment import Experiment
from fastmem.lab.run.runner import Progress, run
from fastmem.lab.tasks import Data, load
from fastmem.lab.workers import Workers
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem


@dataclass(frozen=True)
class Run:
    """One planned run. name: of its folder. table: what it is for, such as the paper's table with its figures."""

    name: str
    table: str
    task: str
    methods: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Outcome:
    """The cost of a run. examples: the number in the data. seconds_per_example: of all methods together, measured."""

    run: Run
    examples: int
    seconds_per_example: float

    @property
    def hours(self) -> float:
        """Hours of the run over all examples, from the measured mean."""
        return self.seconds_per_example * self.examples / 3600


def load_tasks(
    tasks: Iterable[str], files: Mapping[str, Path], series: str, paper_rows: bool = False
) -> tuple[dict[str, Data], dict[str, str]]:
    """(task -> its examples, task -> why it has none) for all these tasks.

    files: task -> local file; other tasks are loaded from the hub. series: what the tasks belong to, for errors.
    paper_rows: as for `load`. Errors: `InputError` for a file of a task that is none of them.
    """
    tasks = tuple(dict.fromkeys(tasks))
    for given in files:
        one_of(given, tasks, f"task of the {series}")
    found, missing = {}, {}
    for task in tasks:
        try:
            found[task] = load(task, files.get(task), paper_rows=paper_rows)
        except (MissingPackageError, TaskError) as error:
            missing[task] = str(error)
    return found, missing


def do_runs(
    llm: FastMem,
    folder: Path,
    planned: Sequence[Run],
    data: Mapping[str, Data],
    *,
    limit: int | None = None,
    on_progress: Callable[[Run, Progress], None] | None = None,
    workers: Workers | None = None,
    **options: Any,
) -> list[Outcome]:
    """Do the runs whose task has `data` (task -> examples), each in its own folder below `folder`.

    limit: use only this many examples of each task, to estimate the cost of the whole. workers: as for
    `run`. options: further fields of `Experiment`.
    """
    outcomes = []
    for each in planned:
        if each.task not in data:
            continue
        whole = data[each.task]
        experiment = Experiment(each.task, each.methods, each.recipe, **options)
        report = None if on_progress is None else functools.partial(on_progress, each)
        data_used = replace(whole, examples=whole.examples[:limit])
        summary = run(llm, experiment, data_used, folder / each.name, report, workers)
        # Without methods of an earlier start. All share one memory, but the rows of each include its cost.
        costs = [summary["methods"][method]["seconds"] for method in each.methods]
        memorizing = [seconds["trunk"] + seconds["steps"] for seconds in costs]
        per_example = sum(seconds["decode"] for seconds in costs) + max(memorizing)
        outcomes.append(Outcome(each, len(whole.examples), per_example))
    return outcomes


def cost_table(outcomes: Sequence[Outcome], missing: Mapping[str, str]) -> str:
    """A Markdown table of the measured seconds per example and the hours of every run, and why tasks are missing."""
    lines = ["| run | table | examples | s per example | hours |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {o.run.name} | {o.run.table} | {o.examples} | {o.seconds_per_example:.3g} | {o.hours:.3g} |"
        for o in outcomes
    ]
    lines.append(f"| all | | {sum(o.examples for o in outcomes)} | | {sum(o.hours for o in outcomes):.3g} |")
    reasons = [f"- {task} is missing: {reason}" for task, reason in missing.items()]
    return "\n".join(lines + (["", *reasons] if reasons else [])) + "\n"
