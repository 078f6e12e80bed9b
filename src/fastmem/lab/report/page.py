"""The HTML report: one page that loads nothing from elsewhere."""

from collections.abc import Sequence

from markupsafe import Markup

from fastmem.lab.report.charts import Bar, Curve, Point
from fastmem.lab.report.content import brackets, facts, notes, score_table
from fastmem.lab.report.disagreements import disagreements
from fastmem.lab.report.results import BASE, Results
from fastmem.lab.report.templates import render
from fastmem.lab.scores import grading

OUTCOMES = ("right", "remembered answer", "another span", "no answer in the asked format", "error")


def page(results: Sequence[Results], extra: Sequence[str] = ()) -> str:
    """The report of all runs as HTML. extra: further sections as HTML (the landscape of a search)."""
    title = "FastMem: " + ", ".join(dict.fromkeys(r.task for r in results)) if results else "FastMem: search"
    return render(
        "page.html.jinja",
        title=title,
        runs=[_run(r) for r in results],
        extra=[Markup(section) for section in extra],
        outcomes=OUTCOMES,
    )


def _run(r: Results) -> dict[str, object]:
    """The values of one run's section in the template."""
    # Both forms of accuracy: a rambling answer can be right by the paper's rule alone.
    scores = dict.fromkeys(
        [r.headline, *(["paper_correct", "exact_match"] if r.has_right_answers else []), *r.own_names]
    )
    return {
        "results": r,
        "facts": facts(r) | {"folder": r.name},
        "means": [_mean_chart(r, score) for score in scores],
        "outcomes": _outcome_bars(r) if r.has_right_answers else None,
        "scores": score_table(r),
        "brackets": brackets(r.model),
        "time": _time_bars(r),
        "memorizing": _memorizing(r),
        "notes": notes(r),
        "disagreements": disagreements(r),
    }


def _mean_chart(r: Results, score: str) -> dict[str, object]:
    points = []
    for method in r.methods:
        mean = r.mean(method, score)
        if mean.value is None:
            continue
        note = f"{mean.value:.3f}"
        against = r.against_base(method, score)
        if against is not None and against.difference.value is not None:
            low, high = against.difference.low, against.difference.high
            differs = low is not None and high is not None and (low > 0 or high < 0)
            note += f"  {against.difference.value:+.3f}" + (" *" if differs else "")
        accent = "fastmem" in method
        points.append(Point(method, r.partial(method), mean.value, mean.low, mean.high, note, accent))
    return {
        "score": score,
        "title": r.columns[score],
        "points": points,
        "reference": r.mean(BASE, score).value if BASE in r.rows else None,
    }


def _outcome_bars(r: Results) -> list[Bar]:
    bars = []
    for method in r.methods:
        outcomes = [_outcome(row) for row in r.rows[method]]
        counts = [outcomes.count(outcome) for outcome in OUTCOMES]
        bars.append(Bar(method, r.partial(method), counts, f"{counts[0] / len(outcomes):.0%} right"))
    return bars


def _outcome(row: grading.Record) -> str:
    right, remembered, another, no_format, error = OUTCOMES
    scores = row["scores"]
    if row["error"]:
        return error
    if scores.get("paper_correct"):
        return right
    if scores.get("failure"):
        return no_format
    return remembered if scores.get("remembered") else another


def _time_bars(r: Results) -> list[Bar]:
    bars = []
    for method in r.methods:
        seconds = list(grading.seconds(r.rows[method]).values())
        note = f"{sum(seconds):.3g} s, {grading.peak_bytes(r.rows[method]) / 2**20:,.0f} MiB"
        bars.append(Bar(method, r.partial(method), seconds, note))
    return bars


def _memorizing(r: Results) -> dict[str, object] | None:
    """Loss and KL by step, from the first method that recorded them; None without at least two steps."""
    traces_by_method = ([row["trace"] for row in r.rows[method] if row.get("trace")] for method in r.methods)
    traces = next((traces for traces in traces_by_method if traces), [])
    length = max(map(len, traces), default=0)
    if length < 2:
        return None

    def curve(name: str, column: int) -> Curve:
        by_step = [sorted(trace[i][column] for trace in traces if len(trace) > i) for i in range(length)]
        mean = [sum(values) / len(values) for values in by_step]
        low = [values[int(0.1 * (len(values) - 1))] for values in by_step]
        high = [values[round(0.9 * (len(values) - 1))] for values in by_step]
        return Curve(f"{name}, nats per token", mean, low, high)

    curves = [curve("cross entropy of the document", 1), curve("KL to the untouched model", 2)]
    return {"curves": curves, "documents": len(traces)}
