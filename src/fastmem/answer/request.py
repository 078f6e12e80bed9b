"""`Request`: one answer to be decoded, with everything about it checked and its prompt as token ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from fastmem.answer.cache import Prefix
from fastmem.answer.contrast import ALPHA, RELATIVE_TOP, Combination, Contrast, Side, with_memory
from fastmem.answer.json_schema import JsonSchema, as_schema
from fastmem.answer.sampling import Sampling
from fastmem.errors import InputError, one_of
from fastmem.memory.memory import Memory
from fastmem.prompts import PROMPT, Prompt
from fastmem.ranges import FLAG, Number, Other, instance_of, ranged
from fastmem.split.hooks import FFN


def _texts(given: Any) -> Any:
    if not isinstance(given, str | list | tuple) or not all(isinstance(text, str) for text in given):
        raise TypeError
    return given


def _ids(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list | tuple | set | frozenset):
        raise TypeError
    return tuple(int(Number(0, whole=True).accept(token)) for token in given)


@dataclass(frozen=True)
class Decoding(Sampling):
    """The options of `generate`: everything about an answer except its prompt, memory and method."""

    max_new_tokens: int = ranged(100, Number(1, whole=True))
    """The answer ends after this many tokens."""
    min_new_tokens: int = ranged(0, Number(0, whole=True))
    """The answer does not end before it has this many tokens: until then no end token is chosen, and stop strings are
    looked for in what follows. JSON that is complete ends it all the same."""
    stop: str | tuple[str, ...] | list[str] = ranged((), Other("a text or a list of texts", _texts))  # noqa: RUF009
    """Strings that end the answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] | list[int] = ranged((), Other("a list of token ids", _ids))  # noqa: RUF009
    """Ids of more tokens that end the answer."""
    ignore_eos: bool = ranged(False, FLAG)
    """Continue after the model's end tokens."""
    alpha: float = ranged(0.5, ALPHA)
    """Strength of the contrast, from 0 (none)."""
    relative_top: float | None = ranged(None, RELATIVE_TOP)
    """Plausibility constraint of a contrast: only tokens with at least this fraction of the top probability. None: as
    published, 0.1 for DoLa and none for the others."""
    final_norm: bool = ranged(False, FLAG)
    """DoLa: apply the final norm to early hidden states."""
    without_context: Prompt | None = ranged(None, PROMPT)  # noqa: RUF009
    """CAD: the prompt without the document."""
    top_logprobs: int | None = ranged(None, Number(0, whole=True))
    """Report the log-probability of every token, and of this many alternatives."""
    batch_size: int = ranged(16, Number(1, whole=True))
    """Prompts of a list that are decoded at the same time."""
    json_schema: Mapping[str, Any] | str | None = ranged(None, Other("a JSON schema", as_schema))
    """The answer is JSON that follows this schema. Needs the extra json-schema."""
    prefix: Prefix | None = ranged(None, Other("a Prefix", instance_of(Prefix)))  # noqa: RUF009
    """The beginning of the prompt with its keys and values, from an earlier reading."""

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Decoding":
        """From keyword arguments. Errors: `InputError` that suggests the nearest name for an unknown one."""
        for name in options:
            one_of(name, [f.name for f in fields(cls)], "option")
        return cls(**options)

    def sampling(self) -> Sampling:
        """The options that choose the next token."""
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling)})

    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, without empty strings."""
        return tuple(text for text in ([self.stop] if isinstance(self.stop, str) else self.stop) if text)


def one_for_each(given: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """These options for each of `count` prompts: a list has a value for each, any other value is for all of them.

    Errors: `InputError` for a list of another length.
    """
    columns = {n: list(v) if isinstance(v, list | tuple) else [v] * count for n, v in given.items()}
    for name, values in columns.items():
        if len(values) != count:
            raise InputError(f"{name}: {len(values)} given for {count} prompts; give one for each.", field=name)
    return [{name: values[i] for name, values in columns.items()} for i in range(count)]


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to be decoded.

    prompt: [S] ids. method: its name, for the answer. min_new_tokens: no stop ends it before. without: [S'] ids,
    the prompt without the document, for CAD. stop_ids, stop: tokens and strings that end the answer. top_logprobs: how
    many alternatives to report beside each token's log-probability; None reports neither. schema: that the answer
    follows. memory, ffn: a memory and its FFN modules (`SplitModel.ffn`), None for the base. shares_trunk: only the
    last layer is tuned, so keys and values are the base's. prefix: tokens of the prompt that were read before.
    shared_tokens: how many tokens at the start of the prompt may be cached for other requests; None allows all. salt:
    cached prefixes are shared only between requests with the same salt. opening: [T] ids that the decoder of an
    encoder-decoder reads before the answer, while its encoder reads the prompts. forced: tokens that the answer has
    whatever the scores, by their place in it.
    """

    prompt: Tensor
    method: str = "base"
    max_new_tokens: int = 100
    min_new_tokens: int = 0
    contrast: Contrast | Combination | None = None
    without: Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    schema: JsonSchema | None = None
    memory: Memory | None = None
    ffn: FFN | None = None
    shares_trunk: bool = True
    prefix: Prefix | None = None
    shared_tokens: int | None = None
    salt: str = ""
    opening: Tensor | None = None
    forced: Mapping[int, int] = field(default_factory=dict)

    def with_memory(self, memory: Memory, ffn: FFN, shares_trunk: bool) -> "Request":
        """The same request, answered with a memory; its method is named accordingly."""
        return replace(self, method=with_memory(self.method), memory=memory, ffn=ffn, shares_trunk=shares_trunk)

    @property
    def before_answer(self) -> Tensor:
        """[S]: the ids that the answer continues."""
        return self.prompt if self.opening is None else self.opening

    @property
    def needs(self) -> frozenset[Side]:
        """The sides that are contrasted."""
        return self.contrast.needs if self.contrast else frozenset()

    @property
    def compares_weights(self) -> bool:
        """Whether memorized and original weights are contrasted."""
        return {"memorized", "original"} <= self.needs

    @property
    def compares_tails(self) -> bool:
        """Whether these are weights of the last FFN: a second tail, on the same trunk."""
        return self.compares_weights and self.shares_trunk
