"""The HTML side of a report: one page that needs nothing but itself."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastmem.lab.report import svg_charts
from fastmem.lab.report.disagreements import disagreements
from fastmem.lab.report.paper_figures import SOURCE, published
from fastmem.lab.report.results import BASE, Results, ordered
from fastmem.lab.report.table import contrast_strength, mean_text
from fastmem.lab.scores import grading

_STYLE = Path(__file__).with_name("page.css")
OUTCOMES = ("right", "remembered answer", "another span", "no answer in the asked format", "error")


def page(results: Sequence[Results], extra: Sequence[str] = ()) -> str:
    """The report of all runs; `extra` are further sections as HTML (the landscape of a search)."""
    names = [f"{r.task} ({r.model}, {r.name})" for r in results]
    links = "".join(f'<a href="#run{i}">{escape(name)}</a>' for i, name in enumerate(names)) if len(names) > 1 else ""
    body = "".join(_run(i, r) for i, r in enumerate(results)) + "".join(extra)
    title = "FastMem: " + ", ".join(dict.fromkeys(r.task for r in results)) if results else "FastMem: search"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def _run(index: int, r: Results) -> str:
    # Both forms of accuracy: an answer that goes on and on is right by the paper's rule alone.
    headlines = [r.headline] if r.kind == "summary" else [r.headline, "exact_match"]
    sections = [
        f'<section id="run{index}"><h2>{escape(r.task)} <small>{escape(r.model)}</small></h2>',
        f"<p class=facts>{_facts(r)}</p>",
    ]
    for score in headlines:
        sections.append(f"<h3>{escape(grading.columns(r.kind)[score])}, with 95 % intervals</h3>{_means(r, score)}")
    if BASE in r.rows:
        star = "Right of the dots: the mean, and its difference to the base; * where the interval of the difference, "
        sections.append(f"<p class=small>{star}paired by row, excludes 0.</p>")
    if r.kind != "summary":
        sections.append(f"<h3>What was answered</h3>{_outcomes(r)}")
    sections.append(f"<h3>All scores</h3>{_scores(r)}")
    sections.append(f"<h3>Time per example</h3>{_time(r)}")
    if traced := _curves(r):
        sections.append(f"<h3>Memorizing</h3>{traced}")
    sections.append(_notes(r))
    sections.append(disagreements(r))
    return "".join(sections) + "</section>"


def _facts(r: Results) -> str:
    identity = r.about["identity"]
    recipe, data, found = identity["recipe"], identity["data"], r.summary.get("environment", {})
    git = found.get("git") or {}
    commit = git.get("commit", "")[:10] + (", changed" if git.get("changed") else "")
    facts = {
        "examples": f"{len(r.examples)}",
        "data": f"{data['source']}, {data['revision']}",
        "rate": f"{recipe['learning_rate']:g}",
        "steps": f"{recipe['steps']}",
        "KL weight": f"{recipe['kl_weight']:g}",
        "layers": ", ".join(map(str, recipe["layers"])),
        "placement": recipe["placement"],
        "alpha": contrast_strength(identity["decoding"]),
        "type": identity["model"]["dtype"].removeprefix("torch."),
        "device": found.get("device", "unknown"),
        "torch": found.get("packages", {}).get("torch", "unknown"),
        "commit": commit or "unknown",
        "folder": r.name,
    }
    return "".join(f"<span><b>{escape(k)}</b> {escape(str(v))}</span>" for k, v in facts.items())


def _means(r: Results, score: str) -> str:
    points, reference = [], None
    for method in ordered(list(r.rows)):
        mean = r.mean(method, score)
        if mean.value is None:
            continue
        reference = mean.value if method == BASE else reference
        note = f"{mean.value:.3f}"
        if (found := r.against_base(method, score)) is not None and found.difference.value is not None:
            note += f"  {found.difference.value:+.3f}"
            low, high = found.difference.low, found.difference.high
            note += " *" if low is not None and high is not None and (low > 0 or high < 0) else ""
        points.append(svg_charts.Point(method, mean.value, mean.low, mean.high, note, "fastmem" in method))
    if not points:
        return "<p>No value: see the notes below.</p>"
    theirs = [(m, published(r.model, r.task, m, score)) for m in ordered(list(r.rows))]
    said = ", ".join(f"{m} {v:.3f}" for m, v in theirs if v is not None)
    note = f"<p class=small>{SOURCE} publishes: {said}.</p>" if said else ""
    return svg_charts.intervals(points, reference, f"{score} by method") + note


def _outcomes(r: Results) -> str:
    lines = []
    for method in ordered(list(r.rows)):
        counts = [0] * len(OUTCOMES)
        for row in r.rows[method]:
            counts[_outcome(row)] += 1
        right = counts[0] / len(r.rows[method])
        lines.append(svg_charts.Bar(method, tuple(map(float, counts)), f"{right:.0%} right"))
    return svg_charts.bars(lines, OUTCOMES, "outcomes by method", "rows")


def _outcome(row: grading.Record) -> int:
    scores = row["scores"]
    if row["error"]:
        return 4
    if scores["paper_correct"]:
        return 0
    if scores["failure"]:
        return 3
    return 1 if scores["remembered"] else 2


def _scores(r: Results) -> str:
    titles = grading.columns(r.kind)
    shown = {n: title for n, title in titles.items() if any(r.mean(m, n).value is not None for m in r.rows)}
    head = "".join(f"<th>{escape(title)}</th>" for title in ("method", "n", "errors", *shown.values()))
    lines = []
    for method in ordered(list(r.rows)):
        cells = "".join(f"<td>{_split(mean_text(r.mean(method, name)))}</td>" for name in shown)
        errors, n = len(r.errors(method)), len(r.rows[method])
        lines.append(f"<tr><th>{escape(method)}</th><td>{n}</td><td>{errors}</td>{cells}</tr>")
    return f'<div class=wide><table><tr class="head">{head}</tr>{"".join(lines)}</table></div>'


def _split(text: str) -> str:
    value, _, interval = text.partition(" ")
    return f"{value}<small>{interval}</small>" if interval else value


def _time(r: Results) -> str:
    lines = []
    for method in ordered(list(r.rows)):
        seconds = r.seconds(method)
        parts = (seconds["trunk"], seconds["steps"], seconds["decode"])
        peak = r.peak_bytes(method) / 2**20
        lines.append(svg_charts.Bar(method, parts, f"{sum(parts):.3g} s, {peak:,.0f} MiB"))
    legend = ("reading the document", "steps", "decoding (share of its batch)")
    return svg_charts.bars(lines, legend, "seconds per example by method", "s")


def _curves(r: Results) -> str:
    traces = next(
        (found for m in ordered(list(r.rows)) if (found := [row["trace"] for row in r.rows[m] if row.get("trace")])),
        [],
    )
    length = max(map(len, traces), default=0)
    if length < 2:
        return ""

    def curve(name: str, column: int) -> svg_charts.Curve:
        by_step = [sorted(trace[i][column] for trace in traces if len(trace) > i) for i in range(length)]
        mean = tuple(sum(values) / len(values) for values in by_step)
        low = tuple(values[int(0.1 * (len(values) - 1))] for values in by_step)
        high = tuple(values[round(0.9 * (len(values) - 1))] for values in by_step)
        return svg_charts.Curve(name, mean, low, high)

    panels = [
        ("cross entropy of the document, nats per token", curve("cross entropy", 1)),
        ("KL to the untouched model, nats per token", curve("KL", 2)),
    ]
    note = f"<p class=small>Mean over {len(traces)} documents before each step; the band holds 80 % of them.</p>"
    return svg_charts.curves(panels, "loss and KL by step") + note


def _notes(r: Results) -> str:
    notes = []
    if not r.complete:
        notes.append("Not finished: rows are missing.")
    for method in ordered(list(r.rows)):
        if errors := r.errors(method):
            notes.append(f"{method}: {len(errors)} errors, counted as wrong. The first: {errors[0]}")
    notes += [f"{', '.join(methods)}: {reason}" for reason, methods in r.missing.items()]
    return "<ul class=notes>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""
