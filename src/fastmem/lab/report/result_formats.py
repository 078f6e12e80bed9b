"""The scores of finished runs as CSV, LaTeX or JSON: one row per run, method and score, each with its interval."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from fastmem.lab.report.content import label, mean_text, shown_scores
from fastmem.lab.report.results import Results
from fastmem.lab.scores import statistics

FORMATS = ("markdown", "csv", "latex", "json")

# `[` and `*` would be arguments of the `\\` that ends the row before, if they stand first in a row.
_LATEX = str.maketrans(
    {character: rf"\{character}" for character in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}
    | {"[": "{[}", "]": "{]}", "*": "{*}"}
)


@dataclass(frozen=True)
class ScoreRow:
    """One score of one method.

    value, low, high: mean and 95 % interval; None if there is none. n: rows with a value. interval: how it was made,
    see `Mean.how`. rows: rows of the method; fewer than `examples` if the run is not finished.
    """

    run: str
    task: str
    model: str
    method: str
    score: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    interval: str
    rows: int
    examples: int


def formatted(results: Sequence[Results], format: str) -> str:
    """The scores in one of `FORMATS` but Markdown, which `tables` writes."""
    return {"csv": _csv, "latex": _latex, "json": _json}[format](results)


def score_rows(r: Results) -> list[ScoreRow]:
    """The scores of a run in the order of tables, without those that no method has."""
    rows = []
    for method in r.methods:
        counts = len(r.rows[method]), len(r.examples)
        for score in shown_scores(r):
            m = r.mean(method, score)
            rows.append(ScoreRow(r.name, r.task, r.model, method, score, m.value, m.low, m.high, m.n, m.how, *counts))
    return rows


def escaped(text: str) -> str:
    """Text on one line of LaTeX, without commands."""
    return " ".join(text.split()).translate(_LATEX)


def _csv(results: Sequence[Results]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(ScoreRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for r in results for row in score_rows(r))
    return text.getvalue()


def _json(results: Sequence[Results]) -> str:
    rows = [asdict(row) for r in results for row in score_rows(r)]
    return json.dumps({"confidence": statistics.CONFIDENCE, "results": rows}) + "\n"


def _latex(results: Sequence[Results]) -> str:
    """A tabular of the package booktabs, with a rule between runs."""
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{tabular}{lllllr}",
            r"\toprule",
            r"run & task & method & score & mean [95\,\% interval] & $n$ \\",
            r"\midrule",
            "\n\\midrule\n".join(map(_latex_lines, results)),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_lines(r: Results) -> str:
    titles = r.columns
    lines = []
    for row in score_rows(r):
        texts = [row.run, row.task, label(r, row.method), titles[row.score]]
        figures = [mean_text(r.mean(row.method, row.score)), str(row.n)]
        lines.append(" & ".join([*map(escaped, texts), *figures]) + r" \\")
    return "\n".join(lines)
