"""How the decoder of an encoder-decoder begins and ends an answer, as in transformers' `generate`.

It reads a start token. The configuration may force the first token of every answer (BART's begin-of-text, mBART's
language), and the last one of an answer that is as long as allowed.
"""

from dataclasses import dataclass
from typing import Any

from fastmem.errors import InputError


@dataclass(frozen=True)
class DecoderOpening:
    """start: what the decoder reads before the answer. first, last: forced tokens, None if there are none. end: the
    token that ends a text."""

    start: int
    first: int | None
    last: int | None
    end: int

    @classmethod
    def of(cls, model: Any) -> "DecoderOpening":
        """From the generation config, or the config. Errors: `InputError` if the start or the end token is missing."""
        generation = getattr(model, "generation_config", None)
        sources = (generation, model.config)

        def named(*names: str, of: tuple[Any, ...] = sources) -> int | None:
            values = (getattr(source, f"{name}_token_id", None) for name in names for source in of)
            found = next((value for value in values if value is not None), None)
            return min(found) if isinstance(found, list | tuple) else found

        start, end = named("decoder_start", "bos"), named("eos")
        if start is None or end is None:
            raise InputError(
                "the model names no token to begin or end an answer: set model.generation_config."
                f"{'decoder_start_token_id' if start is None else 'eos_token_id'}."
            )
        # Not from the config: `generate` forces what the generation config says, and None there means nothing.
        return cls(start, named("forced_bos", of=(generation,)), named("forced_eos", of=(generation,)), end)

    @property
    def of_document(self) -> tuple[int, ...]:
        """What the decoder reads before a document that it memorizes: the start and a forced first token."""
        return (self.start,) if self.first is None else (self.start, self.first)

    def forced(self, max_new_tokens: int) -> dict[int, int]:
        """The forced tokens of an answer by their place in it."""
        places = ((0, self.first), (max_new_tokens - 1, self.last))
        return {place: token for place, token in places if token is not None}
