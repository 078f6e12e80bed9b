"""What the engine is asked to do, and what it reports while it works.

A `Job` asks for an answer (`request`) or for something done with a memory (`act`). Its owner is told through `emit`,
which is called in the worker's thread: with the `Piece`s of an answer, then with one `Finished`, `Done` or `Failed`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastmem.answer.batch import Row
from fastmem.answer.request import Request
from fastmem.answer.running_batch import Answer, Piece
from fastmem.errors import FastMemError
from fastmem.memory.memory import Memory
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.store import Entry


class OverloadedError(FastMemError, RuntimeError):
    """No room in the queue, or no answer from it in time. retry_after_seconds: when to ask again."""

    def __init__(self, text: str, retry_after_seconds: int):
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class DrainingError(FastMemError, RuntimeError):
    """The server is shutting down: running work is finished, nothing new is started."""


@dataclass(frozen=True)
class Finished:
    """An answer is complete.

    seconds: since it was submitted. first_seconds: until its first token, including memory_seconds until its memory
    was available. memory: the record of that memory. made: whether it was made for this answer.
    """

    answer: Answer
    seconds: float
    first_seconds: float
    memory_seconds: float
    memory: dict[str, Any] | None
    made: bool


@dataclass(frozen=True)
class Done:
    """The result of `act`. memory: the memory's record."""

    result: Any
    memory: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The job has ended with an error."""

    error: Exception


Event = Piece | Finished | Done | Failed


@dataclass(eq=False)
class Job:
    """One task for the engine.

    source: the memory it needs, if any. request: the answer to decode, still without its memory. act: a function of
    the memory, for jobs without an answer. durable: wait until the memory is on disk. The other fields belong to the
    engine.
    """

    emit: Callable[[Event], None]
    source: MemorySource | None = None
    request: Request | None = None
    act: Callable[[Memory], Any] | None = None
    durable: bool = False

    submitted: float = field(default_factory=time.perf_counter)
    entry: Entry | None = None
    memory_available: float = 0.0
    first_token: float = 0.0
    made: bool = False
    overtaken: int = 0
    row: Row | None = None
    suspect: bool = False
    over: bool = False

    def finished(self, answer: Answer) -> Finished:
        """The last event of an answer. It holds no weights."""
        return Finished(
            answer=replace(answer, memory=None),
            seconds=time.perf_counter() - self.submitted,
            first_seconds=self.first_token - self.submitted,
            memory_seconds=max(self.memory_available - self.submitted, 0.0),
            memory=self.entry.record if self.entry is not None else None,
            made=self.made,
        )

    def release(self) -> None:
        """Drop the weights and the row that were used, and the owner.

        Job and owner refer to each other, so both would stay in memory until the garbage collector runs.
        """
        self.act = self.request = self.row = None
        self.emit = lambda event: None
