"""`fastmem eval`: run tasks and print their tables."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, fields_named, given_values, option, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.cli.worker_flags import WorkerFlags
from fastmem.errors import InputError, one_of

if TYPE_CHECKING:
    from fastmem.lab.run.runner import Progress
    from fastmem.lab.scores.summary import Scorers
    from fastmem.lab.tasks import Data
    from fastmem.memory.recipe import Recipe

DEFAULT_METHODS = "base,cad,dola,fastmem,fastmem+cd,fastmem+dola"
_LINE_INTERVAL_SECONDS = 30  # between progress lines if standard error is not a terminal


@dataclass(frozen=True)
class DataFlags:
    """The examples of a task."""

    heading: ClassVar[str] = "Data"

    data: str | None = option("Local file or folder (parquet, json, jsonl, csv, tsv); default: the hub.", "FILE")
    columns: str | None = option("Task qa: columns of FILE, as in question=Q,answer=A,document=D.", "P=NAME,..")
    documents: Path | None = option("Task qa: folder of the files that FILE names, or one file.", "DIR")  # noqa: RUF009
    split: str | None = option("Split of the data set; default: the one whose results are reported.", "NAME")
    limit: int | None = option("Only the first N examples.", "N")
    strip_markup: bool = option("Remove <P>-style tags from passages.", default=False)
    paper_rows: bool = option(
        "At most as many rows as the authors' code reads; see docs/reference/differences.md.", default=False
    )

    def load(self, task: str, split: str | None = None) -> "Data":
        """The examples of a task. split: used if --split is not given."""
        from fastmem.lab.tasks import load
        from fastmem.lab.tasks.own_questions import named_columns

        return load(
            task,
            self.data,
            split=self.split or split,
            limit=self.limit,
            strip_markup=self.strip_markup,
            paper_rows=self.paper_rows,
            columns=None if self.columns is None else named_columns(self.columns),
            documents=self.documents,
        )


@dataclass(frozen=True)
class AnswerFlags:
    """How the examples are answered. What is not given is the default of `Experiment`."""

    heading: ClassVar[str] = "Answers"

    alpha: float | None = option("Strength of a contrast; default: 0.5.", "X")
    relative_top: float | None = option("Plausibility cut of a contrast; default: 0.1 for DoLa, else none.", "X")
    repetition_penalty: float | None = option("Above 1 reduces repetition; the authors' DoLa has 1.2.", "X")
    max_new_tokens: int | None = option("Longest answer, in tokens; default: the task's.", "N", min=1)
    max_context_tokens: int | None = option("Cut documents to N tokens; default of paper: 7500.", "N", min=1)
    batch_size: int | None = option("Examples answered at the same time; default: 16.", "N", min=1)


@dataclass(frozen=True)
class ScorerFlags:
    """The models that score summaries."""

    heading: ClassVar[str] = "Summary scores"

    bertscore: str | None = option("Encoder of BERTScore, or none; default: roberta-large.", "ID")
    bertscore_layer: int | None = option("Layer of the encoder; default: 17.", "N", min=1)
    factkb: str | None = option("Model of FactKB, or none; default: bunsenfeng/FactKB.", "ID")
    factkb_tokenizer: str | None = option("Tokenizer of FactKB; default: roberta-base.", "ID")
    hhem: str | None = option("Also HHEM-2.1: vectara/hallucination_evaluation_model (runs its code).", "ID")

    def scorers(self, device: str) -> "Scorers":
        """The scorers to use; "none" omits a score."""
        from fastmem.lab.scores.summary import Scorers

        given: dict[str, Any] = {
            name: None if value == "none" else value for name, value in given_values(self).items()
        }
        return Scorers(**given, device=device)


@with_flags
def evaluate(
    model: ModelFlags,
    recipe: RecipeFlags,
    data: DataFlags,
    answers: AnswerFlags,
    scorers: ScorerFlags,
    workers: WorkerFlags,
    output: OutputFlags,
    task: Annotated[
        str,
        typer.Option(
            "--task", metavar="NAME,..", help="nq_swap, qa, xsum, ..., or a Python file; several separated by commas."
        ),
    ],
    output_dir: Annotated[
        Path,
        typer.Option("--output", metavar="DIR", help="Folder for the results; one subfolder per task if several."),
    ],
    methods: Annotated[
        str, typer.Option(metavar="M,M", help="Methods separated by commas; also one-shot, and Python files.")
    ] = DEFAULT_METHODS,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Also the scores of a Python file, repeatable; see docs/guides/extending.md."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Recorded with the results; nothing is random.")] = 0,
    part: Annotated[
        str,
        typer.Option(
            metavar="PART", help="all, held-out (the half that search does not use) or searched (the other half)."
        ),
    ] = "all",
) -> None:
    """Answer the examples of tasks with each method; print the table.

    Each result is written at once. If the command is interrupted, run it again to continue.

    \b
    Examples:
      fastmem eval --task world,world_swap --methods base,fastmem --limit 100 --output runs/world
      fastmem eval --task nq_swap --model meta-llama/Meta-Llama-3-8B-Instruct --output runs/nq_swap
      fastmem eval --task nq_swap --data nq_swap.json --recipe recipe.json --output runs/tuned
      fastmem eval --task qa --data questions.csv --documents policies --output runs/policies
      fastmem eval --task my_task.py --metric my_metric.py --output runs/mine
    """
    from fastmem.lab.python_file import is_python_file
    from fastmem.lab.report import load_results, tables
    from fastmem.lab.run.experiment import Experiment
    from fastmem.lab.run.own_method import own_method
    from fastmem.lab.run.runner import run
    from fastmem.lab.scores.own_metric import own_metric
    from fastmem.lab.search.search import PARTS, part_of
    from fastmem.lab.tasks import task_named

    one_of(part, PARTS, "part", field="part")
    tasks = {Path(name).stem if is_python_file(name) else name: name for name in names(task)}
    if not tasks or len(tasks) < len(names(task)):
        raise InputError(f"--task is {task!r}: give at least one task, and each task once.")

    metrics = tuple(map(own_metric, metric or []))
    with fields_named({"method": "methods"}):
        own_methods = {name: own_method(name) for name in names(methods) if is_python_file(name)}

    def experiment(task: str, made: "Recipe", device: str) -> Experiment:
        definition = task_named(task)
        return Experiment(
            task if definition.file is None else definition.file.label,
            tuple(own_methods[name].file.label if name in own_methods else name for name in names(methods)),
            made,
            **given_values(answers),
            seed=seed,
            scorers=scorers.scorers(device),
            own_task=definition if definition.file else None,
            metrics=metrics,
            own_methods=tuple(own_methods.values()),
        )

    # Checks the arguments before anything is loaded.
    here = workers.driver(model)
    checked = {each: experiment(name, recipe.known(), "cpu") for each, name in tasks.items()}
    folders = {each: output_dir / each if len(tasks) > 1 else output_dir for each in tasks}
    summaries = {}
    with Status(quiet=output.quiet) as status:
        status("loading data ...")
        data_of_task = {each: part_of(data.load(name), part) for each, name in tasks.items()}  # type: ignore[arg-type]
        for each, loaded in data_of_task.items():
            checked[each].headline(loaded.examples)
        llm = here.load(status)
        made = recipe.of(llm, status)
        with workers.opened(model, llm) as answering:
            for each, folder in folders.items():
                planned = replace(
                    checked[each],
                    recipe=made,
                    scorers=scorers.scorers(str(llm.split_model.device)),
                )
                reporter = ProgressReporter(status, output.quiet, f"{each}: " if len(tasks) > 1 else "")
                with resumable(reporter, folder):
                    summaries[each] = run(llm, planned, data_of_task[each], folder, reporter, answering)
    if output.json:
        emit(summaries if len(tasks) > 1 else next(iter(summaries.values())))
    else:
        print(tables([load_results(folder) for folder in folders.values()]), end="")


def names(given: str) -> tuple[str, ...]:
    """`base,cad` as a tuple."""
    return tuple(name.strip() for name in given.split(",") if name.strip())


class ProgressReporter:
    """Shows progress: a status line on a terminal, otherwise a line every 30 seconds.

    prefix: put before the numbers. finished: what an interrupt reports as finished.
    """

    def __init__(self, status: Status, quiet: bool, prefix: str = ""):
        self.status, self.quiet, self.prefix = status, quiet, prefix
        self.finished = "0 rows"
        self._last_line = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        self.finished = f"{self.prefix}{progress.rows} rows"
        text = f"{self.prefix}{progress.rows} of {progress.total} rows"
        if progress.errors:
            text += f", {progress.errors} errors"
        text += f", {duration(progress.seconds)}"
        if progress.rows < progress.total:
            left = progress.seconds_left
            text += ", time left not yet known" if left is None else f", about {duration(left)} left"
        self.show(text)

    def show(self, text: str) -> None:
        """On the status line; without one, as a new line if the last one is old enough."""
        if self.status.shown:
            self.status(text)
        elif not self.quiet and time.monotonic() - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            say(text)


@contextmanager
def resumable(reporter: ProgressReporter, folder: Path) -> Iterator[None]:
    """On an interrupt within the block, print what is finished and how to continue, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        reporter.status("")
        say(f"interrupted: {reporter.finished} are finished in {folder}; run the same command again to continue.")
        raise typer.Exit(130) from None


def duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
