"""`fastmem compare`: two finished runs on the same examples."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmem.cli.eval_commands import names
from fastmem.cli.flags import OutputFlags, with_flags
from fastmem.cli.output import Status, emit
from fastmem.cli.report_command import result_folders
from fastmem.errors import InputError, RunError

if TYPE_CHECKING:
    from fastmem.lab.report.run_comparison import RunComparison
    from fastmem.lab.scores.own_metric import OwnMetric

log = logging.getLogger("fastmem")


@with_flags
def compare(
    output: OutputFlags,
    run_a: Annotated[
        Path, typer.Argument(metavar="RUN_A", help="Folder written by eval, or a folder that contains several.")
    ],
    run_b: Annotated[
        Path | None, typer.Argument(metavar="RUN_B", help="The other run; default: the same, for two methods of it.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="M,M", help="Methods to compare; default: all that both runs have.")
    ] = None,
    method_a: Annotated[
        str | None, typer.Option("--method-a", metavar="M", help="Compare this method of RUN_A with --method-b.")
    ] = None,
    method_b: Annotated[str | None, typer.Option("--method-b", metavar="M", help="The method of RUN_B.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Also the scores of a Python file, computed from the rows; repeatable."),
    ] = None,
    list_rows: Annotated[bool, typer.Option("--list", help="Also the rows on which they differ.")] = False,
) -> None:
    """Compare two finished runs on the examples that both have. Needs no model.

    It shows each method's scores in both runs, the paired difference, a test of it, and which settings differ.

    \b
    Examples:
      fastmem compare runs/ten_steps runs/two_steps
      fastmem compare runs/ten_steps runs/two_steps --methods fastmem --list
      fastmem compare runs/nq_swap --method-a cad --method-b fastmem
    """
    from fastmem.lab.report.comparison_table import comparison_record, comparison_table
    from fastmem.lab.report.run_comparison import match_runs
    from fastmem.lab.scores.own_metric import own_metric

    chosen = tuple(dict.fromkeys(names(methods or "")))
    if methods is not None and (not chosen or method_a or method_b):
        wrong = "names no method" if not chosen else "cannot be given with --method-a and --method-b"
        raise InputError(f"--methods {methods!r} {wrong}: give method names, or one method for each run.")
    if bool(method_a) != bool(method_b):
        raise InputError("one method is given: a comparison of methods needs both.", options=("method_a", "method_b"))
    run_b = run_b or run_a
    if run_a.resolve() == run_b.resolve() and (not method_a or method_a == method_b):
        raise InputError(
            f"{run_a} is compared with itself: give another run, or two methods of this one.",
            options=("method_a", "method_b"),
        )
    metrics = tuple(map(own_metric, metric or []))
    pairs, alone = match_runs(_runs(run_a), _runs(run_b))
    for folder in alone:
        log.info("%s has no partner in the other folder and is left out.", folder)
    with Status(quiet=output.quiet) as status:

        def comparisons() -> "Iterator[RunComparison]":
            for a, b in pairs:
                status(f"comparing {a} and {b} ...")
                yield _comparison(a, b, metrics, (chosen, method_a, method_b))

        if output.json:
            records = [comparison_record(each, list_rows) for each in comparisons()]
        else:
            text = "\n".join(comparison_table(each, list_rows) for each in comparisons())
    if output.json:
        emit({"comparisons": records, "unpaired": [str(folder) for folder in alone]})
    else:
        print(text, end="")


def _runs(folder: Path) -> list[Path]:
    """The runs in a folder. Of several, those without a row are left out. Errors: `RunError` for a search."""
    from fastmem.lab.run.run_files import SEARCH, has_rows

    runs = [found for found in result_folders(folder) if not (found / SEARCH).exists()]
    if not runs:
        raise RunError(
            f"{folder} holds a search, which has no rows to compare: give a folder that `fastmem eval` wrote."
        )
    finished = [found for found in runs if has_rows(found)]
    if len(runs) == 1 or not finished:
        return runs
    for found in runs:
        if found not in finished:
            log.info("%s has no finished rows yet and is left out.", found)
    return finished


def _comparison(
    a: Path, b: Path, metrics: "Sequence[OwnMetric]", methods: tuple[Sequence[str], str | None, str | None]
) -> "RunComparison":
    from fastmem.lab.report import load_results
    from fastmem.lab.report.run_comparison import compare_runs, method_pairs

    first = replace(load_results(a, metrics), name=str(a))
    second = first if a.resolve() == b.resolve() else replace(load_results(b, metrics), name=str(b))
    return compare_runs(first, second, method_pairs(first, second, *methods))
