"""What is answered, as the OpenAI interface writes it. Pure functions from the engine's events to JSON objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastmem.serve.jobs import Finished, Piece, TokenLogprob


@dataclass(frozen=True)
class Heading:
    """What every object of one request's answers shares. chat: of `/v1/chat/completions`, else `/v1/completions`.
    n: answers to each prompt. logprobs: whether they are shown."""

    id: str
    created: int
    model: str
    method: str
    chat: bool
    n: int
    logprobs: bool


@dataclass
class Answer:
    """One answer of a request while it grows. end: there once it is complete."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None


def whole(heading: Heading, answers: Sequence[Answer], tokenizer: Any) -> dict:
    """All answers of a request, complete."""
    choices = []
    for index, one in enumerate(answers):
        assert one.end is not None
        choice: dict[str, Any] = {"index": index, "finish_reason": one.end.reason}
        text, logprobs = "".join(one.texts), one.logprobs if heading.logprobs else None
        if heading.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            choice["logprobs"] = chat_logprobs(logprobs, tokenizer)
        else:
            choice["text"] = text
            choice["logprobs"] = completion_logprobs(logprobs, tokenizer)
        choices.append(choice)
    ends = [one.end for one in answers if one.end is not None]
    kind = "chat.completion" if heading.chat else "text_completion"
    return _object(heading, kind, choices) | {"usage": usage(heading, ends), "fastmem": costs(heading, ends)}


def chunk(heading: Heading, index: int, piece: Piece, tokenizer: Any, first: bool = False) -> dict:
    """A piece of a streamed answer. first: it opens the assistant's turn."""
    choice: dict[str, Any] = {"index": index, "finish_reason": None}
    text, found = piece.text, None if piece.logprob is None else [piece.logprob]
    if heading.chat:
        choice["delta"] = {"role": "assistant", "content": text} if first else {"content": text}
        choice["logprobs"] = chat_logprobs(found, tokenizer)
    else:
        choice["text"] = text
        choice["logprobs"] = completion_logprobs(found, tokenizer)
    return _chunk_object(heading, [choice])


def last_chunk(heading: Heading, index: int, end: Finished) -> dict:
    """The reason why an answer ended, and what it cost."""
    choice: dict[str, Any] = {"index": index, "finish_reason": end.reason, "logprobs": None}
    if heading.chat:
        choice["delta"] = {}
    else:
        choice["text"] = ""
    return _chunk_object(heading, [choice]) | {"fastmem": costs(heading, [end])}


def usage_chunk(heading: Heading, ends: Sequence[Finished]) -> dict:
    """The usage of all answers, after the last of them."""
    return _chunk_object(heading, []) | {"usage": usage(heading, ends)}


def usage(heading: Heading, ends: Sequence[Finished]) -> dict[str, Any]:
    """Tokens of the prompts, of the answers, and how many of the prompts' needed no reading. A prompt counts once."""
    prompt_tokens = sum(end.prompt_tokens for end in ends[:: heading.n])
    completion_tokens = sum(len(end.token_ids) for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in ends[:: heading.n])},
    }


def costs(heading: Heading, ends: Sequence[Finished]) -> dict[str, Any]:
    """The `fastmem` object of answers: what was used, whether the memory was made for them, and seconds."""
    memory = ends[0].memory
    return {
        "method": heading.method,
        "memory": memory["id"] if memory else None,
        "memory_made": any(end.made for end in ends),
        "stopped": memory["stopped"] if memory else None,
        "seconds": round(max(end.seconds for end in ends), 4),
        "first_token_seconds": round(min(end.first_seconds for end in ends), 4),
        "memory_seconds": round(max(end.memory_seconds for end in ends), 4),
    }


def memory_object(record: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A memory as `/v1/memories` shows it; who it belongs to is not part of it."""
    about = record["about"]
    return {
        "id": record["id"],
        "object": "memory",
        "name": record["name"],
        "created": record["created"],
        "model": model,
        "bytes": record["bytes"],
        "document_tokens": about["tokens"],
        "titles": about["titles"],
        "recipe": record["recipe"],
        "trace": record["trace"],
        "stopped": record["stopped"],
    }


def model_object(name: str, created: int, parent: str | None = None, root: str | None = None) -> dict[str, Any]:
    """A model, or a memory under its base."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "fastmem",
        "root": root or name,
        "parent": parent,
    }


def error_object(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(data: Mapping[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def chat_logprobs(found: Sequence[TokenLogprob] | None, tokenizer: Any) -> dict[str, Any] | None:
    """Of a chat answer; None where none were asked for."""
    if found is None:
        return None

    def named(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    content = [
        named(one.token, one.logprob) | {"top_logprobs": [named(token, value) for token, value in one.top]}
        for one in found
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(found: Sequence[TokenLogprob] | None, tokenizer: Any) -> dict[str, Any] | None:
    """Of a plain completion; None where none were asked for."""
    if found is None:
        return None
    tokens = [tokenizer.decode([one.token]) for one in found]
    offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [max(one.logprob, -9999.0) for one in found],
        "top_logprobs": [{tokenizer.decode([t]): max(v, -9999.0) for t, v in one.top} for one in found],
        "text_offset": offsets,
    }


def _chunk_object(heading: Heading, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return _object(heading, "chat.completion.chunk" if heading.chat else "text_completion", choices)


def _object(heading: Heading, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": heading.id,
        "object": kind,
        "created": heading.created,
        "model": heading.model,
        "choices": choices,
    }
