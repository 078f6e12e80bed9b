"""How far memorizing is, on the status line: steps done of all steps, the loss, and the seconds left."""

import time
from typing import TYPE_CHECKING

from fastmem.cli.output import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmem.memory.memory import Step


def memorization_progress(status: Status, what: str, steps: int) -> "Callable[[Step], None] | None":
    """`on_step` for one document: it shows each step. None if nobody would see it, since it slows the steps down.

    what: the line's beginning. It shows at once that the document is being read, which comes before the first step.
    """
    if not status.shown:
        return None
    status(f"{what}: reading the document ...")
    first: float | None = None

    def on_step(step: "Step") -> None:
        nonlocal first
        now = time.monotonic()
        first = now if first is None else first
        text = f"{what}: step {step.index + 1} of {steps}, loss {step.loss:.3f}"
        if step.index and (left := (now - first) / step.index * (steps - step.index)) >= 1:
            text += f", about {left:.0f} s left"
        status(text)

    return on_step
