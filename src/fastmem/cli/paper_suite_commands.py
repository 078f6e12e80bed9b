"""`fastmem paper` and `fastmem suite`: many runs with one command, and one report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli.eval_commands import AnswerFlags, ProgressReporter, ScorerFlags, names, resumable
from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, given_values, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.cli.report_command import publish
from fastmem.cli.worker_flags import WorkerFlags
from fastmem.errors import InputError, TaskError, one_of

if TYPE_CHECKING:
    from fastmem.lab.run.planned_runs import Outcome, Run
    from fastmem.lab.run.runner import Progress
    from fastmem.lab.tasks import Data
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem

Limit = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Only N examples of each task, to estimate the cost.")
]
Folder = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for all runs.")]


@with_flags
def paper(
    model: ModelFlags,
    recipe: RecipeFlags,
    answers: AnswerFlags,
    scorers: ScorerFlags,
    workers: WorkerFlags,
    output: OutputFlags,
    output_dir: Folder,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="TASK=FILE",
            help="File for nq_swap, memotrap, nq, hotpotqa, cnndm, xsum or wikihow; repeatable; default: the hub.",
        ),
    ] = None,
    limit: Limit = None,
    paper_rows: Annotated[
        bool, typer.Option("--paper-rows", help="At most as many rows as the authors' code reads.")
    ] = False,
) -> None:
    """Reproduce all of the paper's tables with one model.

    --limit estimates the cost. If the command is interrupted, run it again to continue.

    Every task has its own recipe of the paper, also with --recipe paper. If any other recipe flag is given, one recipe
    is used for all runs.

    \b
    Examples:
      fastmem paper --model meta-llama/Meta-Llama-3-8B-Instruct --data wikihow=wikihowAll.csv --output runs/paper
      fastmem paper --model ID --limit 8 --output runs/cost
    """
    from fastmem.lab.run.experiment import Experiment
    from fastmem.lab.run.paper import MAX_CONTEXT_TOKENS, runs
    from fastmem.lab.run.planned_runs import load_tasks
    from fastmem.memory.recipe import Recipe

    files = {}
    for given in data or []:
        task, equals, file = given.partition("=")
        if not equals:
            raise InputError(f"--data is {given!r}: give TASK=FILE, such as wikihow=wikihowAll.csv.")
        files[task] = Path(file)
    # Values and packages are checked before data is loaded, by an experiment that is not run.
    Experiment("xsum", ("base",), Recipe(), scorers=scorers.scorers("cpu"), **given_values(answers))

    one_recipe = given_values(recipe) not in ({}, {"recipe": "paper"})

    def planned(own: "Recipe") -> "Sequence[Run]":
        return runs(own, same_recipe=one_recipe)

    known = planned(recipe.known())
    with Status(quiet=output.quiet) as status:
        status("loading data ...")
        loaded = load_tasks((run.task for run in known), files, "paper", paper_rows)
        _do(
            status,
            model,
            workers,
            output,
            output_dir,
            loaded,
            known,
            lambda llm: planned(recipe.of(llm, status, default=Recipe())),
            limit=limit,
            options=lambda device: (
                {"max_context_tokens": MAX_CONTEXT_TOKENS, "scorers": scorers.scorers(device)} | given_values(answers)
            ),
        )
    if not loaded[0]:
        raise TaskError("none of the paper's tasks has data: give local files.", options=("data",))


@with_flags
def suite(
    model: ModelFlags,
    recipe: RecipeFlags,
    answers: AnswerFlags,
    workers: WorkerFlags,
    output: OutputFlags,
    output_dir: Folder,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,..", help="Tasks separated by commas; default: all of the suite.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="M,M", help="Methods separated by commas; default: all.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder with files TASK.jsonl or folders TASK; else the hub."),
    ] = None,
    limit: Limit = None,
) -> None:
    """Evaluate all methods on six other public data sets.

    They are ConFiQA, FaithEval, SQuAD 2.0, ClashEval, NoMIRACL and CUB.

    --limit estimates the cost. If the command is interrupted, run it again to continue.

    Tasks with data neither in the folder nor on the hub are named and left out.

    \b
    Examples:
      fastmem suite --model meta-llama/Meta-Llama-3-8B-Instruct --data data --output runs/suite
      fastmem suite --model ID --tasks confiqa,squad2 --data data --limit 8 --output runs/cost
    """
    from fastmem.lab.run.experiment import Experiment
    from fastmem.lab.run.planned_runs import load_tasks
    from fastmem.lab.run.suite import METHODS, TASK_NAMES, files_in, runs
    from fastmem.memory.recipe import Recipe

    chosen = TASK_NAMES if tasks is None else tuple(dict.fromkeys(names(tasks)))
    if not chosen:
        raise InputError(f"--tasks is {tasks!r}: give at least one of {', '.join(TASK_NAMES)}.")
    for task in chosen:
        one_of(task, TASK_NAMES, "task of the suite", field="tasks")
    wanted = METHODS if methods is None else names(methods)
    # Values are checked before data is loaded, by an experiment that is not run.
    Experiment(chosen[0], wanted, recipe.known(), **given_values(answers))
    files = {} if data is None else files_in(data, chosen)
    with Status(quiet=output.quiet) as status:
        status("loading data ...")
        loaded = load_tasks(chosen, files, "suite")
        _do(
            status,
            model,
            workers,
            output,
            output_dir,
            loaded,
            runs(chosen, wanted, Recipe()),
            lambda llm: runs(chosen, wanted, recipe.of(llm, status)),
            limit=limit,
            options=lambda _: given_values(answers),
        )
    if not loaded[0]:
        raise TaskError("none of the suite's tasks has data: give a folder of local files.", options=("data",))


def _do(
    status: Status,
    model: ModelFlags,
    workers: WorkerFlags,
    output: OutputFlags,
    folder: Path,
    loaded: "tuple[Mapping[str, Data], Mapping[str, str]]",
    planned: "Sequence[Run]",
    planned_for: "Callable[[FastMem], Sequence[Run]]",
    limit: int | None,
    options: Callable[[str], dict[str, Any]],
) -> None:
    """Do the runs that have data, write the report of all that is finished, and print the cost.

    loaded: as `load_tasks` gives it. planned_for: the planned runs for the loaded model. options: fields
    of `Experiment` for a device.
    """
    from fastmem.lab.run.planned_runs import cost_table, do_runs
    from fastmem.lab.run.run_files import has_rows

    data, missing = loaded
    if not (output.quiet and data):
        for task, reason in missing.items():
            say(f"note: {task} has no data: {reason}")
    outcomes: list[Outcome] = []
    if data:
        llm = workers.driver(model).load(status)
        reporter = ProgressReporter(status, output.quiet)

        def on_progress(run: "Run", progress: "Progress") -> None:
            reporter.prefix = f"{run.name}: "
            reporter(progress)

        with workers.opened(model, llm) as answering, resumable(reporter, folder):
            outcomes = do_runs(
                llm,
                folder,
                planned_for(llm),
                data,
                limit=limit,
                on_progress=on_progress,
                workers=answering,
                **options(str(llm.split_model.device)),
            )
    status("")
    if finished := [folder / run.name for run in planned if has_rows(folder / run.name)]:
        publish(finished, folder / "report.html", output)
    if output.json:
        costs = {o.run.name: {"examples": o.examples, "hours": o.hours, "missing": None} for o in outcomes}
        absent = {"examples": 0, "hours": None}
        emit(costs | {run.name: absent | {"missing": missing[run.task]} for run in planned if run.task in missing})
    elif outcomes:
        print("\n## Cost\n\n" + cost_table(outcomes, missing), end="")
