"""What the engine is asked for, and what it says while it works.

A `Job` wants an answer decoded (`build`), or something done with a memory (`act`). Its maker hears of it through
`emit`, called from the worker's thread: `Piece`s while an answer grows, then one `Finished`, `Done` or `Failed`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastmem.core.decode import Request, Row
from fastmem.core.memory import Memory
from fastmem.errors import FastMemError
from fastmem.serve.records import Wish
from fastmem.serve.store import Entry
from fastmem.streaming import Detokenizer


class OverloadedError(FastMemError, RuntimeError):
    """No room in the queue, or no answer from it in time. retry_after_seconds: when to ask again."""

    def __init__(self, text: str, retry_after_seconds: int):
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class DrainingError(FastMemError, RuntimeError):
    """The server is shutting down: what runs is finished, nothing new is begun."""


@dataclass(frozen=True)
class TokenLogprob:
    """One token, its log-probability, and the most likely tokens with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """More of an answer. text: may be empty. logprob: of the token behind it, where asked for."""

    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Finished:
    """An answer is complete. seconds: since it was submitted; first_seconds: until its first token, of which
    memory_seconds went by before its memory was there."""

    reason: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    first_seconds: float
    memory_seconds: float
    memory: dict[str, Any] | None
    made: bool


@dataclass(frozen=True)
class Done:
    """What `act` gave. memory: its record."""

    result: Any
    memory: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """Nothing more will come."""

    error: Exception


Event = Piece | Finished | Done | Failed


@dataclass(eq=False)
class Job:
    """One wish of one client.

    wish: the memory it needs, if any. build: memory -> what to decode. act: memory -> anything; for jobs that need no
    answer. durable: wait until the memory is on disk. stop: strings that end the answer. shared_tokens: how many
    tokens at the start of its prompt other questions on the same documents begin with too. The rest is the engine's.
    """

    emit: Callable[[Event], None]
    tenant: str = ""
    wish: Wish | None = None
    build: Callable[[Memory | None], Request] | None = None
    act: Callable[[Memory], Any] | None = None
    durable: bool = False
    stop: tuple[str, ...] = ()
    shared_tokens: int = 0

    submitted: float = field(default_factory=time.perf_counter)
    entry: Entry | None = None
    memory_there: float = 0.0
    first_token: float = 0.0
    made: bool = False
    passed_by: int = 0
    request: Request | None = None
    row: Row | None = None
    text: Detokenizer | None = None
    token_ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    draws: torch.Tensor | None = None
    suspect: bool = False
    over: bool = False

    def let_go(self) -> None:
        """Drop the weights and the row it used, and its maker: each refers to the other, and both would stay until
        the garbage collector comes."""
        self.build = self.act = self.request = self.row = self.text = self.draws = None
        self.emit = lambda event: None

    def remaining(self) -> Request:
        """What is left to decode, should it have to go on in another batch."""
        assert self.request is not None
        if not self.token_ids:
            return self.request
        so_far = torch.tensor(self.token_ids, dtype=torch.int64)
        without = self.request.without
        return replace(
            self.request,
            prompt=torch.cat([self.request.prompt.cpu(), so_far]),
            without=None if without is None else torch.cat([without.cpu(), so_far]),
            max_new_tokens=self.request.max_new_tokens - len(self.token_ids),
            prefix=None,
        )

    def finished(self) -> Finished:
        """The last event of an answer."""
        assert self.row is not None
        assert self.request is not None
        now = time.perf_counter()
        return Finished(
            reason=self.row.reason or "stop",
            token_ids=tuple(self.token_ids),
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            seconds=now - self.submitted,
            first_seconds=self.first_token - self.submitted,
            memory_seconds=max(self.memory_there - self.submitted, 0.0),
            memory=self.entry.record if self.entry is not None else None,
            made=self.made,
        )
