"""The queue of memories to be made: the oldest gets one update at a time, as long as a job waits for it."""

import time
from dataclasses import dataclass

from fastmem.learn.memorize import Run
from fastmem.memory.memory import Memory, Step
from fastmem.model import FastMem
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

    def step(self) -> Memorization | None:
        """One update of the oldest memory, which is returned; None if there is none."""
        self._queue = [waiting for waiting in self._queue if waiting.entry.holders]
        if not self._queue:
            return None
        oldest, started = self._queue[0], time.perf_counter()
        try:
            oldest.latest = next(oldest.run)
        except StopIteration as end:
            (oldest.memory,) = end.value
        except Exception as error:  # the engine reports it to the jobs that wait
            oldest.error = error
        oldest.seconds += time.perf_counter() - started
        if oldest.memory is not None or oldest.error is not None:
            del self._queue[0]
        return oldest
