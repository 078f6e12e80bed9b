"""Row by row, where a method and the base disagree: the document, the gold answer, the answers, which tokens moved."""

import math
import re
from html import escape
from typing import Any

from fastmem.lab.report.results import BASE, Results, ordered
from fastmem.lab.tasks.example import Example

MOST_ROWS = 40  # of each list: a page of thousands of documents opens slowly and is read by nobody
_LONGEST_CONTEXT = 1500  # characters shown


def disagreements(r: Results) -> str:
    """A list of what each method repaired and one of what it broke; summaries: where they differ most in score."""
    if BASE not in r.rows or r.kind == "summary":
        return ""
    base = {row["id"]: row for row in r.rows[BASE]}
    examples = {example.id: example for example in r.examples}
    others = {m: {row["id"]: row for row in r.rows[m]} for m in ordered(list(r.rows))}
    parts = ["<h3>Where methods disagree</h3>"]
    for method in ordered(list(r.rows)):
        if method == BASE:
            continue
        for right, title in ((True, "repaired"), (False, "broke")):
            found = [
                row
                for row in r.rows[method]
                if row["id"] in base
                and bool(row["scores"]["paper_correct"]) is right
                and bool(base[row["id"]]["scores"]["paper_correct"]) is not right
            ]
            if not found:
                continue
            more = f"<p class=small>{len(found) - MOST_ROWS} more are not shown.</p>" if len(found) > MOST_ROWS else ""
            cards = "".join(_card(row, examples[row["id"]], others) for row in found[:MOST_ROWS])
            parts.append(
                f'<details class="{title}"><summary><b>{escape(method)}</b> {title} {len(found)} '
                f"of the base's answers</summary>{cards}{more}</details>"
            )
    return "".join(parts) if len(parts) > 1 else ""


def _card(row: dict[str, Any], example: Example, others: dict[str, dict[str, dict[str, Any]]]) -> str:
    answers = "".join(
        _answer(method, rows[example.id], method == row["method"])
        for method, rows in others.items()
        if example.id in rows
    )
    known = f" <b>remembered</b> {escape(' / '.join(example.original_answers))}" if example.original_answers else ""
    return (
        f"<article><h4>{escape(example.question)}</h4><p class=context>{_context(example)}</p>"
        f"<p class=gold><b>gold</b> {escape(' / '.join(example.answers))}{known}</p>"
        f"<table class=answers>{answers}</table>{_moved(row)}</article>"
    )


def _answer(method: str, row: dict[str, Any], chosen: bool) -> str:
    right = row["scores"]["paper_correct"]
    said = row["error"] or row["text"]
    mark = '<td class="right">✓</td>' if right else '<td class="wrong">✗</td>'
    return f"<tr{' class=chosen' if chosen else ''}>{mark}<th>{escape(method)}</th><td>{escape(said)}</td></tr>"


def _context(example: Example) -> str:
    """The document with the gold and the remembered answers marked."""
    text = example.context
    cut = text if len(text) <= _LONGEST_CONTEXT else text[:_LONGEST_CONTEXT] + " …"
    marks = [(a, "gold") for a in example.answers] + [(a, "known") for a in example.original_answers]
    wanted = {a.lower(): kind for a, kind in reversed(marks) if a.strip()}
    if not wanted:
        return escape(cut)
    pattern = "|".join(re.escape(a) for a in sorted(wanted, key=len, reverse=True))
    out, last = [], 0
    for match in re.finditer(pattern, cut, re.IGNORECASE):
        kind = wanted.get(match.group().lower(), "gold")
        out.append(f'{escape(cut[last : match.start()])}<mark class="{kind}">{escape(match.group())}</mark>')
        last = match.end()
    return "".join(out) + escape(cut[last:])


def _moved(row: dict[str, Any]) -> str:
    """The answer's tokens, coloured by how much likelier (or less likely) the memory made them."""
    if not row.get("moved"):
        return ""
    spans = []
    for text, base, now in row["moved"]:
        strength = max(-1.0, min(1.0, (now - base) / 3))  # three nats, a factor of 20, is full colour
        kind = "up" if strength >= 0 else "down"
        said = f"{math.exp(base):.3f} → {math.exp(now):.3f}"
        spans.append(
            f'<span class="token {kind}" style="--strength:{abs(strength):.2f}" title="{said}">{escape(text)}</span>'
        )
    return f"<p class=moved><b>moved by the memory</b> {''.join(spans)}</p>"
