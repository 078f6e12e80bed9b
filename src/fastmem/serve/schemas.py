"""Request bodies: those of the OpenAI interface, plus `documents`, `cache_salt` and one `fastmem` object.

Other fields are refused and not ignored: a client that sends `tools` must not believe that they were used.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Template = Literal["context", "question"]
_T = TypeVar("_T")
_Several = Annotated[list[_T], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Document(_Strict):
    """A document that the answer must be faithful to. title: optional."""

    text: str = Field(min_length=1)
    title: str | None = None


class FastMemOptions(_Strict):
    """How to answer and how to memorize.

    method: one of `METHODS`; by default `fastmem` with documents or a memory, otherwise `base`. recipe: fields of
    `Recipe` that differ from the server's. template: how documents and message become one turn, see
    `document_prompts.py`; None takes the server's.
    """

    method: str | None = None
    alpha: float = Field(default=0.5, ge=0, le=100)
    relative_top: float | None = Field(default=None, ge=0, le=1)
    final_norm: bool = False
    recipe: dict[str, Any] = Field(default_factory=dict)
    template: Template | None = None


class TextPart(_Strict):
    """A part of a message's content. Only text is supported."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Strict):
    """include_usage: end with a chunk that has the usage and no choices."""

    include_usage: bool = False


class _Generation(_Strict):
    """Fields of both kinds of request. temperature: the default is 0 (greedy), not 1 as in OpenAI's. user: ignored."""

    model: str
    documents: list[Document] = Field(default_factory=list)
    fastmem: FastMemOptions = FastMemOptions()
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    presence_penalty: float = Field(0.0, ge=0, le=0)
    user: str | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)

    def sampling(self) -> dict[str, Any]:
        """The options of `Decoding` that choose tokens."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names}


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`. Documents are put before the last message, which must be the user's."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


class CompletionRequest(_Generation):
    """`POST /v1/completions`: one or several prompts, as text or token ids, without a chat template."""

    prompt: str | _Several[int] | _Several[str] | _Several[_Several[int]]
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)

    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class MemoryRequest(_Strict):
    """`POST /v1/memories`: memorize documents in advance. name: what later requests give as `model`."""

    documents: list[Document] = Field(min_length=1)
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    fastmem: FastMemOptions = FastMemOptions()
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    model: str | None = None


class SurpriseRequest(_Strict):
    """`POST /v1/memories/{id}/surprise`: the memory's documents, since the server does not store them."""

    documents: list[Document] = Field(min_length=1)
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
