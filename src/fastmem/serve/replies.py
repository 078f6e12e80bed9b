"""What is answered, as the OpenAI interface writes it. Pure functions from the engine's events to JSON objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmem.serve.jobs import Finished, TokenLogprob


@dataclass(frozen=True)
class Heading:
    """What every object of one answer begins with. chat: of `/v1/chat/completions`, else `/v1/completions`."""

    id: str
    created: int
    model: str
    method: str
    chat: bool


def whole(heading: Heading, text: str, logprobs: Sequence[TokenLogprob] | None, end: Finished, tokenizer: Any) -> dict:
    """A complete answer."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": end.reason}
    if heading.chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        choice["logprobs"] = chat_logprobs(logprobs, tokenizer)
    else:
        choice["text"] = text
        choice["logprobs"] = completion_logprobs(logprobs, tokenizer)
    kind = "chat.completion" if heading.chat else "text_completion"
    return _object(heading, kind, [choice]) | {"usage": usage(end), "fastmem": costs(heading, end)}


def chunk(heading: Heading, text: str, logprob: TokenLogprob | None, tokenizer: Any, first: bool = False) -> dict:
    """A piece of a streamed answer. first: it opens the assistant's turn."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    found = None if logprob is None else [logprob]
    if heading.chat:
        choice["delta"] = {"role": "assistant", "content": text} if first else {"content": text}
        choice["logprobs"] = chat_logprobs(found, tokenizer)
    else:
        choice["text"] = text
        choice["logprobs"] = completion_logprobs(found, tokenizer)
    return _object(heading, "chat.completion.chunk" if heading.chat else "text_completion", [choice])


def last_chunks(heading: Heading, end: Finished, include_usage: bool) -> list[dict]:
    """The chunk with the reason the answer ended, and one with the usage where asked for."""
    kind = "chat.completion.chunk" if heading.chat else "text_completion"
    choice: dict[str, Any] = {"index": 0, "finish_reason": end.reason, "logprobs": None}
    if heading.chat:
        choice["delta"] = {}
    else:
        choice["text"] = ""
    chunks = [_object(heading, kind, [choice]) | {"fastmem": costs(heading, end)}]
    if include_usage:
        chunks.append(_object(heading, kind, []) | {"usage": usage(end)})
    return chunks


def usage(end: Finished) -> dict[str, Any]:
    """Tokens of the prompt, of the answer, and how many of the prompt's needed no reading."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": len(end.token_ids),
        "total_tokens": end.prompt_tokens + len(end.token_ids),
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
    }


def costs(heading: Heading, end: Finished) -> dict[str, Any]:
    """The `fastmem` object of an answer: what was used, whether the memory was made for it, and seconds."""
    return {
        "method": heading.method,
        "memory": end.memory["id"] if end.memory else None,
        "memory_made": end.made,
        "stopped": end.memory["stopped"] if end.memory else None,
        "seconds": round(end.seconds, 4),
        "first_token_seconds": round(end.first_seconds, 4),
        "memory_seconds": round(end.memory_seconds, 4),
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


def _object(heading: Heading, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": heading.id,
        "object": kind,
        "created": heading.created,
        "model": heading.model,
        "choices": choices,
    }
