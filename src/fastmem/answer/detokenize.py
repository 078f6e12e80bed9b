"""Token ids to text, piece by piece: whole characters only, and no part of a stop string."""

from collections.abc import Sequence
from typing import Any

from fastmem.answer.stop_strings import StopStrings


class Detokenizer:
    """The text of one answer, extended token by token.

    Text is held back while it can still change: an unfinished character (several tokens to one code point), or an
    ending that may be the beginning of a stop string. least: stop strings are looked for in the text that follows this
    many tokens. text: everything so far. stopped: a stop string ended it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), least: int = 0):
        self._tokenizer, self._stop, self._least = tokenizer, StopStrings(stop), least
        self._seen = self._stop.nothing  # in the text up to `_settled`
        self._held = 0  # trailing characters that may still change or belong to a stop string
        self._ids: list[int] = []
        self._decoded = ""  # text of the ids up to `_settled`
        self._settled = 0
        self._start = 0  # the id from which text is decoded
        self._released = 0
        self.text = ""
        self.stopped = False

    def finish(self) -> str:
        """The text that was held back, after the last token."""
        return self._release(everything=True)

    def add(self, token: int) -> str:
        """The text that became certain with one more token."""
        self._ids.append(token)
        # Decoding from a late token keeps the work per token constant. The overlap holds text, since tokenizers may
        # drop the space before the first word (SentencePiece), and begins with a whole character, since one that is
        # made of bytes is unreadable without its first (Llama 2, Mistral, Gemma).
        overlap = self._decode(self._ids[self._start : self._settled])
        tail = self._decode(self._ids[self._start :])[len(overlap) :]
        self.text = self._decoded + tail
        whole = tail.rstrip("\ufffd")
        if len(self._ids) > self._least:
            seen, found = self._stop.read(self._seen, whole)
        else:
            seen, found = self._stop.skip(self._seen, whole), None
        self._held = len(tail) - len(whole) + seen.held
        if not tail.endswith("\ufffd"):
            if tail:
                self._start = self._settled
            self._decoded, self._settled, self._seen = self.text, len(self._ids), seen
        if found is not None:
            self.stopped = True
            self.text = self.text[:found]
        return self._release(everything=self.stopped)

    def _release(self, everything: bool) -> str:
        end = max(len(self.text) - (0 if everything else self._held), self._released)
        piece, self._released = self.text[self._released : end], end
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
