"""From a row and its example to its scores; from many rows to means. Needs no model, so results can be regraded.

A row that ended in an error is graded as wrong and as a failure (summaries: 0), never left out: the denominator of
every mean is all examples of the run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from fastmem.lab.scores import qa, statistics, summary
from fastmem.lab.tasks.example import Example, Kind

Record = dict[str, Any]

# What is reported of each kind of task, the headline first: name in the row -> title in tables.
ACCURACY = {
    "paper_correct": "accuracy (paper)",
    "exact_match": "exact match (strict)",
    "f1": "F1 (strict)",
    "paper_failure": "format failure (paper)",
    "failure": "format failure (strict)",
    "remembered": "remembered answer",
}
SUMMARY = {
    "factkb": "FactKB",
    "rougeL": "ROUGE-L",
    "bertscore_precision": "BERTScore-P",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "hhem": "HHEM",
}


def columns(kind: Kind) -> dict[str, str]:
    """The scores of a kind of task, in the order of tables."""
    return SUMMARY if kind == "summary" else ACCURACY


def graded(reply: str, example: Example) -> Record:
    """The scores of an answer to a question or a choice: both forms."""
    return asdict(qa.grade(reply, example))


def failed(example: Example) -> Record:
    """The scores of an example whose answer ended in an error."""
    if example.kind == "summary":
        return dict.fromkeys(summary.NAMES, 0.0)
    known = False if example.original_answers else None
    return graded("", example) | {"paper_correct": False, "paper_failure": True, "remembered": known}


def summarized(
    replies: Sequence[str], examples: Sequence[Example], scorers: summary.Scorers
) -> list[tuple[Record, Record]]:
    """For every summary (scores by name, reasons by name of those that are missing)."""
    articles, references = [e.context for e in examples], [e.reference for e in examples]
    found = summary.score_summaries(replies, articles, references, scorers)
    return [
        ({k: s.value for k, s in row.items()}, {k: s.reason for k, s in row.items() if s.value is None})
        for row in found
    ]


def regraded(row: Record, example: Example) -> Record:
    """The row with scores made anew from its raw text. Scores that need a model stay as they were."""
    if row["error"]:
        return row | {"scores": failed(example)}
    if example.kind != "summary":
        return row | {"scores": graded(row["text"], example)}
    again = {k: s[0].value for k, s in summary.rouge([row["text"]], [example.reference]).items()}
    if not row["text"].strip():
        again = dict.fromkeys(summary.ROUGE, 0.0)
    return row | {"scores": row["scores"] | again}


def values(rows: Iterable[Record], name: str) -> list[float | bool | None]:
    """One score of every row; None where it is missing."""
    return [row["scores"].get(name) for row in rows]


def means(rows: Sequence[Record], kind: Kind) -> dict[str, statistics.Mean]:
    """Every score of the rows of one method, with its interval over groups."""
    groups = [row["group"] for row in rows]
    return {name: statistics.mean(values(rows, name), groups) for name in columns(kind)}


def missing(rows: Iterable[Record]) -> dict[str, str]:
    """Why scores are missing: the first reason of each name."""
    found: dict[str, str] = {}
    for row in rows:
        for name, reason in (row.get("missing") or {}).items():
            found.setdefault(name, reason)
    return found
