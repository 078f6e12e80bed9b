"""All tables of the paper for one model, as resumable runs in one folder, each with the paper's recipe.

Recipes and limits are those published for Llama-3-8B-Instruct (arXiv 2406.16069; IAAR-Shanghai/FastMem
`scripts/run_qa.sh`, `scripts/run_summary.sh`). fastmem+cd has its own KL weight on the three summary tasks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmem.errors import MissingPackageError, TaskError, one_of
from fastmem.lab.run.experiment import Experiment
from fastmem.lab.run.runner import Progress, run
from fastmem.lab.tasks import Data, load
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem

MAX_CONTEXT_TOKENS = 7500  # IAAR-Shanghai/FastMem, `doc_token`
QUESTIONS = ("base", "one-shot", "dola", "cad", "fastmem", "fastmem+cd", "fastmem+dola")
SUMMARIES = ("base", "dola", "cad", "fastmem", "fastmem+dola")


@dataclass(frozen=True)
class Run:
    """One run of the paper. name: of its folder. table: the paper's table with its figures."""

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


def runs(base: Recipe) -> tuple[Run, ...]:
    """The paper's tables. base: supplies the values that are not published (placement, layers, ...)."""

    def recipe(rate: float, kl: float, steps: int) -> Recipe:
        return replace(base, learning_rate=rate, kl_weight=kl, steps=steps)

    question = recipe(1e-5, 0.1, 10)
    planned = [
        Run(task, "accuracy, format failure" if task in ("nq", "nq_swap") else "accuracy", task, QUESTIONS, question)
        for task in ("nq_swap", "memotrap", "nq", "hotpotqa")
    ]
    for task, plain, contrasted in (
        ("cnndm", recipe(3e-6, 1.0, 10), recipe(3e-6, 0.01, 10)),
        ("xsum", recipe(1e-5, 1.0, 10), recipe(1e-5, 0.3, 10)),
        ("wikihow", recipe(1e-5, 0.03, 20), recipe(1e-5, 0.03, 20)),
    ):
        planned.append(Run(task, "summaries", task, SUMMARIES, plain))
        planned.append(Run(f"{task}_cd", "summaries", task, ("fastmem+cd",), contrasted))
    return tuple(planned)


def load_tasks(files: Mapping[str, Path], paper_rows: bool = False) -> tuple[dict[str, Data], dict[str, str]]:
    """(task -> its examples, task -> why it has none) for all tasks of the paper.

    files: task -> local file; other tasks are loaded from the hub. paper_rows: as for `load`. Errors: `InputError` for
    a task the paper lacks.
    """
    tasks = dict.fromkeys(planned.task for planned in runs(Recipe()))
    for given in files:
        one_of(given, tasks, "task of the paper")
    found, missing = {}, {}
    for task in tasks:
        try:
            found[task] = load(task, files.get(task), paper_rows=paper_rows)
        except (MissingPackageError, TaskError) as error:
            missing[task] = str(error)
    return found, missing


def reproduce(
    llm: FastMem,
    folder: Path,
    data: Mapping[str, Data],
    *,
    base: Recipe | None = None,
    same_recipe: bool = False,
    limit: int | None = None,
    on_progress: Callable[[Run, Progress], None] | None = None,
    **options: Any,
) -> list[Outcome]:
    """Do the paper's runs over `data` (task -> examples), each in its own folder below `folder`.

    same_recipe: use `base` for all runs instead of the paper's recipes, for models that need other rates. limit: use
    only this many examples of each task, to estimate the cost of the whole. options: further fields of `Experiment`.
    """
    options = {"max_context_tokens": MAX_CONTEXT_TOKENS} | options
    outcomes = []
    for planned in runs(base or Recipe()):
        if planned.task not in data:
            continue
        whole = data[planned.task]
        recipe = base if same_recipe and base else planned.recipe
        experiment = Experiment(planned.task, planned.methods, recipe, **options)
        report = None if on_progress is None else functools.partial(on_progress, planned)
        summary = run(llm, experiment, replace(whole, examples=whole.examples[:limit]), folder / planned.name, report)
        # All methods of a run share one memory, but the rows of each include its cost.
        costs = [method["seconds"] for method in summary["methods"].values()]
        memorizing = [seconds["trunk"] + seconds["steps"] for seconds in costs]
        per_example = sum(seconds["decode"] for seconds in costs) + max(memorizing)
        outcomes.append(Outcome(planned, len(whole.examples), per_example))
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
