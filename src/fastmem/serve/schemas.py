"""Request bodies: those of the OpenAI interface, plus `documents`, `cache_salt` and one `fastmem` object.

Other fields are refused and not ignored: a client that sends `tools` must not believe that they were used. But null
means that a field was left out, and what asks for nothing (`NO_OPS`) is accepted, since clients send it.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_SCHEMA = 32_768
MAX_ITEMS = 262_144  # token ids of a prompt
MAX_FIELDS = 64
MAX_MESSAGES = 1024
MEMORY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Template = Literal["context", "question"]
_T = TypeVar("_T")
# Lists end at their first error: pydantic would otherwise collect hundreds of thousands of them on the event loop.
_Several = Annotated[list[_T], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
_Name = Annotated[str, Field(max_length=512)]
_Salt = Annotated[str, Field(min_length=1, max_length=1024)]
_Stop = Annotated[str, Field(max_length=256)]
# The server's own limit is smaller, and says so.
_Documents = Annotated[list["Document"], Field(max_length=1024, fail_fast=True)]
_SomeDocuments = Annotated[_Documents, Field(min_length=1)]


# Values of OpenAI's fields that ask for what happens anyway.
NO_OPS: dict[str, list[Any]] = {
    "annotations": [[]],
    "best_of": [1],
    "echo": [False],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "include_obfuscation": [True, False],
    "include": [[]],
    "logprobs": [[], False],
    "metadata": [{}],
    "modalities": [["text"]],
    "n": [1],
    "parallel_tool_calls": [True, False],
    "previous_response_id": [""],
    "reasoning_effort": ["none"],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto", "default"],
    "store": [False],
    "suffix": [""],
    "tool_calls": [[]],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "verbosity": ["medium"],
}
# Of no effect here, whatever they are.
IGNORED = {"prompt_cache_key", "prompt_cache_retention", "safety_identifier"}


class Strict(BaseModel):
    """No unknown fields; null and what asks for nothing is as good as left out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_no_ops(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > MAX_FIELDS:
            raise ValueError(f"an object has at most {MAX_FIELDS} fields")
        return {
            name: value
            for name, value in given.items()
            if value is not None
            and name not in IGNORED
            and not any(type(value) is type(one) and value == one for one in NO_OPS.get(name, ()))
        }


class Document(Strict):
    """A document that the answer must be faithful to. title: optional."""

    text: str = Field(min_length=1)
    title: Annotated[str, Field(max_length=1024)] | None = None


class FastMemOptions(Strict):
    """How to answer and how to memorize.

    method: one of `METHODS`; by default `fastmem` with documents or a memory, otherwise `base`. recipe: fields of
    `Recipe` that differ from the server's. template: how documents and message become one turn, see
    `document_prompts.py`; None takes the server's.
    """

    method: _Name | None = None
    alpha: float = Field(default=0.5, ge=0, le=100)
    relative_top: float | None = Field(default=None, ge=0, le=1)
    final_norm: bool = False
    recipe: dict[Annotated[str, Field(max_length=64)], Any] = Field(default_factory=dict, max_length=32)
    template: Template | None = None


class TextPart(Strict):
    """A part of a message's content. Only text is supported."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation. content: may be missing in an assistant's, as in one that only called tools."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=64, fail_fast=True)] | None = None
    name: _Name | None = None

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of the role {self.role} needs a content")
        return self

    def plain(self) -> dict[str, str]:
        """The message as chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class StreamOptions(Strict):
    """include_usage: end with a chunk that has the usage and no choices."""

    include_usage: bool = False


class Generation(Strict):
    """Fields of all kinds of request for an answer. temperature: the default is 0 (greedy). user: ignored."""

    model: _Name
    documents: _Documents = Field(default_factory=list)
    fastmem: FastMemOptions = FastMemOptions()
    cache_salt: _Salt | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16, fail_fast=True)] | None = None
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=1024)
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)] = Field(
        default_factory=list, max_length=128
    )
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    user: _Name | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)

    def sampling(self) -> dict[str, Any]:
        """The options of `Decoding` that choose tokens and end the answer."""
        names = (
            "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
            "stop_token_ids", "ignore_eos", "seed",
        )  # fmt: skip
        return {"temperature": self.temperature or 0.0, "min_new_tokens": self.min_tokens} | {
            name: getattr(self, name) for name in names
        }


class Completions(Generation):
    """What `/v1/responses` has not. n: answers to each prompt. Several have OpenAI's default temperature, 1, as equal
    ones would be of no use."""

    n: int = Field(1, ge=1)

    def sampling(self) -> dict[str, Any]:
        """The options of `Decoding` that choose tokens and end the answer."""
        several = self.n > 1 and self.temperature is None
        return super().sampling() | ({"temperature": 1.0} if several else {})


class JsonSchema(Strict):
    """A schema and its name, as OpenAI has them. description and strict have no effect: it is always strict."""

    name: _Name | None = None
    # With a bound, pydantic refuses halves of characters, which no response can repeat.
    description: Annotated[str, Field(max_length=MAX_SCHEMA)] | None = None
    strict: bool | None = None
    definition: dict[str, Any] = Field(alias="schema")

    @model_validator(mode="after")
    def _is_small(self) -> "JsonSchema":
        if len(json.dumps(self.definition)) > MAX_SCHEMA:
            raise ValueError(f"a JSON schema may have {MAX_SCHEMA} characters")
        return self


class ResponseFormat(Strict):
    """The form of the answer: a JSON object, of a schema if there is one."""

    type: Literal["json_schema", "json_object"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise ValueError("json_schema is needed with the type json_schema, and only there")
        return self

    def definition(self) -> dict[str, Any]:
        """The schema of the answer."""
        return {"type": "object"} if self.json_schema is None else self.json_schema.definition


class ChatRequest(Completions):
    """`POST /v1/chat/completions`. Documents are put before the last message, which must be the user's."""

    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict, max_length=32)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    def texts(self) -> list[str]:
        """The texts of the messages."""
        return [message.plain()["content"] for message in self.messages]


class CompletionRequest(Completions):
    """`POST /v1/completions`: one or several prompts, as text or token ids, without a chat template."""

    prompt: str | _Several[int] | _Several[str] | _Several[_Several[int]]
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)

    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def texts(self) -> list[str]:
        """The prompts that are text."""
        return [prompt for prompt in self.prompts() if isinstance(prompt, str)]


class MemoryRequest(Strict):
    """`POST /v1/memories`: memorize documents in advance. name: what later requests give as `model`. stream: report
    every step as a server-sent event, and the memory as the last."""

    documents: _SomeDocuments
    name: str | None = Field(None, pattern=f"^{MEMORY_NAME}$")
    fastmem: FastMemOptions = FastMemOptions()
    cache_salt: _Salt | None = None
    model: _Name | None = None
    stream: bool = False


class SurpriseRequest(Strict):
    """`POST /v1/memories/{id}/surprise`: the memory's documents, since the server does not store them."""

    documents: _SomeDocuments
    cache_salt: _Salt | None = None
