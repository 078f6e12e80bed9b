"""The queue of memories to be made: one gets one update at a time, as long as a job waits for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from fastmem.learn.memorize import Run
from fastmem.memory.memory import Memory, Step
from fastmem.model import FastMem
from fastmem.serve.jobs import MemorizeProgress
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.store import Entry


@dataclass(eq=False)
class Memorization:
    """A memory being made. seconds: spent on it, without other work in between. latest: the last step, if steps are
    measured. memory, error: how it ended."""

    entry: Entry
    run: Run
    latest: Step | None = None
    seconds: float = 0.0
    memory: Memory | None = None
    error: Exception | None = None

    @property
    def progress(self) -> MemorizeProgress | None:
        """The latest step, for those who want to see it."""
        steps = self.entry.source.recipe.steps
        return MemorizeProgress(self.latest.index, steps, self.latest.loss) if self.latest is not None else None


# A memory that has begun keeps what was read of its document and the state of its optimizer.
MOST_BEGUN = 4


class MemorizeQueue:
    """Used by the worker's thread only."""

    def __init__(self, llm: FastMem):
        self.llm = llm
        self._queue: list[Memorization] = []

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, entry: Entry, source: MemorySource, watch: bool = False) -> bool:
        """Put a memory into the queue; False if it is there already. watch: measure every step while it is made."""
        if any(waiting.entry is entry for waiting in self._queue):
            return False
        assert source.tokens is not None
        self._queue.append(Memorization(entry, self.llm.memorizing(source.tokens, source.recipe, watch=watch)))
        return True

    def next_up(self, level: Callable[[str], int]) -> Memorization | None:
        """The oldest memory of those whose account has the lowest level; None if there is none."""
        self._queue = [waiting for waiting in self._queue if waiting.entry.holders]
        begun = [waiting for waiting in self._queue if waiting.seconds]
        candidates = self._queue if len(begun) < MOST_BEGUN else begun
        return min(candidates, key=lambda waiting: level(waiting.entry.source.account), default=None)

    def step(self, making: Memorization) -> float:
        """One update of a memory of the queue, which leaves it at its end. Returns the seconds it took."""
        started = time.perf_counter()
        try:
            making.latest = next(making.run)
        except StopIteration as end:
            (making.memory,) = end.value
        except Exception as error:  # the engine reports it to the jobs that wait
            making.error = error
        took = time.perf_counter() - started
        making.seconds += took
        if making.memory is not None or making.error is not None:
            self._queue.remove(making)
        return took
