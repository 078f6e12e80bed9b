"""Answers that follow a JSON schema: which tokens may come next, from llguidance.

llguidance works token by token, without precomputing anything over the vocabulary, and bounds what a schema may cost.
(xgrammar would install triton on every Linux machine, and outlines-core builds an automaton over the whole vocabulary
for every schema.) It reads the scores that a token is chosen from, so it works with every method.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.extras import require

# Numbers and names are separated as `json.dumps` does it, so a model cannot go on with blanks for ever.
_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def as_schema(given: Any) -> str:
    """A schema as JSON text, from a mapping or a text. Errors: `TypeError`, `ValueError` for anything else."""
    schema = json.loads(given) if isinstance(given, str) else given
    if not isinstance(schema, Mapping):
        raise TypeError
    return json.dumps(schema)


class SchemaReader:
    """For one tokenizer. stop_ids: the tokens that end an answer. Errors: `MissingPackageError`, `InputError`."""

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int], vocabulary_size: int):
        require("llguidance", extra="json-schema", purpose="an answer that follows a JSON schema")
        from llguidance.hf import from_tokenizer

        if not getattr(tokenizer, "is_fast", False):
            raise InputError("a JSON schema needs a fast tokenizer (tokenizer.json).", field="json_schema")
        size = max(vocabulary_size, len(tokenizer))
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=size, eos_token=sorted(stop_ids) or None)

    def read(self, schema: str) -> "JsonSchema":
        """Errors: `InputError` for a schema that is none, or that is too large."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_FORM)
            problem = LLMatcher.validate_grammar(grammar, self._tokenizer)
        except ValueError as error:
            problem = str(error)
        if problem:
            reason = problem.strip().splitlines()[0][:300]
            raise InputError(f"the JSON schema cannot be used: {reason}.", field="json_schema")
        return JsonSchema(schema, grammar, self._tokenizer)


@dataclass(frozen=True)
class JsonSchema:
    """A schema that was read, for any number of answers. text: the schema as JSON."""

    text: str
    grammar: str
    tokenizer: Any = field(repr=False)

    def start(self) -> "JsonProgress":
        """The progress of a new answer."""
        from llguidance import LLMatcher

        return JsonProgress(LLMatcher(self.tokenizer, self.grammar, log_level=0))


class JsonProgress:
    """How far one answer has come."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def restricted(self, scores: Tensor) -> Tensor:
        """[V]: the scores, with -inf for the tokens that may not come next. Errors: `InputError` beyond the limits."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise InputError("the JSON schema takes too much work: give a simpler one.", field="json_schema")
        allowed = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)).bitwise_and(1).bool().flatten()
        allowed = torch.nn.functional.pad(allowed, (0, max(0, len(scores) - len(allowed))))[: len(scores)]
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on with the token that was chosen."""
        self._matcher.consume_token(token)
