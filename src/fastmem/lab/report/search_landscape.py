"""The report of a recipe search: a Markdown table and an HTML section, from the search's files."""

from pathlib import Path
from typing import Any

from fastmem.errors import RunError
from fastmem.lab.report.charts import Curve
from fastmem.lab.report.content import interval_text
from fastmem.lab.report.table import markdown_table
from fastmem.lab.report.templates import render
from fastmem.lab.run import run_files
from fastmem.lab.run.run_shapes import SEARCH, require_shape

_MOST_LINES = 12

Point = dict[str, Any]
Slice = tuple[int, tuple[int, ...], float]  # steps, layers, alpha: the points of one grid


def search_table(folder: Path) -> str:
    """The best points and the cost of the search, as Markdown. Errors: `RunError`."""
    search = _load(folder)
    points = sorted(search["points"], key=lambda point: -point["score"])
    best = points[:_MOST_LINES]
    return (
        f"## Search on {search['task']} ({search['model_name']}, {folder.name})\n\n{_extent(search)} "
        f"{search['seconds']:.1f} s of work. The best {len(best)}:\n\n"
        + markdown_table(["rate", "steps", "KL", "layers", "alpha", "score"], [_cells(point) for point in best])
    )


def landscape(folder: Path) -> str:
    """The search as HTML: a grid of rate by KL weight per steps, layers and alpha, and the scores in order.

    Errors: `RunError`.
    """
    search = _load(folder)
    points, winner = search["points"], search["best"]
    scores = [point["score"] for point in points]
    best_so_far = [max(scores[: i + 1]) for i in range(len(scores))]
    curves = {"score of each point": scores, "best so far": best_so_far}
    slices = dict.fromkeys(map(_slice, points)) if search["sampler"] == "grid" else ()
    return render(
        "landscape.html.jinja",
        search=search,
        extent=_extent(search),
        best=_description(winner),
        best_score=_score(winner),
        scale=(min(scores), max(scores)),
        grids=[_grid([p for p in points if _slice(p) == key], winner, key) for key in slices],
        curves=[Curve(name, values, values, values) for name, values in curves.items()],
    )


def _extent(search: dict[str, Any]) -> str:
    """How many points were scored on what, and how much is left: `60 points on 12 of 50 examples of nq.json; ...`."""
    points, examples = f"{len(search['points'])} points", f"{len(search['data']['examples'])} examples"
    left = failed = ""
    done, total = search.get("done") or 0, search.get("total") or 0  # version 0.1.0 wrote points at the end only
    if done < total:
        left = "; not finished: run the same `fastmem search` again"
        if search["sampler"] == "grid":
            examples = f"{done} of {examples}"
        else:
            points += f" of {done} of {total} trials"
    worst = max(search["points"], key=lambda point: point.get("errors") or 0)
    if count := worst.get("errors"):
        most = count if search["sampler"] == "grid" else f"Up to {count}"
        error = " ".join((worst.get("error") or "unknown").split()).rstrip(".")
        failed = f" {most} of them failed with an error and count as wrong; the first: {error}."
    return f"{points} on {examples} of {search['data']['source']}{left}.{failed}"


def _cells(point: Point) -> list[str]:
    recipe = point["recipe"]
    settings = [f"{recipe['learning_rate']:.3g}", str(recipe["steps"]), f"{recipe['kl_weight']:.3g}"]
    return [*settings, str(recipe["layers"]), f"{point['alpha']:.3g}", _score(point)]


def _description(point: Point) -> str:
    rate, steps, kl_weight, layers, alpha, _ = _cells(point)
    contrast = f", alpha {alpha}" if point["alpha"] else ""
    return f"rate {rate}, {steps} steps, KL {kl_weight}, layers {layers}{contrast}"


def _score(point: Point) -> str:
    return interval_text(point["score"], point.get("low"), point.get("high"))


def _slice(point: Point) -> Slice:
    return point["recipe"]["steps"], tuple(point["recipe"]["layers"]), point["alpha"]


def _grid(points: list[Point], winner: Point, key: Slice) -> dict[str, object]:
    """The values of one grid in the template. scores, best: by (rate, KL weight)."""

    def cell(point: Point) -> tuple[float, float]:
        return point["recipe"]["learning_rate"], point["recipe"]["kl_weight"]

    steps, layers, alpha = key
    of_layers = "" if layers == (-1,) else f", layers {', '.join(map(str, layers))}"
    scores = {cell(point): point["score"] for point in points}
    return {
        "title": f"{steps} steps{of_layers}" + (f", alpha {alpha:g}" if alpha else ", no contrast"),
        "rates": sorted({rate for rate, _ in scores}),
        "kl_weights": sorted({kl_weight for _, kl_weight in scores}),
        "scores": scores,
        "best": cell(winner) if _slice(winner) == key else None,
    }


def _load(folder: Path) -> dict[str, Any]:
    search = run_files.read_json(folder / run_files.SEARCH)
    if not search.get("points"):
        raise RunError(f"the search in {folder} has not finished: run the same `fastmem search` again.")
    require_shape(search, SEARCH, str(folder / run_files.SEARCH))
    if not search.get("best"):
        raise RunError(f"every question that the search in {folder} tried has failed: search again, in a new folder.")
    return search
