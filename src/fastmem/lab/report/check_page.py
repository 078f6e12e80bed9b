"""The page of `fastmem check`: the verdict, and every changed answer beside its document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastmem.lab.report.content import mean_text
from fastmem.lab.report.disagreements import marked
from fastmem.lab.report.results import BASE, Results
from fastmem.lab.report.templates import render
from fastmem.lab.report.verdict import SCORES, Verdict, seconds_of
from fastmem.lab.scores import grading
from fastmem.lab.tasks.example import Example


@dataclass(frozen=True)
class Change:
    """An example whose answer changed. before, after: the rows of the base and of the method."""

    example: Example
    context: list[tuple[str, str | None]]
    before: grading.Record
    after: grading.Record


def changes(r: Results, method: str) -> dict[str, list[Change]]:
    """What became of the base's answers -> the examples. Without a right answer to compare with: "changed".

    Questions that failed are left out.
    """
    base = {row["id"]: row for row in r.rows[BASE]}
    examples = {example.id: example for example in r.examples}
    found: dict[str, list[Change]] = {"became wrong": [], "became right": [], "changed": []}
    for row in r.rows[method]:
        before, example = base.get(row["id"]), examples[row["id"]]
        if before is None or before["error"] or row["error"] or before["text"].strip() == row["text"].strip():
            continue
        was, now = (bool(one["scores"].get("paper_correct")) for one in (before, row))
        outcome = "changed" if not example.answers or was is now else "became right" if now else "became wrong"
        found[outcome].append(Change(example, marked(example), before, row))
    return {outcome: listed for outcome, listed in found.items() if listed}


def check_page(
    r: Results,
    verdict: Verdict | None,
    method: str,
    changed: Mapping[str, Sequence[Change]],
    notes: Sequence[str],
    command: str,
) -> str:
    """The page as HTML, which loads no other files. changed: from `changes`. command: what to run next."""
    lines = []
    if verdict is not None:
        for name in r.methods:
            means = [mean_text(verdict.means[name][score]) for score in SCORES]
            lines.append((name, means, seconds_of(r, name)))
    return render(
        "check.html.jinja",
        title=f"FastMem: does it help {r.model}?",
        headline=verdict.sentence if verdict is not None else "the file has no answers: judge the changes yourself",
        verdict=verdict,
        method=method,
        lines=lines,
        changes=changed,
        questions=len(r.examples),
        notes=notes,
        command=command,
    )
