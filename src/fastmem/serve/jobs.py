"""Jobs for the engine, and the events it reports about them.

A `Job` asks for an answer (`request`) or for an `action` on a memory. Its events are passed to `emit`, which is called
in the worker's thread: the `Piece`s of an answer, then one `AnswerFinished`, `ActionFinished` or `JobFailed`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastmem.answer.request import Request as DecodeRequest
from fastmem.answer.row import Row
from fastmem.answer.running_batch import Answer, Piece
from fastmem.errors import FastMemError, without_locals
from fastmem.memory.memory import Memory
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.store import Entry


class OverloadedError(FastMemError, RuntimeError):
    """The queue is full, or a job waited in it for too long. retry_after_seconds: when to try again."""

    def __init__(self, text: str, retry_after_seconds: int):
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class DrainingError(FastMemError, RuntimeError):
    """The server is shutting down: running work is finished, nothing new is started."""


@dataclass(frozen=True)
class AnswerFinished:
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
class ActionFinished:
    """The result of an action. memory: the memory's record."""

    result: Any
    memory: dict[str, Any]


@dataclass(frozen=True)
class JobFailed:
    """The job has ended with an error, which may wait for its client, so it holds no tensors of what failed."""

    error: Exception

    def __post_init__(self) -> None:
        without_locals(self.error)


@dataclass(frozen=True)
class MemorizeProgress:
    """An update of the memory that a job waits for is about to be made. step: of `steps`, from 0. loss: before it."""

    step: int
    steps: int
    loss: float


Event = Piece | AnswerFinished | ActionFinished | JobFailed | MemorizeProgress


@dataclass(eq=False)
class Job:
    """One task for the engine.

    account: who asked, whatever the salt of its memories. source: the memory it needs, if any. request: the answer to
    decode, still without its memory. action: a function of the memory, for jobs without an answer; on_device: it needs
    the weights there. durable: wait until the memory is on disk. progress: report every update. together: the same
    object for all answers to one request. The engine sets the other fields; overtaken: how many later jobs have
    started while this one waited for room in the store; saved_again: whether a memory that could not be written was
    written again for this job; row: it has begun, even if it waits for others to go first.
    """

    emit: Callable[[Event], None] = lambda event: None
    source: MemorySource | None = None
    request: DecodeRequest | None = None
    action: Callable[[Memory], Any] | None = None
    on_device: bool = True
    durable: bool = False
    progress: bool = False
    account: str = ""
    together: object = field(default_factory=object)

    submitted: float = field(default_factory=time.perf_counter)
    entry: Entry | None = None
    memory_available: float = 0.0
    first_token: float = 0.0
    made: bool = False
    overtaken: int = 0
    saved_again: bool = False
    row: Row | None = None
    suspect: bool = False
    over: bool = False

    def finished(self, answer: Answer) -> AnswerFinished:
        """The last event of an answer. It holds no weights."""
        return AnswerFinished(
            answer=replace(answer, memory=None),
            seconds=time.perf_counter() - self.submitted,
            first_seconds=self.first_token - self.submitted,
            memory_seconds=max(self.memory_available - self.submitted, 0.0),
            memory=self.entry.record if self.entry is not None else None,
            made=self.made,
        )

    def release(self) -> None:
        """Drop the weights, the row and `emit`.

        `emit` refers to the mailbox and the mailbox to the job, so both would stay in memory until the garbage
        collector runs.
        """
        self.action = self.request = self.row = None
        self.emit = lambda event: None
