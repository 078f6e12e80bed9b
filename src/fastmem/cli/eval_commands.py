"""`fastmem eval` and `report`: one task, its rows, its tables."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.errors import InputError, one_of

if TYPE_CHECKING:
    from fastmem.lab.run.runner import Progress
    from fastmem.lab.scores.summary import Scorers
    from fastmem.lab.tasks import Data

DEFAULT_METHODS = "base,cad,dola,fastmem,fastmem+cd,fastmem+dola"
_SAY_EVERY_SECONDS = 30  # where nobody sees a status line


@dataclass(frozen=True)
class DataFlags:
    """Which rows."""

    heading: ClassVar[str] = "Data"

    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FILE", help="A local file or folder (parquet, json, jsonl, csv); else the hub."
        ),
    ] = None
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Another split than the reported one.")] = None
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N examples.")] = None
    strip_markup: Annotated[bool, typer.Option("--strip-markup", help="Take <P>-style tags out of passages.")] = False

    def load(self, task: str, split: str | None = None) -> "Data":
        """The examples. split: taken where none is given."""
        from fastmem.lab.tasks import load

        return load(task, self.data, split=self.split or split, limit=self.limit, strip_markup=self.strip_markup)


@dataclass(frozen=True)
class ScorerFlags:
    """Models that score summaries."""

    heading: ClassVar[str] = "Summary scores"

    bertscore: Annotated[
        str | None, typer.Option(metavar="ID", help="Encoder of BERTScore, or none; roberta-large.")
    ] = None
    bertscore_layer: Annotated[int | None, typer.Option(metavar="N", help="Its layer; 17.")] = None
    factkb: Annotated[str | None, typer.Option(metavar="ID", help="FactKB's model, or none; bunsenfeng/FactKB.")] = (
        None
    )
    factkb_tokenizer: Annotated[str | None, typer.Option(metavar="ID", help="FactKB's tokenizer; roberta-base.")] = (
        None
    )
    hhem: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Also HHEM-2.1: vectara/hallucination_evaluation_model (runs its code)."),
    ] = None

    def scorers(self, device: str) -> "Scorers":
        """The record that scoring takes; "none" leaves a score out."""
        from fastmem.lab.scores.summary import Scorers

        names = ("bertscore", "bertscore_layer", "factkb", "factkb_tokenizer", "hhem")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        given = {name: None if value == "none" else value for name, value in given.items()}
        return Scorers(**given, device=device)


@with_flags
def evaluate(
    model: ModelFlags,
    recipe: RecipeFlags,
    data: DataFlags,
    scorers: ScorerFlags,
    output: OutputFlags,
    task: Annotated[
        str,
        typer.Option("--task", metavar="NAME,..", help="nq_swap, memotrap, xsum, ...; several with commas between."),
    ],
    output_dir: Annotated[
        Path,
        typer.Option("--output", metavar="DIR", help="Where rows and summary go; of several tasks, a folder each."),
    ],
    methods: Annotated[
        str, typer.Option(metavar="M,M", help="Methods with commas between; one-shot is one, too.")
    ] = DEFAULT_METHODS,
    alpha: Annotated[float | None, typer.Option(metavar="X", help="Strength of a contrast; 0.5.")] = None,
    relative_top: Annotated[
        float | None, typer.Option(metavar="X", help="Plausibility cut of a contrast; DoLa's is 0.1, others none.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer; the task's.")] = None,
    max_context_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Cut longer documents; the paper's limit is 7500.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples answered side by side.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", help="Recorded; nothing is drawn.")] = 0,
    part: Annotated[
        str, typer.Option(metavar="PART", help="all; held-out: what search left alone; searched: the other half.")
    ] = "all",
) -> None:
    """Answer the examples of tasks by every method; print the table.

    Every row is written as it is made. Stopped at any instant, the same command goes on where it was.

    \b
    Examples:
      fastmem eval --task world,world_swap --methods base,fastmem --limit 100 --output runs/world
      fastmem eval --task nq_swap --model meta-llama/Meta-Llama-3-8B-Instruct --output runs/nq_swap
      fastmem eval --task nq_swap --data nq_swap.json --recipe recipe.json --output runs/tuned
    """
    recipe.check()
    from fastmem.lab.report import load_results, tables
    from fastmem.lab.run.experiment import Experiment
    from fastmem.lab.run.runner import run
    from fastmem.lab.search.search import PARTS, part_of
    from fastmem.memory.recipe import Recipe

    one_of(part, PARTS, "part", field="part")
    tasks = names(task)
    if not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"--task is {task!r}: give each task once, and at least one.")

    def experiment(task: str, made: Recipe, device: str) -> Experiment:
        return Experiment(
            task,
            names(methods),
            made,
            alpha=0.5 if alpha is None else alpha,
            relative_top=relative_top,
            max_new_tokens=max_new_tokens,
            max_context_tokens=max_context_tokens,
            batch_size=batch_size,
            seed=seed,
            scorers=scorers.scorers(device),
        )

    for each in tasks:
        experiment(each, recipe.make(Recipe()), "cpu")  # refuses before anything is loaded
    folders = {each: output_dir / each if len(tasks) > 1 else output_dir for each in tasks}
    summaries = {}
    with Status(quiet=output.quiet) as status:
        status("loading data ...")
        rows = {each: part_of(data.load(each), part) for each in tasks}  # type: ignore[arg-type]
        status(f"loading {model.model or 'the embedded model'} ...")
        llm = model.load()
        for each, folder in folders.items():
            planned = experiment(each, recipe.make(llm.recipe), str(llm.split_model.device))
            telling = Telling(status, output.quiet, f"{each}: " if len(tasks) > 1 else "")
            with resumable(telling, folder):
                summaries[each] = run(llm, planned, rows[each], folder, telling)
    if output.json:
        emit(summaries if len(tasks) > 1 else summaries[tasks[0]])
    else:
        print(tables([load_results(folder) for folder in folders.values()]), end="")


@with_flags
def report(
    output: OutputFlags,
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of eval or search, or one that holds such folders.")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="The page; report.html in the first folder.")
    ] = None,
) -> None:
    """Regrade finished rows, print the tables and write one HTML page. Needs no model.

    \b
    Examples:
      fastmem report runs/nq_swap
      fastmem report runs/nq runs/nq_swap --html report.html
    """
    from fastmem.lab.report import load_results, page, tables
    from fastmem.lab.report.search_landscape import SEARCH, landscape, search_table
    from fastmem.lab.run import run_files

    found = [inner for folder in folders for inner in _with_results(folder)]
    searches = [folder for folder in found if (folder / SEARCH).exists()]
    results = [load_results(folder) for folder in found if folder not in searches]
    target = html or folders[0] / "report.html"
    run_files.write_text(target, page(results, [landscape(folder) for folder in searches]))
    if output.json:
        means = {r.name: {m: {s: r.mean(m, s).value for s in _scores(r)} for m in r.rows} for r in results}
        emit({"html": str(target), "means": means})
        return
    print((tables(results) if results else "") + "".join(search_table(folder) for folder in searches), end="")
    say(f"page: {target}")


def _with_results(folder: Path) -> list[Path]:
    """The folder itself; or those in it that hold results, as `paper` and an `eval` of several tasks make them."""
    from fastmem.lab.report.search_landscape import SEARCH
    from fastmem.lab.run.run_files import RUN

    if any((folder / name).exists() for name in (RUN, SEARCH)):
        return [folder]
    return sorted(path.parent for name in (RUN, SEARCH) for path in folder.glob(f"*/{name}")) or [folder]


def names(given: str) -> tuple[str, ...]:
    """`base,cad` as names."""
    return tuple(name.strip() for name in given.split(",") if name.strip())


class Telling:
    """Progress for people: a status line on a terminal; elsewhere a line now and then."""

    def __init__(self, status: Status, quiet: bool, what: str = ""):
        self.status, self.quiet, self.what = status, quiet, what
        self.finished = "0 rows"
        self._said = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        self.finished = f"{self.what}{progress.rows} rows"
        text = f"{self.what}{progress.rows} of {progress.total} rows"
        if progress.errors:
            text += f", {progress.errors} errors"
        text += f", {duration(progress.seconds)}"
        if progress.rows < progress.total:
            left = progress.seconds_left
            text += ", time left not yet measured" if left is None else f", about {duration(left)} left"
        self.show(text)

    def show(self, text: str) -> None:
        """On the status line, or as a line of its own where the last one was long ago."""
        if self.status.shown:
            self.status(text)
        elif not self.quiet and time.monotonic() - self._said >= _SAY_EVERY_SECONDS:
            self._said = time.monotonic()
            say(text)


@contextmanager
def resumable(telling: Telling, folder: Path) -> Iterator[None]:
    """An interrupt within the block ends the command with what is finished and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        telling.status("")
        say(f"interrupted: {telling.finished} are finished in {folder}; the same command goes on.")
        raise typer.Exit(130) from None


def duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _scores(results: Any) -> Sequence[str]:
    from fastmem.lab.scores import grading

    return list(grading.columns(results.kind))
