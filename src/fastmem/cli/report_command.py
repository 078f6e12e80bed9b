"""`fastmem report`: print the tables of finished runs and write the HTML page."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmem.cli.flags import OutputFlags, with_flags
from fastmem.cli.output import emit, say
from fastmem.errors import InputError, RunError, one_of

if TYPE_CHECKING:
    from fastmem.lab.report.results import Results
    from fastmem.lab.scores.own_metric import OwnMetric


@with_flags
def report(
    output: OutputFlags,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders written by eval or search, or a folder that contains them."),
    ],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="The HTML page; default: report.html in the first folder."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(metavar="NAME", help="What is printed: markdown, csv, latex or json (one row per score)."),
    ] = "markdown",
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Also the scores of a Python file, computed from the rows; repeatable."),
    ] = None,
) -> None:
    """Regrade finished results, print tables and write an HTML page. Needs no model.

    \b
    Examples:
      fastmem report runs/nq_swap
      fastmem report runs/nq runs/nq_swap --html report.html
      fastmem report runs/nq_swap --format csv > nq_swap.csv
      fastmem report runs/nq_swap --metric my_metric.py
    """
    from fastmem.lab.report.result_formats import FORMATS
    from fastmem.lab.scores.own_metric import own_metric

    one_of(format, FORMATS, "format", field="format")
    if output.json and format != "markdown":
        raise InputError(f"--json and --format {format} both print the figures: give one of them.")
    found = [inner for folder in folders for inner in result_folders(folder)]
    target = html or folders[0] / "report.html"
    results = publish(found, target, output, format, tuple(map(own_metric, metric or [])))
    if output.json:
        means = {r.name: {m: {s: r.mean(m, s).value for s in r.columns} for m in r.rows} for r in results}
        runs = {
            r.name: {"examples": len(r.examples), "complete": r.complete, "rows": {m: len(r.rows[m]) for m in r.rows}}
            for r in results
        }
        emit({"html": str(target), "means": means, "runs": runs})


def publish(
    folders: Sequence[Path],
    target: Path,
    output: OutputFlags,
    format: str = "markdown",
    metrics: "Sequence[OwnMetric]" = (),
) -> "list[Results]":
    """Write the page of these runs and searches and, without --json, print their tables. Returns the runs.

    format: one of `FORMATS`; those that are no tables hold the runs alone. metrics: scores of one's own, computed from
    the rows.
    """
    from fastmem.lab.report import load_results, page, tables
    from fastmem.lab.report.result_formats import formatted
    from fastmem.lab.report.search_landscape import landscape, search_table
    from fastmem.lab.run import run_files

    searches = [folder for folder in folders if (folder / run_files.SEARCH).exists()]
    runs = [folder for folder in folders if folder not in searches]
    if format != "markdown" and not runs:
        raise RunError(f"{folders[0]} holds a search, which only --format markdown shows.", field="format")
    names = Counter(folder.name for folder in runs)
    results = [
        replace(load_results(folder, metrics), name=folder.name if names[folder.name] == 1 else str(folder))
        for folder in runs
    ]
    run_files.write_text(target, page(results, [landscape(folder) for folder in searches]))
    if not output.json:
        if format == "markdown":
            print((tables(results) if results else "") + "".join(search_table(folder) for folder in searches), end="")
        else:
            print(formatted(results, format), end="")
            for folder in searches:
                say(f"note: {folder} is a search, which only --format markdown shows.")
        say(f"page: {target}")
    return results


def result_folders(folder: Path) -> list[Path]:
    """The folder itself, or its subfolders with results, as `paper` and `eval` with several tasks write them."""
    from fastmem.lab.run.run_files import RUN, SEARCH

    if any((folder / name).exists() for name in (RUN, SEARCH)):
        return [folder]
    return sorted(path.parent for name in (RUN, SEARCH) for path in folder.glob(f"*/{name}")) or [folder]
