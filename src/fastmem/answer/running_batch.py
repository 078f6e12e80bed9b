"""Requests -> answers: the options of decoding, the loop that turns tokens into text, and what comes out.

Knows a tokenizer only as something with `decode`. Streaming, single answers and lists of them are one loop.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastmem.core.budget import explained_out_of_memory
from fastmem.core.cache import Prefix, PrefixCache
from fastmem.core.decode import Batch, Request, Row
from fastmem.core.memory import Memory
from fastmem.core.sampling import Sampling
from fastmem.core.trunk import Trunk
from fastmem.errors import InputError, one_of
from fastmem.prompts import Prompt
from fastmem.streaming import Detokenizer


@dataclass(frozen=True)
class Decoding:
    """Everything about one answer but its prompt, memory and method; the keyword arguments of `generate`."""

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    """Strings that end the answer; not part of it."""
    alpha: float = 0.5
    """Strength of the contrast."""
    relative_top: float | None = None
    """Plausibility cut of a contrast: only tokens of at least this fraction of the top probability. None: as
    published, 0.1 for DoLa and none for the others."""
    final_norm: bool = False
    """DoLa: early states through the final norm."""
    without_context: Prompt | None = None
    """CAD: the prompt without the document."""
    top_logprobs: int | None = None
    """Report the log-probability of every token, and of this many alternatives."""
    batch_size: int = 16
    """How many prompts of a list are decoded side by side."""
    prefix: Prefix | None = None
    """Tokens that were read before."""

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            given = self.max_new_tokens
            raise InputError(f"max_new_tokens (--max-new-tokens) is {given!r}: give a whole number, 1 or more.")

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Decoding":
        """From keyword arguments. Errors: `InputError` naming the nearest for an unknown one."""
        for name in options:
            one_of(name, [f.name for f in fields(cls)], "option")
        return cls(**options)

    def sampling(self) -> Sampling:
        """The part that chooses the next token."""
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling)})


@dataclass(frozen=True)
class Answer:
    """What was generated.

    text: without special tokens, and without the stop string that ended it. token_ids: as decoded, end token
    included. reason: "stop" or "length". prompt_tokens: tokens of the prompt, of which cached_tokens were not read
    again. memorize_seconds, decode_seconds: wall time; the latter includes reading the prompt, and in a batch it is
    the time until this answer was complete. logprobs: see `Request`. memory: the one that was used.
    """

    text: str
    token_ids: tuple[int, ...]
    reason: str
    method: str
    prompt_tokens: int
    cached_tokens: int = 0
    memorize_seconds: float = 0.0
    decode_seconds: float = 0.0
    logprobs: tuple[tuple[float, list[tuple[int, float]]], ...] = field(default=(), repr=False)
    memory: Memory | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Event:
    """One step of one answer. answer: complete, at the last event of an index; else None."""

    index: int
    piece: str
    answer: Answer | None


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: all that the generation config, the config and the tokenizer name."""
    sources = (getattr(model, "generation_config", None), model.config, tokenizer)
    named = [getattr(source, "eos_token_id", None) for source in sources]
    flat = [i for ids in named if ids is not None for i in (ids if isinstance(ids, list | tuple) else [ids])]
    return frozenset(flat)


def decode(
    trunk: Trunk,
    tokenizer: Any,
    requests: Sequence[Request],
    decoding: Decoding,
    prefixes: PrefixCache | None = None,
) -> Iterator[Event]:
    """Decode all requests, `batch_size` of them side by side, the next joining as soon as one leaves.

    prefixes: what was read before and need not be read again; what is read now is added.
    Errors: `InputError` for stop strings without a tokenizer, `ResourceError` where memory runs out.
    """
    with explained_out_of_memory():
        yield from _decode(trunk, tokenizer, requests, decoding, prefixes or PrefixCache(0))


def _decode(
    trunk: Trunk, tokenizer: Any, requests: Sequence[Request], decoding: Decoding, prefixes: PrefixCache
) -> Iterator[Event]:
    started = time.perf_counter()
    stop = [decoding.stop] if isinstance(decoding.stop, str) else list(decoding.stop)
    if stop and tokenizer is None:
        raise InputError("stop strings need a tokenizer: construct FastMem(model, tokenizer), or stop by token.")
    batch, waiting = Batch(trunk), deque(enumerate(requests))
    running: dict[int, tuple[int, Row, Detokenizer | None]] = {}
    while waiting or running:
        coming = [waiting.popleft() for _ in range(min(len(waiting), decoding.batch_size - len(running)))]
        joining = [r if r.prefix else replace(r, prefix=prefixes.longest(r.prompt)) for _, r in coming]
        for (index, _), row in zip(coming, rows := batch.join(joining), strict=True):
            running[id(row)] = (index, row, Detokenizer(tokenizer, stop) if tokenizer is not None else None)
        batch.step()
        for row in rows if prefixes.limit_bytes else ():
            prefixes.add(batch.prefix(row))
        for key, (index, row, text) in list(running.items()):
            piece = "" if text is None or row.token_ids[-1] in row.request.stop_ids else text.add(row.token_ids[-1])
            if text is not None and text.stopped and row.reason is None:
                row.reason = "stop"
                batch.leave([row])
            if row.reason is None:
                yield Event(index, piece, None)
                continue
            del running[key]
            piece += text.finish() if text is not None else ""
            seconds = time.perf_counter() - started
            yield Event(index, piece, _answer(row, text.text if text is not None else "", seconds))


class Stream:
    """One answer, piece by piece: iterate for its text; `answer` is there once that has ended."""

    def __init__(self, events: Iterator[Event], method: str, memory: Memory | None, memorize_seconds: float = 0.0):
        self._events, self.method, self.memory, self.memorize_seconds = events, method, memory, memorize_seconds
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        for event in self._events:
            if event.piece:
                yield event.piece
            if event.answer is not None:
                self.answer = replace(
                    event.answer, method=self.method, memory=self.memory, memorize_seconds=self.memorize_seconds
                )

    def run(self) -> Answer:
        """The whole answer at once."""
        for _ in self:
            pass
        assert self.answer is not None
        return self.answer


def _answer(row: Row, text: str, seconds: float) -> Answer:
    return Answer(
        text=text,
        token_ids=tuple(row.token_ids),
        reason=row.reason or "stop",
        method="base",
        prompt_tokens=len(row.request.prompt),
        cached_tokens=row.cached_tokens,
        decode_seconds=seconds,
        logprobs=tuple(row.logprobs),
    )
