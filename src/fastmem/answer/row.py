"""`Row`: a request while it is being answered."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmem.answer.cache import Prefix
from fastmem.answer.detokenize import Detokenizer
from fastmem.answer.json_schema import JsonProgress
from fastmem.answer.request import Request

# A token's log-probability, and the most likely tokens with theirs.
Logprob = tuple[float, list[tuple[int, float]]]


@dataclass(eq=False)
class Row:
    """A request in progress. token_ids: the answer so far, including an end token. reason: why it ended, or None.

    cached_tokens: tokens of the prompt that were not read again. text: the answer as text; None without a tokenizer.
    started, first_token: the times at which it was handed in and had its first token.
    """

    request: Request
    generator: torch.Generator
    text: Detokenizer | None = None
    prefix: Prefix | None = None
    token_ids: list[int] = field(default_factory=list)
    reason: str | None = None
    cached_tokens: int = 0
    logprobs: list[Logprob] = field(default_factory=list)
    started: float = 0.0
    first_token: float = 0.0
    json: JsonProgress | None = None  # of an answer with a schema
    _draws: Tensor | None = None  # the generator's state before the running step

    def __post_init__(self) -> None:
        if self.request.schema is not None:
            self.json = self.request.schema.start()

    def read_ids(self, prompt: Tensor) -> Tensor:
        """`prompt` [S] and the answer so far."""
        return torch.cat([prompt.cpu(), torch.tensor(self.token_ids, dtype=torch.int64)])

    def save_draws(self) -> None:
        """Remember the state of the generator, so that a step that fails can be repeated."""
        if self.request.sampling.temperature > 0:
            self._draws = self.generator.get_state()

    def restore_draws(self) -> None:
        """Return to the state that was saved last."""
        if self._draws is not None:
            self.generator.set_state(self._draws)
