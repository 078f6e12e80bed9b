"""The running batch: requests join, every step adds text to their answers, and they leave when they are complete.

This is the only loop that decodes: `generate`, `Stream`, the experiments and the server use it. It adds to `Batch`
what makes tokens an answer: text, stop strings, log-probabilities, and prefixes that are kept for other requests.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastmem.answer.batch import Batch
from fastmem.answer.cache import PrefixCache
from fastmem.answer.detokenize import Detokenizer
from fastmem.answer.request import Request
from fastmem.answer.row import Logprob, Row
from fastmem.device_memory import explained_out_of_memory
from fastmem.errors import InputError
from fastmem.memory.memory import Memory
from fastmem.split.split_model import SplitModel
from fastmem.torch_modes import in_own_modes

log = logging.getLogger("fastmem")


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    text: without special tokens, and without the stop string that ended it. token_ids: as decoded, including an end
    token. reason: "stop" for an end token or a stop string, "length" for max_new_tokens. prompt_tokens: tokens of the
    prompt, of which cached_tokens were not read again. memorize_seconds, decode_seconds: wall time; the latter
    includes reading the prompt, and in a batch it is the time until this answer was complete. prompt_seconds: the part
    of decode_seconds until the first token. logprobs: with top_logprobs, the log-probability of every token and pairs
    of token id and log-probability for the most likely ones. memory: the one that was used.
    """

    text: str
    token_ids: tuple[int, ...]
    reason: str
    method: str
    prompt_tokens: int
    cached_tokens: int = 0
    memorize_seconds: float = 0.0
    decode_seconds: float = 0.0
    prompt_seconds: float = 0.0
    logprobs: tuple[Logprob, ...] = field(default=(), repr=False)
    memory: Memory | None = field(default=None, repr=False)

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time of the tokens after the first, without reading the prompt; None if there are none."""
        later = len(self.token_ids) - 1
        return (self.decode_seconds - self.prompt_seconds) / later if later > 0 else None


@dataclass(frozen=True)
class Piece:
    """What one step added to one answer.

    text: may be empty. token, logprob: the new token and its log-probability, where asked for; an end token has none,
    since no text belongs to it. answer: the complete answer with its last piece, otherwise None.
    """

    text: str
    token: int
    logprob: Logprob | None = None
    answer: Answer | None = None


class PieceError(RuntimeError):
    """A step added its tokens, but the pieces of text for them could not be made."""


class RunningBatch:
    """Answers decoded at the same time. Not for use by two threads at once.

    tokenizer: None if only token ids are wanted. prefixes: cache of earlier prompts, to which new ones are added.
    """

    def __init__(self, split_model: SplitModel, tokenizer: Any = None, prefixes: PrefixCache | None = None):
        self.split_model, self.tokenizer = split_model, tokenizer
        self.prefixes = prefixes if prefixes is not None else PrefixCache(0)
        self._batch = Batch(split_model)

    @property
    def rows(self) -> list[Row]:
        """The answers in progress."""
        return self._batch.rows

    def join(self, requests: Sequence[Request], started: float | None = None) -> list[Row]:
        """Add requests; the next step reads their prompts. started: the time that `decode_seconds` counts from."""
        started = time.perf_counter() if started is None else started
        rows = []
        for request in requests:
            row = Row(request, request.sampling.generator(), prefix=request.prefix, started=started)
            if row.prefix is None and request.shares_trunk:
                row.prefix = self.prefixes.longest(request.prompt, request.salt)
            if self.tokenizer is not None:
                row.text = Detokenizer(self.tokenizer, request.stop, request.min_new_tokens)
            rows.append(row)
        self._batch.add(rows)
        return rows

    @in_own_modes
    def step(self) -> list[tuple[Row, Piece]]:
        """One more token for every answer: a piece for each; complete answers have left.

        Errors: those of `Batch.step`, after which the rows can go on in a restarted batch; `PieceError` if the tokens
        were added but their text could not be made, after which they cannot.
        """
        rows = list(self._batch.rows)
        self._batch.step()
        try:
            pieces = [(row, self._piece(row)) for row in rows]
        except Exception as error:
            raise PieceError(f"the text of a step was lost: {error}") from error
        stopped = [row for row in self._batch.rows if row.reason]  # by a stop string
        if stopped:
            self._batch.leave(stopped)
        return pieces

    def leave(self, rows: Sequence[Row]) -> None:
        """Abandon these answers."""
        self._batch.leave(rows)

    def pause(self, rows: Sequence[Row]) -> None:
        """Leave these answers as they are until `go_on`."""
        self._batch.pause(rows)

    def go_on(self, rows: Sequence[Row]) -> None:
        """Let paused answers take part in the next step."""
        self._batch.go_on(rows)

    def restart(self, rows: Sequence[Row]) -> None:
        """Go on with these answers alone, after a step that raised: every prompt and answer is read again."""
        self._batch = Batch(self.split_model)
        self.resume(rows)

    def resume(self, rows: Sequence[Row]) -> None:
        """Add answers that have begun in a batch that was given up."""
        for row in rows:
            row.restore_draws()
            row.prefix = None
            row.cached_tokens = row.cached_tokens if row.token_ids else 0
        self._batch.add(rows)

    def _piece(self, row: Row) -> Piece:
        if len(row.token_ids) == 1:
            row.first_token = time.perf_counter()
            self._keep_prefix(row)
        token, text = row.token_ids[-1], row.text
        ends = token in row.request.stop_ids
        piece = "" if ends or text is None else text.add(token)
        if text is not None and text.stopped:
            row.reason = "stop"  # also where it is the last token that may be
        logprob = row.logprobs[-1] if row.logprobs and not ends else None
        if row.reason is None:
            return Piece(piece, token, logprob)
        return Piece(piece + (text.finish() if text is not None else ""), token, logprob, _answer(row))

    def _keep_prefix(self, row: Row) -> None:
        """Cache what was read of the prompt, as far as other requests may use it, with any memory of the last FFN."""
        shared = row.request.shared_tokens
        shared = len(row.request.prompt) if shared is None else shared
        if not self.prefixes.limit_bytes or shared <= row.cached_tokens:
            return
        try:
            prefix = self._batch.prefix(row, shared)  # copies keys and values
        except (RuntimeError, MemoryError) as error:
            log.warning("a prompt of %d tokens was not cached: %s", len(row.request.prompt), error)
            return
        self.prefixes.add(prefix, row.request.salt)


def decode(batch: RunningBatch, requests: Sequence[Request], batch_size: int) -> Iterator[tuple[Row, Piece]]:
    """Decode all requests, `batch_size` at a time; the next one joins as soon as one leaves.

    Errors: `ResourceError` if memory runs out.
    """
    started, waiting = time.perf_counter(), deque(requests)
    with explained_out_of_memory():
        while waiting or batch.rows:
            free = min(len(waiting), batch_size - len(batch.rows))
            batch.join([waiting.popleft() for _ in range(free)], started)
            yield from batch.step()


def answers(batch: RunningBatch, requests: Sequence[Request], batch_size: int) -> list[Answer]:
    """The answers to all requests, in their order. Errors: those of `decode`."""
    found = {id(row.request): p.answer for row, p in decode(batch, requests, batch_size) if p.answer is not None}
    return [found[id(request)] for request in requests]


class Stream:
    """One answer, piece by piece: iterate for its text; `answer` is set when the iteration has ended.

    unwritten: whether the model's weights are still those that the answer was begun with. Errors: `InputError` if not.
    """

    def __init__(
        self,
        pieces: Iterator[tuple[Row, Piece]],
        unwritten: Callable[[], bool],
        memory: Memory | None = None,
        memorize_seconds: float = 0.0,
    ):
        self._pieces, self._unwritten = pieces, unwritten
        self.memory, self.memorize_seconds = memory, memorize_seconds
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        while self.answer is None:
            if not self._unwritten():
                raise InputError(
                    "the model was changed while this answer was written: its weights were written to, and what was "
                    "read before does not go with them. Ask again."
                )
            if (found := next(self._pieces, None)) is None:
                return
            _, piece = found
            if piece.answer is not None:  # before the last text, after which the caller may stop
                self.answer = replace(piece.answer, memorize_seconds=self.memorize_seconds)
            if piece.text:
                yield piece.text

    def run(self) -> Answer:
        """The whole answer at once."""
        for _ in self:
            pass
        assert self.answer is not None
        return self.answer


def _answer(row: Row) -> Answer:
    return Answer(
        text=row.text.text if row.text is not None else "",
        token_ids=tuple(row.token_ids),
        reason=row.reason or "stop",
        method=row.request.method,
        prompt_tokens=len(row.request.prompt),
        cached_tokens=row.cached_tokens,
        decode_seconds=time.perf_counter() - row.started,
        prompt_seconds=row.first_token - row.started,
        logprobs=tuple(row.logprobs),
        memory=row.request.memory,
    )
