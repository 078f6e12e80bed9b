"""All of the paper's tables for one model, as runs in one folder: each resumable, each with the paper's own recipe.

Recipes and limits are those the authors publish for Llama-3-8B-Instruct (arXiv 2406.16069; IAAR-Shanghai/FastMem
`scripts/run_qa.sh`, `scripts/run_summary.sh`): fastmem+cd has a KL weight of its own on the three summary tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fastmem.errors import TaskError
from fastmem.lab.run.experiment import Experiment
from fastmem.lab.run.runner import Progress, run
from fastmem.lab.scores.summary import Scorers
from fastmem.lab.tasks import Data, load
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem

MAX_CONTEXT_TOKENS = 7500  # IAAR-Shanghai/FastMem, `doc_token`
QUESTIONS = ("base", "one-shot", "dola", "cad", "fastmem", "fastmem+cd", "fastmem+dola")
SUMMARIES = ("base", "dola", "cad", "fastmem", "fastmem+dola")


@dataclass(frozen=True)
class Run:
    """One folder of the paper. table: where its figures stand."""

    name: str
    table: str
    task: str
    methods: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Outcome:
    """What became of a run. seconds_per_example: of all its methods together, None where nothing was answered.
    examples: how many the data hold. missing: why it could not be done."""

    run: Run
    examples: int = 0
    seconds_per_example: float | None = None
    missing: str | None = None

    @property
    def hours(self) -> float | None:
        """Of the whole run, from its measured mean."""
        return None if self.seconds_per_example is None else self.seconds_per_example * self.examples / 3600


def runs(base: Recipe) -> tuple[Run, ...]:
    """The paper's tables. base: what is not published (placement, layers, ...) is taken from it."""

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


def reproduce(
    llm: FastMem,
    folder: Path,
    data: Mapping[str, Path],
    *,
    base: Recipe | None = None,
    same_recipe: bool = False,
    limit: int | None = None,
    max_context_tokens: int = MAX_CONTEXT_TOKENS,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    scorers: Scorers | None = None,
    on_progress: Callable[[Run, Progress], None] | None = None,
) -> list[Outcome]:
    """Every run of the paper, in folders of its own below `folder`; a run whose data are absent is reported as such.

    data: task -> local file; others come from the hub. same_recipe: take `base` everywhere instead of the paper's
    rates, for models that want others. limit: only so many examples of each, to measure what the whole will cost.
    """
    outcomes = []
    for planned in runs(base or Recipe()):
        recipe = base if same_recipe and base else planned.recipe
        try:
            rows = load(planned.task, data.get(planned.task))
        except TaskError as error:
            outcomes.append(Outcome(planned, missing=str(error)))
            continue
        asked = Data(rows.task, rows.examples[:limit], rows.source, rows.revision)
        experiment = Experiment(
            planned.task,
            planned.methods,
            recipe,
            max_new_tokens=max_new_tokens,
            max_context_tokens=max_context_tokens,
            batch_size=batch_size,
            scorers=scorers or Scorers(),
        )
        tell = None if on_progress is None else (lambda p, planned=planned: on_progress(planned, p))
        summary = run(llm, experiment, asked, folder / planned.name, tell)
        seconds = sum(sum(found["seconds"].values()) for found in summary["methods"].values() if found["rows"])
        # The memory is made once for all methods of a run, and every method's row states its cost.
        shared = [sum(found["seconds"][p] for p in ("trunk", "steps")) for found in summary["methods"].values()]
        made = [cost for cost in shared if cost]
        outcomes.append(Outcome(planned, len(rows.examples), seconds - sum(made) + max(made, default=0.0)))
    return outcomes


def cost_table(outcomes: list[Outcome]) -> str:
    """Seconds per example and hours of every run, from what was measured."""
    lines = ["| run | table | examples | s per example | hours |", "| --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        if outcome.missing:
            lines.append(f"| {outcome.run.name} | {outcome.run.table} | missing | | |")
            continue
        seconds, hours = outcome.seconds_per_example or 0.0, outcome.hours or 0.0
        lines.append(
            f"| {outcome.run.name} | {outcome.run.table} | {outcome.examples} | {seconds:.3g} | {hours:.3g} |"
        )
    total = sum(outcome.hours or 0.0 for outcome in outcomes)
    lines.append(f"| all | | {sum(o.examples for o in outcomes)} | | {total:.3g} |")
    said = [f"- {o.run.name} is missing: {o.missing}" for o in outcomes if o.missing]
    return "\n".join(lines + (["", *said] if said else [])) + "\n"
