"""The rows on which a method and the base disagree: document, gold answer, all answers, and the tokens that moved."""

import math
import re
from dataclasses import dataclass

from fastmem.lab.report.content import label
from fastmem.lab.report.results import BASE, Results
from fastmem.lab.scores.grading import Record
from fastmem.lab.tasks.example import Example

MOST_CARDS = 40  # per list, to keep a page of thousands of documents fast and readable
_LONGEST_CONTEXT = 1500  # characters shown
_FULL_COLOUR = 3  # nats, a factor of 20


@dataclass(frozen=True)
class Card:
    """One row. answers: every method's row for the example. context: pieces of text, each with the kind of its mark
    ("gold", "known") or None. moved: (text, change as a share of full colour, tooltip) per token of the answer."""

    method: str
    example: Example
    answers: list[Record]
    context: list[tuple[str, str | None]]
    moved: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Disagreements:
    """The answers of the base that a method "repaired" or "broke". method: its label. cards: the first `MOST_CARDS` of
    `count` rows."""

    method: str
    verdict: str
    count: int
    cards: list[Card]


def disagreements(r: Results) -> list[Disagreements]:
    """For each method, what it repaired and what it broke. Empty where answers are neither right nor wrong."""
    score = r.right_score
    if BASE not in r.rows or score is None:
        return []
    by_method = {method: {row["id"]: row for row in r.rows[method]} for method in r.methods}
    examples = {example.id: example for example in r.examples}
    base = by_method[BASE]

    def right(row: Record) -> bool:
        return bool(row["scores"].get(score))

    def card(row: Record) -> Card:
        answers = [rows[row["id"]] for rows in by_method.values() if row["id"] in rows]
        example = examples[row["id"]]
        return Card(
            row["method"], example, answers, marked(example), [_moved(*token) for token in row.get("moved") or ()]
        )

    lists = []
    for method in r.methods:
        changed = [row for row in r.rows[method] if row["id"] in base and right(row) is not right(base[row["id"]])]
        for verdict, wanted in (("repaired", True), ("broke", False)):
            rows = [row for row in changed if right(row) is wanted]
            if rows:
                cards = [card(row) for row in rows[:MOST_CARDS]]
                lists.append(Disagreements(label(r, method), verdict, len(rows), cards))
    return lists


def marked(example: Example) -> list[tuple[str, str | None]]:
    """The document in pieces: gold and remembered answers with their kind, the text between them with None."""
    text = example.context
    shown = text if len(text) <= _LONGEST_CONTEXT else text[:_LONGEST_CONTEXT] + " …"
    kinds = {answer.lower(): "known" for answer in example.original_answers if answer.strip()}
    kinds |= {answer.lower(): "gold" for answer in example.answers if answer.strip()}
    if not kinds:
        return [(shown, None)]
    pattern = "|".join(re.escape(answer) for answer in sorted(kinds, key=len, reverse=True))
    pieces = re.split(f"({pattern})", shown, flags=re.IGNORECASE)  # every second piece is a match
    return [(piece, kinds.get(piece.lower(), "gold") if i % 2 else None) for i, piece in enumerate(pieces)]


def _moved(text: str, base: float, memory: float) -> tuple[str, float, str]:
    """An answer token and its log-probabilities without and with the memory, as `Card.moved` shows them."""
    strength = max(-1.0, min(1.0, (memory - base) / _FULL_COLOUR))
    return text, strength, f"{math.exp(base):.3f} → {math.exp(memory):.3f}"
