"""From rows to scores, and from scores to means.

Grading needs no model, so finished runs can be graded again. A row that ended in an error counts as wrong and as a
format failure (summaries: as 0), never as absent: every mean is over all examples of the run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from fastmem.lab.scores import qa, statistics, summary
from fastmem.lab.tasks.example import Example, Kind, Score

Record = dict[str, Any]

# The reported scores of each kind of task, the headline first: name in the row -> title in tables.
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
# The names of all scores that are computed here; what else a row has is a score of one's own.
STANDARD = frozenset([field.name for field in fields(qa.Grade)] + list(summary.NAMES))


def columns(kind: Kind) -> dict[str, str]:
    """The scores of a kind of task, in the order of tables: name -> title."""
    return SUMMARY if kind == "summary" else ACCURACY


def graded(reply: str, example: Example, whole_words: bool = False) -> Record:
    """The scores of an answer to a question or a choice, by the paper's rule and strictly. whole_words: see `Task`."""
    return asdict(qa.grade(reply, example, whole_words))


def failed(example: Example) -> Record:
    """The scores of an example whose answer ended in an error."""
    if example.kind == "summary":
        return dict.fromkeys(summary.NAMES, 0.0)
    remembered = False if example.original_answers else None
    return graded("", example) | {"paper_correct": False, "paper_failure": True, "remembered": remembered}


def summarized(
    replies: Sequence[str], examples: Sequence[Example], scorers: summary.Scorers
) -> list[tuple[Record, Record]]:
    """For every summary: (name -> score or None, name -> reason for each score that is missing)."""
    articles, references = [e.context for e in examples], [e.reference for e in examples]
    scored = summary.score_summaries(replies, articles, references, scorers)
    return [
        ({k: s.value for k, s in row.items()}, {k: s.reason for k, s in row.items() if s.value is None})
        for row in scored
    ]


def regraded(row: Record, example: Example, score: Score | None = None, whole_words: bool = False) -> Record:
    """The row with its scores computed again from the raw text. Scores that need a model stay as they were, and so do
    those of one's own, also where a row has no others.

    score: how the task grades its answers, if it has scores of its own. whole_words: see `Task`.
    """
    if score is not None:
        return row | {"scores": row["scores"] | score(row["text"], example)}
    if STANDARD.isdisjoint(row["scores"]):
        return row
    own = {name: row["scores"][name] for name in own_names([row])}
    if row["error"]:
        return row | {"scores": failed(example) | own}
    if example.kind != "summary":
        return row | {"scores": graded(row["text"], example, whole_words) | own}
    if row["text"].strip():
        rouge = {k: scores[0].value for k, scores in summary.rouge([row["text"]], [example.reference]).items()}
    else:
        rouge = dict.fromkeys(summary.ROUGE, 0.0)
    return row | {"scores": row["scores"] | rouge}


def own_names(rows: Iterable[Record]) -> list[str]:
    """The names of the scores that were computed by files of one's own, in the order of their appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["scores"] if name not in STANDARD))


def values(rows: Iterable[Record], name: str) -> list[float | bool | None]:
    """One score of every row, or None if the row lacks it.

    A failed row counts as 0, but not where no answer has the score, for instance because its model cannot be loaded.
    """
    rows = list(rows)
    found = [row["scores"].get(name) for row in rows]
    answers = [value for row, value in zip(rows, found, strict=True) if not row.get("error") and row.get("text")]
    return [None] * len(rows) if answers and all(value is None for value in answers) else found


def mean(rows: Sequence[Record], name: str) -> statistics.Mean:
    """The mean of one score over the rows of one method, with an interval over groups."""
    return statistics.mean(values(rows, name), [row["group"] for row in rows])


def means(rows: Sequence[Record], kind: Kind) -> dict[str, statistics.Mean]:
    """`mean` of every score of the kind of task, if it was used, and of those of one's own."""
    used = any(not STANDARD.isdisjoint(row["scores"]) for row in rows)
    return {name: mean(rows, name) for name in [*(columns(kind) if used else ()), *own_names(rows)]}


def seconds(rows: Sequence[Record]) -> dict[str, float]:
    """Mean seconds per row of trunk, steps and decode."""
    return {part: sum(row["seconds"][part] for row in rows) / len(rows) for part in ("trunk", "steps", "decode")}


def peak_bytes(rows: Iterable[Record]) -> int:
    """The peak memory of the rows' batches."""
    return max(int(row.get("peak_bytes") or 0) for row in rows)


def missing(rows: Iterable[Record]) -> dict[str, str]:
    """Name of each score that some row lacks -> the first reason given."""
    reasons: dict[str, str] = {}
    for row in rows:
        for name, reason in (row.get("missing") or {}).items():
            reasons.setdefault(name, reason)
    return reasons
