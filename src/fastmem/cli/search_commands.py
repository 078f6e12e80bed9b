"""`fastmem search` and `fastmem lm-eval`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmem.cli.eval_commands import (
    DataFlags,
    ProgressReporter,
    duration,
    resumable,
)
from fastmem.cli.flags import (
    LAYERS,
    ModelFlags,
    OutputFlags,
    fields_named,
    numbers,
    require_effect,
    with_flags,
)
from fastmem.cli.output import Status, emit, say
from fastmem.cli.worker_flags import WorkerFlags
from fastmem.errors import one_of

if TYPE_CHECKING:
    from fastmem.lab.search import search as recipe_search

TRIALS = 40


@with_flags
def search(
    model: ModelFlags,
    data: DataFlags,
    workers: WorkerFlags,
    output: OutputFlags,
    task: Annotated[
        str, typer.Option("--task", metavar="NAME", help="nq_swap, qa, world_swap, ..., or a Python file.")
    ],
    output_dir: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the recipe and all points.")],
    sampler: Annotated[str, typer.Option(metavar="NAME", help="grid (all points) or tpe (Optuna).")] = "grid",
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"tpe: number of points; default: {TRIALS}.")
    ] = None,
    rates: Annotated[
        str, typer.Option(metavar="X,X", help="Learning rates, as in the paper.")
    ] = "1e-6,3e-6,1e-5,3e-5",
    steps: Annotated[str, typer.Option(metavar="N,N", help="Numbers of steps, as in the paper.")] = "10,20,50",
    kls: Annotated[str, typer.Option(metavar="X,X", help="KL weights, as in the paper.")] = "0.01,0.03,0.1,0.3,1",
    layers: Annotated[
        str, typer.Option(metavar="N,N/N", help="Sets of layers separated by /, such as -1/-2,-1.")
    ] = "-1",
    alphas: Annotated[str, typer.Option(metavar="X,X", help="Contrast: 0 is fastmem, above 0 fastmem+cd.")] = "0",
    relative_top: Annotated[float | None, typer.Option(metavar="X", help="Plausibility cut of the contrast.")] = None,
    placement: Annotated[
        str | None, typer.Option(metavar="WHERE", help="Placement of every recipe: assistant, user, text or prompt.")
    ] = None,
    shortlist: Annotated[
        int | None, typer.Option(metavar="N", help="Approximate the softmax with N tokens: faster steps.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest answer, in tokens; default: the task's.")
    ] = None,
    on_test: Annotated[bool, typer.Option("--on-test", help="Allow a search on the test split.")] = False,
) -> None:
    """Search for the best recipe on half of the questions.

    The recipe is written to a file. The other half of the questions is for `eval --part held-out`. If the command is
    interrupted, run it again to continue.

    \b
    Examples:
      fastmem search --task world_swap --rates 1e-4,3e-4,1e-3,3e-3 --limit 50 --output runs/search
      fastmem search --task nq_swap --model ID --sampler tpe --trials 40 --output runs/tpe
      fastmem eval --task nq_swap --model ID --part held-out --recipe runs/tpe/recipe.json --output runs/tuned
    """
    from fastmem.lab.report.search_landscape import search_table
    from fastmem.lab.search.grid import Space
    from fastmem.lab.search.search import check_examples, require_packages, search_grid, search_tpe, searchable
    from fastmem.lab.tasks import embedded_world, task_named
    from fastmem.memory.recipe import Recipe

    if one_of(sampler, ("grid", "tpe"), "sampler", field="sampler") == "grid":
        require_effect({"--trials": trials}, "--sampler tpe: a grid has all its points", "sampler")
    require_packages(task_named(task), sampler)

    def space(default: Recipe) -> Space:
        with fields_named({"learning_rate": "rates", "kl_weight": "kls", "alpha": "alphas"}):
            return Space(
                replace(default, placement=placement or default.placement, shortlist=shortlist),
                numbers("--rates", rates, float, "numbers separated by commas"),
                numbers("--steps", steps, int, "whole numbers separated by commas"),
                numbers("--kls", kls, float, "numbers separated by commas"),
                tuple(numbers("--layers", part, int, LAYERS) for part in layers.split("/")),
                numbers("--alphas", alphas, float, "numbers separated by commas"),
                relative_top,
            )

    space(Recipe())  # checks the values before anything is loaded
    examples = searchable(data.load(task, "dev" if task in embedded_world.TASKS else None), on_test)
    check_examples(examples)
    with Status(quiet=output.quiet) as status:
        llm = workers.driver(model).load(status)
        reporter = ProgressReporter(status, output.quiet)
        unit = "examples" if sampler == "grid" else "trials"

        def on_progress(progress: "recipe_search.Progress") -> None:
            reporter.finished = f"{progress.done} {unit}"
            reporter.show(f"{progress.done} of {progress.total} {unit}, {duration(progress.seconds)}")

        found, tokens = space(llm.recipe), max_new_tokens
        with workers.opened(model, llm) as answering, resumable(reporter, output_dir):
            if sampler == "grid":
                result = search_grid(llm, found, examples, output_dir, tokens, on_progress, answering)
            else:
                result = search_tpe(llm, found, examples, output_dir, trials or TRIALS, tokens, on_progress, answering)
    best, recipe_file = result["best"], output_dir / "recipe.json"
    if output.json:
        emit({"best": best, "points": len(result["points"]), "recipe": str(recipe_file)})
        return
    print(search_table(output_dir), end="")
    decoding = f" --methods base,fastmem+cd --alpha {best['alpha']:g}" if best["alpha"] else ""
    decoding += f" --relative-top {relative_top:g}" if decoding and relative_top is not None else ""
    say(f"recipe: {recipe_file}; evaluate it with: eval --part held-out --recipe FILE{decoding}")


lm_eval = typer.Typer(add_completion=False, rich_markup_mode=None)


@lm_eval.command("lm-eval", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
def run_lm_eval(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS...", help="Arguments of lm-eval.")] = None,
) -> None:
    """Run lm-evaluation-harness with the model type "fastmem".

    FastMem's additional tasks are included. All arguments are passed to lm-eval.

    \b
    Examples:
      fastmem lm-eval ls tasks
      fastmem lm-eval --model fastmem --model_args pretrained=ID,method=fastmem --tasks fastmem_nq_swap --limit 50
    """
    from fastmem.lab.harness import run

    run(arguments or [])
