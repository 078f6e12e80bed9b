"""The Markdown report: first the paper's tables, then every score of every run."""

from collections.abc import Sequence

from fastmem.lab.report.content import brackets, facts, figure, label, mean_text, notes, score_table
from fastmem.lab.report.results import BASE, Results, ordered
from fastmem.lab.scores import grading

# The order of the paper's tables.
TASKS = ("nq_swap", "memotrap", "nq", "hotpotqa", "cnndm", "xsum", "wikihow")
_FACTS = (
    "{examples} examples of {data}; recipe: rate {rate}, {steps} steps, KL {KL weight}, layers [{layers}], placed as "
    "{placement}; alpha {alpha}, {type}; system turn: {system turn}; device {device}, torch {torch}, fastmem "
    "{fastmem}.\n"
)
_SUMMARY_SCORES = ("factkb", "rougeL", "bertscore_precision")


def tables(results: Sequence[Results]) -> str:
    """All runs as Markdown."""
    parts = []
    for model in dict.fromkeys(r.model for r in results):
        runs = _sorted([r for r in results if r.model == model])
        in_brackets = f"; {brackets(model)}" if brackets(model) else ""
        parts.append(f"## {model}\n")
        if answering := [r for r in runs if r.has_right_answers]:
            parts.append(f"Accuracy by the paper's rule, with 95 % intervals{in_brackets}.\n")
            parts.append(_overview([(r, "paper_correct") for r in answering]))
        if summaries := [r for r in runs if r.kind == "summary" and not r.own_headline]:
            parts.append(f"Summaries, with 95 % intervals{in_brackets}.\n")
            parts += [_overview([(r, score) for score in _SUMMARY_SCORES]) for r in summaries]
        if own := [r for r in runs if r.own_headline]:
            parts.append("Scores of the tasks' own, with 95 % intervals.\n")
            parts.append(_overview([(r, r.headline) for r in own]))
        for r in runs:
            parts.append(f"### {r.task} ({r.name})\n")
            parts.append(_FACTS.format_map(facts(r)))
            parts.append(markdown_table(*score_table(r)))
            parts += [_differences(r), _cost(r)]
            parts += [f"- {note}" for note in notes(r)]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = ["-" * width for width in widths]
    return "\n".join([row(header), row(rule), *map(row, lines)]) + "\n"


def _overview(columns: Sequence[tuple[Results, str]]) -> str:
    """One line per method, one column per run and score."""
    runs = list({id(r): r for r, _ in columns}.values())
    methods = ordered({method for r in runs for method in r.rows})
    tasks_repeat = len({r.task for r in runs}) < len(runs)
    titles = [
        r.task
        + (f" ({r.name})" if tasks_repeat else "")
        + (f" {r.columns[score]}" if len(columns) > len(runs) or r.own_headline else "")
        for r, score in columns
    ]

    def cell(r: Results, method: str, score: str) -> str:
        if method not in r.rows:
            return ""
        return figure(r, method, score) + (f", {r.partial(method)}" if r.partial(method) else "")

    lines = [[method, *(cell(r, method, score) for r, score in columns)] for method in methods]
    return markdown_table(["method", *titles], lines)


def _differences(r: Results) -> str:
    if BASE not in r.rows or len(r.rows) < 2:
        return ""
    lines = []
    for method in r.methods:
        if (against := r.against_base(method, r.headline)) is not None:
            p_value = "" if against.p_value is None else f"{against.p_value:.2g}"
            counts = [str(against.only_second), str(against.only_first)]
            lines.append([label(r, method), mean_text(against.difference, "+"), *counts, p_value, against.test])
    title = r.columns[r.headline]
    return markdown_table([f"against {label(r, BASE)}", title, "better", "worse", "p", "test"], lines)


def _cost(r: Results) -> str:
    lines = []
    for method in r.methods:
        seconds = grading.seconds(r.rows[method]).values()
        shown = [f"{s:.3f}" for s in (*seconds, sum(seconds))]
        lines.append([label(r, method), *shown, f"{grading.peak_bytes(r.rows[method]) / 2**20:,.0f}"])
    return markdown_table(["seconds per example", "trunk", "steps", "decode", "together", "peak MiB"], lines)


def _sorted(runs: Sequence[Results]) -> list[Results]:
    return sorted(runs, key=lambda r: (TASKS.index(r.task) if r.task in TASKS else len(TASKS), r.task, r.name))
