"""The curve of `fastmem calibrate --plot`: drift and loss by rate, with the limits and the rate that was chosen."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fastmem.errors import InputError
from fastmem.extras import require
from fastmem.home_path import expanded

if TYPE_CHECKING:
    from fastmem.calibrate import Calibration

SUFFIXES = (".svg", ".png")
INK, LINE, LIMIT, SECOND = "#222222", "#4c78a8", "#e45756", "#72b7b2"


def require_drawable(path: Path) -> None:
    """Errors: `InputError` for another ending or a folder that is missing, `MissingPackageError` for matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"the picture {str(path)!r} ends in neither .svg nor .png: give one of these endings.", field="plot"
        )
    if not expanded(path).absolute().parent.is_dir():
        raise InputError(f"the folder of {str(path)!r} does not exist: create it, or give another.", field="plot")
    require("matplotlib", extra="plot", purpose="drawing", options=("plot",))


def draw(found: "Calibration", path: Path, model: str) -> None:
    """Draw the rates that were tried. A rate whose runs diverged stands at the top of the chart, as a triangle.

    model: its name, for the title. Errors: `InputError` if the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from fastmem.atomic_write import replacing
    from fastmem.calibrate import LIMITS

    rate = found.recipe.learning_rate
    points = [point for point in found.points if math.isfinite(point.drift)]
    with rc_context({"svg.hashsalt": "fastmem", "font.size": 9}):
        figure = Figure(figsize=(6.4, 5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot([p.learning_rate for p in points], [p.drift for p in points], "o-", color=LINE, label="drift")
        upper.axhline(LIMITS.drift, color=LIMIT, linewidth=1, label=f"limit, {LIMITS.drift:g}")
        upper.axhline(
            LIMITS.drift_until_learnt,
            color=LIMIT,
            linewidth=1,
            linestyle="--",
            label=f"limit for documents not yet learnt, {LIMITS.drift_until_learnt:g}",
        )
        for point in found.points:
            if point not in points:
                place = upper.get_xaxis_transform()
                upper.plot(
                    point.learning_rate,
                    0.97,
                    "^",
                    color=LIMIT,
                    transform=place,
                    label=f"{point.learning_rate:.2g} diverged",
                )
        upper.set_yscale("log" if any(p.drift > 0 for p in points) else "linear")
        upper.set_ylabel("drift, nats per token of an\nanswer about another document")
        tried = [p for p in found.points if math.isfinite(p.loss_after)]
        rates = [p.learning_rate for p in tried]
        lower.plot(rates, [p.loss_before for p in tried], "--", color=SECOND, label="before memorizing")
        lower.plot(rates, [p.loss_after for p in tried], "o-", color=LINE, label="after memorizing")
        if tried:
            learnt = (1 - LIMITS.learnt) * tried[0].loss_before
            lower.axhline(learnt, color=LIMIT, linewidth=1, label=f"learnt: {LIMITS.learnt:.0%} lower")
        lower.set_ylabel("loss of the documents,\nnats per token")
        lower.set_xlabel("learning rate")
        lower.set_xscale("log")
        lower.set_xticks([p.learning_rate for p in found.points], [f"{p.learning_rate:.2g}" for p in found.points])
        lower.set_xticks([], minor=True)
        for axes in (upper, lower):
            axes.axvline(rate, color=INK, linewidth=1, linestyle=":", label=f"chosen, {rate:g}")
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        upper.set_title(f"{model}, {found.recipe.steps} steps", loc="left")
        try:
            with replacing(expanded(path)) as file:
                figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)
        except OSError as error:
            text = f"the picture {str(path)!r} cannot be written ({error.strerror}): give another file."
            raise InputError(text, field="plot") from error
