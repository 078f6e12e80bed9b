"""Whose work the worker does next: that of the account which has used least of its time lately.

So whoever asks now and then hardly notices those who ask all the time, and these share what is left, as with the
schedulers of operating systems. Since use is forgotten, nobody waits for ever.
"""

import time
from collections.abc import Callable

from fastmem.serve.isolated_batch import IsolatedBatch
from fastmem.serve.jobs import Job
from fastmem.serve.memorize_queue import Memorization

HALF_LIFE_SECONDS = 10.0
FORGOTTEN_SECONDS = 0.01


class FairShare:
    """The seconds that accounts have used; every `HALF_LIFE_SECONDS` they count for half. For the worker's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, tuple[float, float]] = {}  # account -> (seconds, at which time)

    def add(self, account: str, seconds: float) -> None:
        """Count seconds that were spent for an account."""
        self._used[account] = (self.seconds(account) + seconds, self._clock())
        if len(self._used) > 1000:
            kept = [name for name in self._used if self.seconds(name) > FORGOTTEN_SECONDS]
            self._used = {name: self._used[name] for name in kept}

    def seconds(self, account: str) -> float:
        """What the account has used, as far as it is remembered."""
        used, at = self._used.get(account, (0.0, 0.0))
        return used * 0.5 ** ((self._clock() - at) / HALF_LIFE_SECONDS)

    def level(self, account: str) -> int:
        """Whole seconds. A lower level goes first; within a level requests are served in their order."""
        return int(self.seconds(account))

    def lowest_level(self, batch: IsolatedBatch, making: Memorization | None) -> int:
        """The lowest level of those whose rows could be stepped or whose memory could be made now."""
        accounts = [job.account for job in (*batch.jobs, *batch.paused, *batch.set_aside)]
        accounts += [making.entry.source.account] if making is not None else []
        return min(map(self.level, accounts), default=0)

    def stepped(self, batch: IsolatedBatch, level: int) -> list[Job]:
        """The jobs in the batch that are at most at this level."""
        return [job for job in (*batch.jobs, *batch.paused) if self.level(job.account) <= level]

    def leaves_for(self, job: Job, batch: IsolatedBatch) -> Job | None:
        """The job of the highest level in the batch, if `job` has a lower one."""
        last = max((*batch.jobs, *batch.paused), key=lambda other: self.level(other.account), default=None)
        return last if last is not None and self.level(last.account) > self.level(job.account) else None
