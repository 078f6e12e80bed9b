"""What `fastmem calibrate` shows: how far it is, which `--recipe auto` shows as well, and the rates that it tried."""

import time
from typing import TYPE_CHECKING

from fastmem.cli.output import Status

if TYPE_CHECKING:
    from fastmem.calibrate import Calibration, Progress

WIDTH = 20  # of the bar, in characters


class ProgressBar:
    """Shows the progress of a calibration on the status line, and erases it at the end."""

    def __init__(self, status: Status):
        self.status = status
        self._started = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        done = progress.done >= progress.total
        self.status("" if done else progress_line(progress, time.monotonic() - self._started))


def progress_line(progress: "Progress", seconds: float) -> str:
    """A bar, and how long it takes yet if every rate that may be tried is tried. seconds: since the beginning."""
    full = WIDTH * progress.done // progress.total
    text = f"finding a learning rate {'█' * full}{'░' * (WIDTH - full)} {progress.done} of {progress.total} documents"
    if progress.done:
        text += f", at most {seconds / progress.done * (progress.total - progress.done):.0f} s left"
    if progress.point is not None:
        text += f"; drift {progress.point.drift:.2g} at rate {progress.point.learning_rate:.2g}"
    return text


def lines(found: "Calibration") -> list[str]:
    """The rates that were tried, and the recipe."""
    rows = [
        f"{point.learning_rate:9.2g} {point.drift:12.2g} {point.loss_before:8.2f} {point.loss_after:8.2f}"
        for point in found.points
    ]
    recipe = found.recipe
    return [
        "     rate   drift, nats   loss of the document, before and after",
        *rows,
        f"recipe: --learning-rate {recipe.learning_rate:g} --steps {recipe.steps} --kl-weight {recipe.kl_weight:g}",
    ]
