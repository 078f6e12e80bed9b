"""Responses in the form of the OpenAI interface: pure functions from the engine's events to JSON objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmem.answer.running_batch import Piece
from fastmem.serve.jobs import Finished


@dataclass(frozen=True)
class Heading:
    """What all objects of one request have in common. chat: of `/v1/chat/completions`, else `/v1/completions`. n:
    answers
    to each prompt. logprobs: whether they are reported."""

    id: str
    created: int
    model: str
    method: str
    chat: bool
    n: int
    logprobs: bool


def whole(heading: Heading, answers: Sequence[tuple[Finished, Sequence[Piece]]], tokenizer: Any) -> dict[str, Any]:
    """All answers of a request, complete. answers: each with the pieces it came in."""
    choices = []
    for index, (end, pieces) in enumerate(answers):
        choice: dict[str, Any] = {"index": index, "finish_reason": end.answer.reason}
        text = end.answer.text
        if heading.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            choice["logprobs"] = chat_logprobs(pieces, tokenizer) if heading.logprobs else None
        else:
            choice["text"] = text
            choice["logprobs"] = completion_logprobs(pieces, tokenizer) if heading.logprobs else None
        choices.append(choice)
    ends = [end for end, _ in answers]
    kind = "chat.completion" if heading.chat else "text_completion"
    return _object(heading, kind, choices) | {"usage": usage(heading, ends), "fastmem": costs(heading, ends)}


def chunk(heading: Heading, index: int, piece: Piece, tokenizer: Any, first: bool = False) -> dict[str, Any]:
    """A piece of a streamed answer. first: it opens the assistant's turn."""
    choice: dict[str, Any] = {"index": index, "finish_reason": None}
    text, shown = piece.text, piece.logprob is not None
    if heading.chat:
        choice["delta"] = {"role": "assistant", "content": text} if first else {"content": text}
        choice["logprobs"] = chat_logprobs([piece], tokenizer) if shown else None
    else:
        choice["text"] = text
        choice["logprobs"] = completion_logprobs([piece], tokenizer) if shown else None
    return _chunk_object(heading, [choice])


def last_chunk(heading: Heading, index: int, end: Finished) -> dict[str, Any]:
    """Why an answer ended, and what it cost."""
    choice: dict[str, Any] = {"index": index, "finish_reason": end.answer.reason, "logprobs": None}
    if heading.chat:
        choice["delta"] = {}
    else:
        choice["text"] = ""
    return _chunk_object(heading, [choice]) | {"fastmem": costs(heading, [end])}


def usage_chunk(heading: Heading, ends: Sequence[Finished]) -> dict[str, Any]:
    """The usage of all answers, after the last of them."""
    return _chunk_object(heading, []) | {"usage": usage(heading, ends)}


def usage(heading: Heading, ends: Sequence[Finished]) -> dict[str, Any]:
    """Tokens of the prompts and of the answers; cached tokens of the prompts. A prompt counts once."""
    prompt_tokens = sum(end.answer.prompt_tokens for end in ends[:: heading.n])
    completion_tokens = sum(len(end.answer.token_ids) for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.answer.cached_tokens for end in ends[:: heading.n])},
    }


def costs(heading: Heading, ends: Sequence[Finished]) -> dict[str, Any]:
    """The `fastmem` object: method, memory, whether it was made for these answers, and seconds."""
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
    """A memory as `/v1/memories` shows it, without its tenant."""
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
    """A model, or a memory with its base as parent."""
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


def chat_logprobs(pieces: Sequence[Piece], tokenizer: Any) -> dict[str, Any]:
    """The log-probabilities of a chat answer."""

    def named(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    content = [
        named(token, logprob) | {"top_logprobs": [named(other, value) for other, value in top]}
        for token, logprob, top in _reported(pieces)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(pieces: Sequence[Piece], tokenizer: Any) -> dict[str, Any]:
    """The log-probabilities of a plain completion."""
    found = _reported(pieces)
    tokens = [tokenizer.decode([token]) for token, _, _ in found]
    return {
        "tokens": tokens,
        "token_logprobs": [max(logprob, -9999.0) for _, logprob, _ in found],
        "top_logprobs": [{tokenizer.decode([t]): max(v, -9999.0) for t, v in top} for _, _, top in found],
        "text_offset": [sum(map(len, tokens[:i])) for i in range(len(tokens))],
    }


def _reported(pieces: Sequence[Piece]) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """(token, its log-probability, the most likely tokens with theirs), for every token that has text."""
    return [(piece.token, *piece.logprob) for piece in pieces if piece.logprob is not None]


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
