"""A comparison of two runs as Markdown, and as a record for JSON."""

from dataclasses import asdict
from typing import Any

from fastmem.lab.report.content import mean_text, notes
from fastmem.lab.report.results import Results
from fastmem.lab.report.run_comparison import MethodPair, RunComparison
from fastmem.lab.report.table import markdown_table
from fastmem.lab.scores.grading import Record
from fastmem.lab.tasks.example import Example

_READING = "Means with 95 % intervals; on better rows B scores higher than A, on worse rows lower."
_LONGEST_TEXT = 200  # characters of a listed question or answer


def comparison_table(c: RunComparison, list_rows: bool = False) -> str:
    """The comparison as Markdown. list_rows: also the rows on which A and B differ in a score of the tables."""
    titles = c.titles
    parts = [f"## {' and '.join(dict.fromkeys([c.a.task, c.b.task]))}\n", _extent(c)]
    for score in c.scores:
        header = [titles[score], "n", "A", "B", "B - A", "better", "worse", "p", "test"]
        parts.append(markdown_table(header, [_line(c, pair, score) for pair in c.pairs]))
    same = ", ".join(f"{_label(c, pair)} {pair.same_text} of {len(pair.rows)}" for pair in c.pairs)
    parts.append(f"Rows with the same text in A and B: {same}.\n")
    if alone := _alone(c):
        parts.append(f"Methods of one run alone: {alone}.\n")
    parts.append(_settings(c))
    runs = {"A": c.a} if c.a is c.b else {"A": c.a, "B": c.b}
    parts += [f"- {side}: {note}" for side, r in runs.items() for note in notes(r)]
    if list_rows:
        parts += [_listed(c, pair) for pair in c.pairs]
    return "\n".join(parts).rstrip() + "\n"


def comparison_record(c: RunComparison, list_rows: bool = False) -> Record:
    """The comparison with every score that has a value. list_rows: also the rows on which A and B differ in one."""
    return {
        "task": c.b.task,
        "a": _run(c.a),
        "b": _run(c.b),
        "examples": len(c.examples),
        "differences": [{"setting": name, "a": a, "b": b} for name, a, b in c.differences],
        "methods": [_method(c, pair) | ({"differing": _rows(c, pair)} if list_rows else {}) for pair in c.pairs],
    }


def _extent(c: RunComparison) -> str:
    if c.a is c.b:
        methods = f"A is {c.pairs[0].method_a} and B is {c.pairs[0].method_b}"
        return f"{methods} of {c.a.name}, {len(c.examples)} examples. {_READING}\n"
    of_a, of_b = c.a.name, c.b.name
    if _two_methods(c):
        of_a, of_b = f"{c.pairs[0].method_a} of {of_a}", f"{c.pairs[0].method_b} of {of_b}"
    extent = f"A is {of_a} with {len(c.a.examples)} examples, B is {of_b} with {len(c.b.examples)}; they share "
    return f"{extent}{len(c.examples)}. {_READING}\n"


def _two_methods(c: RunComparison) -> bool:
    return any(pair.method_a != pair.method_b for pair in c.pairs)


def _label(c: RunComparison, pair: MethodPair) -> str:
    """`fastmem`, or `base, fastmem`, with the number of rows of a method that is not finished."""
    partial = {"A": c.a.partial(pair.method_a), "B": c.b.partial(pair.method_b)}
    marks = ", ".join(f"{side} {mark}" for side, mark in partial.items() if mark)
    name = ", ".join(dict.fromkeys([pair.method_a, pair.method_b]))
    return f"{name} ({marks})" if marks else name


def _alone(c: RunComparison) -> str:
    """`cad in A`; empty if two methods are compared."""
    if _two_methods(c):
        return ""
    only = [(m, "A") for m in c.a.methods if m not in c.b.rows] + [(m, "B") for m in c.b.methods if m not in c.a.rows]
    return ", ".join(f"{method} in {side}" for method, side in only)


def _line(c: RunComparison, pair: MethodPair, score: str) -> list[str]:
    against = pair.against(score)
    means = [mean_text(pair.mean_a(score)), mean_text(pair.mean_b(score)), mean_text(against.difference, "+")]
    counts = [str(against.only_second), str(against.only_first)]
    p_value = "" if against.p_value is None else f"{against.p_value:.2g}"
    return [_label(c, pair), str(against.n), *means, *counts, p_value, against.test]


def _settings(c: RunComparison) -> str:
    if not c.differences:
        return "" if c.a is c.b else "All recorded settings are the same.\n"
    lines = [f"- {name}: {_value(a)} in A, {_value(b)} in B\n" for name, a, b in c.differences]
    return "Settings that differ:\n\n" + "".join(lines)


def _value(value: Any) -> str:
    return "not set" if value is None else str(value)


def _listed(c: RunComparison, pair: MethodPair) -> str:
    rows = pair.differing(c.scores)
    heading = f"### {_label(c, pair)}: {len(rows)} of {len(pair.rows)} rows differ\n"
    return "\n".join([heading, *(_listed_row(c, c.examples[a["id"]], a, b) for a, b in rows)])


def _listed_row(c: RunComparison, example: Example, a: Record, b: Record) -> str:
    verdicts: dict[str, list[str]] = {}
    for score in c.scores:
        first, second = a["scores"].get(score), b["scores"].get(score)
        if first != second:
            verdicts.setdefault(f"{_grade(first)} in A, {_grade(second)} in B", []).append(c.titles[score])
    verdict = "; ".join(f"{' and '.join(names)} {words}" for words, names in verdicts.items())
    question = [] if example.kind == "summary" else [f"question: {_short(example.question)}"]
    gold = " | ".join(map(_short, example.answers))
    lines = [*question, f"gold: {gold}", f"A: {_answer(a)}", f"B: {_answer(b)}"]
    return "\n".join([f"- {example.id}: {verdict}", *(f"  - {line}" for line in lines)])


def _grade(value: float | bool | None) -> str:
    if value is None:
        return "missing"
    return ("right" if value else "wrong") if isinstance(value, bool) else f"{value:.3f}"


def _answer(row: Record) -> str:
    return _short(row["error"] or row["text"])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else line[:_LONGEST_TEXT] + " ..."


def _run(r: Results) -> Record:
    return {
        "run": r.name,
        "task": r.task,
        "model": r.model,
        "examples": len(r.examples),
        "complete": r.complete,
        "rows": {method: len(r.rows[method]) for method in r.methods},
        "notes": notes(r),
    }


def _method(c: RunComparison, pair: MethodPair) -> Record:
    scores = {}
    for score in c.titles:
        against = pair.against(score)
        if against.n:
            means = {"a": asdict(pair.mean_a(score)), "b": asdict(pair.mean_b(score))}
            # Not "better" and "worse", as in the tables: lower is better for failures.
            test = {"higher": against.only_second, "lower": against.only_first, "p": against.p_value}
            scores[score] = means | {"difference": asdict(against.difference)} | test | {"test": against.test}
    names = {"method_a": pair.method_a, "method_b": pair.method_b}
    return names | {"n": len(pair.rows), "same_text": pair.same_text, "scores": scores}


def _rows(c: RunComparison, pair: MethodPair) -> list[Record]:
    found = []
    for a, b in pair.differing(c.scores):
        example = c.examples[a["id"]]
        sides = [{name: row[name] for name in ("text", "error", "scores")} for row in (a, b)]
        asked = {"id": example.id, "question": example.question, "answers": example.answers}
        found.append(asked | {"a": sides[0], "b": sides[1]})
    return found
