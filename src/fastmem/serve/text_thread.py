"""Text becomes tokens in a thread of its own, so that a long document never stops the event loop.

One thread, because a fast tokenizer can fail in one thread while another changes its settings. Before anything is
tokenized, the length of the text is compared with what the model's positions can hold, which takes no time.
"""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastmem.encoding import half_character
from fastmem.errors import InputError
from fastmem.model import FastMem
from fastmem.serve.jobs import OverloadedError

_T = TypeVar("_T")
MOST_WAITING = 64


class TextThread:
    """replies: a copy of the tokenizer for the event loop, which decodes tokens of answers."""

    def __init__(self, llm: FastMem):
        self.replies = copy.deepcopy(llm.tokenizer)
        self.longest_token = max((len(token) for token in llm.tokenizer.get_vocab()), default=1)
        self._positions = llm.split_model.max_positions
        self._thread = ThreadPoolExecutor(1, "fastmem-text")
        self._waiting = 0

    async def run(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, done in the thread. Errors: those of the work, `OverloadedError` for too much."""
        if self._waiting >= MOST_WAITING:
            raise OverloadedError(f"{self._waiting} requests are waiting to be read: try again later.", 1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1

    def check_texts(self, texts: Sequence[str], most_tokens: int | None = None, field: str | None = None) -> None:
        """Errors: `InputError` for texts that cannot fit into the model's positions or into `most_tokens`, and for
        halves of characters."""
        self._check_length(sum(map(len, texts)), most_tokens, field)
        for text in texts:
            if half := half_character(text):
                raise InputError(f"the text cannot be read: {half}.", field=field)

    def _check_length(self, length: int, most_tokens: int | None, field: str | None) -> None:
        limits = [limit for limit in (self._positions, most_tokens) if limit is not None]
        most = min(limits, default=0) * self.longest_token
        if limits and length > most:
            raise InputError(
                f"the text is {length} characters long: {min(limits)} tokens hold at most {most}. Give a shorter one.",
                field=field,
            )

    def close(self) -> None:
        """End the thread after the work that runs."""
        self._thread.shutdown(wait=False, cancel_futures=True)
