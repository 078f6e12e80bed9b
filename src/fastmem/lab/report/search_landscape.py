"""What a search tried, as Markdown and as a picture; from the files it wrote."""

from html import escape
from pathlib import Path
from typing import Any

from fastmem.errors import RunError
from fastmem.lab.report import svg_charts
from fastmem.lab.run import run_files

SEARCH = "search.json"
_MOST_LINES = 12

Point = dict[str, Any]


def search_table(folder: Path) -> str:
    """The best points, and what the search cost."""
    found = _load(folder)
    points = sorted(found["points"], key=lambda point: -point["score"])
    lines = [
        f"## Search on {found['task']} ({found['model_name']}, {folder.name})\n",
        f"{len(points)} points on {len(found['data']['examples'])} examples of {found['data']['source']}, "
        f"{found['seconds']:.1f} s of work. The best {min(len(points), _MOST_LINES)}:\n",
        "| rate | steps | KL | layers | alpha | score |",
        "| ---- | ----- | -- | ------ | ----- | ----- |",
    ]
    for point in points[:_MOST_LINES]:
        recipe = point["recipe"]
        lines.append(
            f"| {recipe['learning_rate']:.3g} | {recipe['steps']} | {recipe['kl_weight']:.3g} | {recipe['layers']} | "
            f"{point['alpha']:.3g} | {_interval(point)} |"
        )
    return "\n".join(lines) + "\n"


def landscape(folder: Path) -> str:
    """One coloured grid of rate by KL weight for every number of steps (and layers and alpha); as HTML."""
    found = _load(folder)
    points, winner = found["points"], found["best"]
    recipe = winner["recipe"]
    said = (
        f"rate {recipe['learning_rate']:.3g}, {recipe['steps']} steps, KL {recipe['kl_weight']:.3g}, "
        f"layers {recipe['layers']}" + (f", alpha {winner['alpha']:.3g}" if winner["alpha"] else "")
    )
    parts = [
        f"<section><h2>Search on {escape(found['task'])} <small>{escape(found['model_name'])}</small></h2>"
        f"<p class=small>{len(points)} points, {len(found['data']['examples'])} examples, "
        f"{found['seconds']:.0f} s of work. Best: <b>{escape(said)}</b>, {_interval(winner)}.</p>"
    ]
    if found["sampler"] == "grid":
        scale = min(p["score"] for p in points), max(p["score"] for p in points)
        keys = dict.fromkeys(_slice(point) for point in points)
        grids = "".join(_grid([p for p in points if _slice(p) == key], winner, key, scale) for key in keys)
        parts.append(
            f"<p class=small>One colour means one score everywhere: {scale[0]:.3f} the faintest, {scale[1]:.3f} the "
            f"strongest. The best is framed.</p><div class=grids>{grids}</div>"
        )
    parts.append(f"<h3>What was tried, in order</h3>{_curve(points)}")
    return "".join(parts) + "</section>"


def _slice(point: Point) -> tuple[int, tuple[int, ...], float]:
    return point["recipe"]["steps"], tuple(point["recipe"]["layers"]), point["alpha"]


def _grid(
    points: list[Point], winner: Point, key: tuple[int, tuple[int, ...], float], scale: tuple[float, float]
) -> str:
    rates = sorted({p["recipe"]["learning_rate"] for p in points})
    kls = sorted({p["recipe"]["kl_weight"] for p in points})

    def place(point: Point) -> tuple[int, int]:
        return rates.index(point["recipe"]["learning_rate"]), kls.index(point["recipe"]["kl_weight"])

    cells = {place(point): point["score"] for point in points}
    steps, layers, alpha = key
    where = "" if layers == (-1,) else f", layers {', '.join(map(str, layers))}"
    title = f"{steps} steps{where}" + (f", alpha {alpha:g}" if alpha else ", no contrast")
    best = place(winner) if _slice(winner) == key else (-1, -1)
    columns, rows = [f"KL {kl:g}" for kl in kls], [f"rate {rate:g}" for rate in rates]
    drawn = svg_charts.grid(columns, rows, cells, best, title, scale)
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>"


def _curve(points: list[Point]) -> str:
    """Every point in the order it was tried, and the best so far."""
    scores = tuple(float(point["score"]) for point in points)
    best = tuple(max(scores[: i + 1]) for i in range(len(scores)))
    panels = [
        ("score of each point", svg_charts.Curve("score", scores, scores, scores)),
        ("best so far", svg_charts.Curve("best", best, best, best)),
    ]
    return svg_charts.curves(panels, "score by point", "point")


def _interval(point: Point) -> str:
    if point["low"] is None:
        return f"{point['score']:.3f}"
    return f"{point['score']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"


def _load(folder: Path) -> dict[str, Any]:
    found = run_files.read_json(folder / SEARCH)
    if not found.get("points"):
        raise RunError(f"the search in {folder} has not finished: start the same `fastmem search` again.")
    return found
