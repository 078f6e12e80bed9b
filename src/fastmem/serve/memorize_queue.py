"""Memories under way: the oldest gets one update at a time, and only as long as somebody waits for it."""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

from fastmem.core.memorize import read, stepwise
from fastmem.core.memory import Memory, Step
from fastmem.model import FastMem, explained_out_of_memory
from fastmem.serve.records import Wish
from fastmem.serve.store import Entry


@dataclass(eq=False)
class Making:
    """One memory under way. seconds: of work on it, without what was done in between. memory: there when complete."""

    entry: Entry
    steps: Generator[Step | None, None, Memory]
    seconds: float = 0.0
    memory: Memory | None = None
    error: Exception | None = None


class Makings:
    """A line of memories to be made. Lives in the worker's thread."""

    def __init__(self, llm: FastMem):
        self.llm = llm
        self._line: list[Making] = []

    def __len__(self) -> int:
        return len(self._line)

    def begin(self, entry: Entry, wish: Wish) -> bool:
        """Line up a memory; False where it is in line already."""
        if any(making.entry is entry for making in self._line):
            return False
        self._line.append(Making(entry, self._steps(wish)))
        return True

    def step(self) -> Making | None:
        """One update of the oldest; what it has become, once complete or failed."""
        self._line = [making for making in self._line if making.entry.holders]
        if not self._line:
            return None
        making, started = self._line[0], time.perf_counter()
        try:
            next(making.steps)
        except StopIteration as end:
            making.memory = end.value
        except Exception as error:  # reported to who waits for it, and to nobody else
            making.error = error
        making.seconds += time.perf_counter() - started
        if making.memory is None and making.error is None:
            return None
        del self._line[0]
        return making

    def _steps(self, wish: Wish) -> Generator[Step | None, None, Memory]:
        """The trunk pass, then one update at a time."""
        assert wish.tokens is not None
        trunk, layers = self.llm.trunk, self.llm.trunk.indices(wish.recipe.layers)
        with explained_out_of_memory():
            reading = read(trunk, wish.tokens.ids, wish.tokens.scored, layers)
            yield None
            steps = (wish.recipe.steps,)
            (memory,) = yield from stepwise(trunk, reading, wish.recipe, self.llm.base(layers), steps)
        return replace(memory, details=self.llm.provenance(wish.tokens))
