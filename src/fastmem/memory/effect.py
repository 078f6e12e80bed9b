"""Whether memorizing had an effect, and not too much: what the cross entropies of its steps say about the rate.

They are measured before every update.

*Hardly*: the cross entropy of the document fell by less than a twentieth. At the paper's rate of 1e-5, which is for 8
billion parameters, it falls by 1.4 to 5.7 % on the embedded model and by 0.9 to 5.6 % on nq-mini (7.7 million), and
hardly an answer changes; at 1e-4 by 9 % or more, and answers do (docs/log.md, 2026-11-26). A short document is no
exception: one of a single token falls by 2 % and by 70 %.

*Too far*: it rose on the way well above where it began. At such rates the model breaks: the answers to all other
questions change, and then those about the document. The KL cannot tell this, since it also grows with how much there
was to learn (0.3 to 7 nats in good runs). The last cross entropy cannot tell it either, since a broken model can
repeat the document.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastmem.memory.memory import Memory

log = logging.getLogger("fastmem")

HARDLY = 0.05  # the fall, as a share of the first cross entropy
KNOWN = 0.1  # nats per token: the tokens have a probability of 0.9, and nothing is left to learn
# A rise by less than both is rounding, or one step that was too long.
RISEN, RISEN_NATS = 0.1, 0.1
NOT_FINITE = "no longer finite"  # in what `Memory.stopped` says of a run that diverged


@dataclass(frozen=True)
class Notice:
    """A warning that memorizing had almost no effect, or too much.

    seen: what was observed, without a full stop. direction: whether a better learning rate is above or below
    learning_rate.
    """

    seen: str
    direction: Literal["above", "below"]
    learning_rate: float

    @property
    def better_rate(self) -> str:
        """Which learning rates to try, such as `above 1e-05`."""
        return f"{self.direction} {self.learning_rate:g}"

    def __str__(self) -> str:
        """The notice for a Python caller."""
        return f'{self.seen}: memorize again with recipe="auto", or with a learning_rate {self.better_rate}'


def notice_of(cross_entropies: Sequence[float], stopped: str | None, learning_rate: float) -> Notice | None:
    """The warning about a memory, or None. cross_entropies: in nats per token, before every update.

    There is none where the effect was not measured, and none for a run that a stop rule of its recipe ended while all
    was well.
    """
    if stopped is not None and NOT_FINITE in stopped:
        return Notice(f"memorizing stopped early: {stopped}", "below", learning_rate)
    if not is_measured(cross_entropies):
        return None
    first, highest, last = cross_entropies[0], max(cross_entropies), cross_entropies[-1]
    if highest > first + max(RISEN * first, RISEN_NATS):
        text = f"memorizing went too far (cross entropy {first:.2f}, then {highest:.2f} nats per token)"
        return Notice(text, "below", learning_rate)
    if hardly(first, last):
        text = f"memorizing had almost no effect (cross entropy {first:.2f} to {last:.2f} nats per token)"
        return Notice(text, "above", learning_rate)
    return None


def is_measured(trace: Sequence[object]) -> bool:
    """Whether the steps say something of the effect: one that is measured before the only update does not."""
    return len(trace) > 1


def hardly(first: float, last: float) -> bool:
    """Whether a cross entropy that went from `first` to `last` hardly fell, although there was something to learn."""
    return first > KNOWN and last > (1 - HARDLY) * first


def warn_of_effects(memories: "Sequence[Memory]") -> None:
    """Log warnings about memories that were just made: the first with almost no effect, and the first that went
    too far. A run that a stop rule of its recipe ended is always named."""
    for memory in memories:
        if memory.stopped is not None and NOT_FINITE not in memory.stopped:
            log.warning("memorizing stopped early: %s.", memory.stopped)
    notices = [memory.notice for memory in memories if memory.notice is not None]
    for notice in {notice.direction: notice for notice in reversed(notices)}.values():
        log.warning(notice)
