"""The Markdown side of a report: the paper's layout first, then every score of every run."""

from collections.abc import Iterable, Sequence
from typing import Any

from fastmem.lab.report.paper_figures import SOURCE, paper_model, published
from fastmem.lab.report.results import BASE, Results, ordered
from fastmem.lab.scores import grading
from fastmem.lab.scores.statistics import Mean

# The order of the paper's tables.
TASKS = ("nq_swap", "memotrap", "nq", "hotpotqa", "cnndm", "xsum", "wikihow")
PAPER_SCORES = {"summary": ("factkb", "rougeL", "bertscore_precision")}


def tables(results: Sequence[Results]) -> str:
    """All runs as Markdown."""
    parts = []
    for model in dict.fromkeys(r.model for r in results):
        runs = [r for r in results if r.model == model]
        parts.append(f"## {model}\n")
        answering = [r for r in runs if r.kind != "summary"]
        if answering:
            parts.append("Accuracy by the paper's rule, with 95 % intervals" + _beside(model) + ".\n")
            parts.append(_overview(answering, ("paper_correct",)))
        if summaries := [r for r in runs if r.kind == "summary"]:
            parts.append("Summaries, with 95 % intervals" + _beside(model) + ".\n")
            parts += [_overview([r], PAPER_SCORES["summary"]) for r in _sorted(summaries)]
        for r in _sorted(runs):
            parts.append(f"### {r.task} ({r.name})\n\n{_circumstances(r)}\n")
            parts.append(_scores(r))
            parts.append(_differences(r))
            parts.append(_cost(r))
            parts += [f"- {line}" for line in _remarks(r)]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def mean_text(mean: Mean) -> str:
    """`0.715 [0.702, 0.728]`."""
    if mean.value is None:
        return "missing"
    interval = "" if mean.low is None or mean.high is None else f" [{mean.low:.3f}, {mean.high:.3f}]"
    return f"{mean.value:.3f}{interval}"


def _beside(model: str) -> str:
    name = paper_model(model)
    return f"; in brackets what {SOURCE} publishes for {name}" if name else ""


def _overview(runs: Sequence[Results], scores: Sequence[str]) -> str:
    """One row per method, one column per run and score."""
    runs = _sorted(runs)
    methods = ordered(list(dict.fromkeys(m for r in runs for m in r.rows)))
    titles = grading.ACCURACY | grading.SUMMARY
    several = len({r.task for r in runs}) < len(runs)
    header = [
        (r.task + (f" ({r.name})" if several else "")) + (f" {titles[s]}" if len(scores) > 1 else "")
        for r in runs
        for s in scores
    ]

    def cell(r: Results, method: str, score: str) -> str:
        if method not in r.rows:
            return ""
        theirs = published(r.model, r.task, method, score)
        return mean_text(r.mean(method, score)) + (f" ({theirs:.3f})" if theirs is not None else "")

    return _markdown(
        ["method", *header], [[method, *(cell(r, method, s) for r in runs for s in scores)] for method in methods]
    )


def _scores(r: Results) -> str:
    titles = grading.columns(r.kind)
    shown = {name: title for name, title in titles.items() if any(r.mean(m, name).value is not None for m in r.rows)}
    lines = []
    for method in ordered(list(r.rows)):
        n, errors = len(r.rows[method]), len(r.errors(method))
        lines.append([method, str(n), str(errors), *(mean_text(r.mean(method, name)) for name in shown)])
    return _markdown(["method", "n", "errors", *shown.values()], lines)


def _differences(r: Results) -> str:
    if BASE not in r.rows or len(r.rows) < 2:
        return ""
    lines = []
    for method in ordered(list(r.rows)):
        found = r.against_base(method, r.headline)
        if found is not None:
            p = "" if found.p_value is None else f"{found.p_value:.2g}"
            won, lost = str(found.only_second), str(found.only_first)
            lines.append([method, _signed(found.difference), won, lost, p, found.test])
    title = grading.columns(r.kind)[r.headline]
    return _markdown(["against base", title, "better", "worse", "p", "test"], lines)


def _cost(r: Results) -> str:
    lines = []
    for method in ordered(list(r.rows)):
        seconds = r.seconds(method)
        parts = [f"{seconds[part]:.3f}" for part in ("trunk", "steps", "decode")]
        lines.append([method, *parts, f"{sum(seconds.values()):.3f}", f"{r.peak_bytes(method) / 2**20:,.0f}"])
    return _markdown(["seconds per example", "trunk", "steps", "decode", "together", "peak MiB"], lines)


def contrast_strength(decoding: dict[str, Any]) -> str:
    """`2`, or `2 among tokens of at least 0.05 of the top probability`."""
    cut = decoding.get("relative_top")
    among = "" if cut is None else f" among tokens of at least {cut:g} of the top probability"
    return f"{decoding['alpha']:g}{among}"


def _circumstances(r: Results) -> str:
    identity, found = r.about["identity"], r.summary.get("environment", {})
    recipe, data = identity["recipe"], identity["data"]
    said = [
        f"{len(r.examples)} examples of {data['source']} ({data['revision']})",
        f"recipe: rate {recipe['learning_rate']:g}, {recipe['steps']} steps, KL {recipe['kl_weight']:g}, "
        f"layers {recipe['layers']}, placed as {recipe['placement']}",
        f"alpha {contrast_strength(identity['decoding'])}, {identity['model']['dtype'].removeprefix('torch.')}",
    ]
    if found:
        packages = found.get("packages", {})
        said.append(f"{found.get('device')}, torch {packages.get('torch')}, fastmem {found.get('fastmem')}")
    return "; ".join(said) + "."


def _remarks(r: Results) -> Iterable[str]:
    if not r.complete:
        missing = sum(len(r.examples) - len(rows) for rows in r.rows.values())
        yield f"Not finished: {missing} rows are missing; start the same `fastmem eval` again."
    for method in r.rows:
        if errors := r.errors(method):
            yield f"{method}: {len(errors)} errors, counted as wrong; the first: {errors[0]}"
    for reason, methods in r.missing.items():
        yield f"{', '.join(methods)}: {reason}"


def _sorted(runs: Sequence[Results]) -> list[Results]:
    return sorted(runs, key=lambda r: (TASKS.index(r.task) if r.task in TASKS else len(TASKS), r.task, r.name))


def _signed(mean: Mean) -> str:
    if mean.value is None:
        return "missing"
    interval = "" if mean.low is None or mean.high is None else f" [{mean.low:+.3f}, {mean.high:+.3f}]"
    return f"{mean.value:+.3f}{interval}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([row(header), rule, *map(row, lines)]) + "\n"
