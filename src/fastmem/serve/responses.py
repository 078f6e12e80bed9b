"""Responses in OpenAI's form: pure functions from the engine's events to JSON objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import Any

from fastmem.answer.running_batch import Piece
from fastmem.memory.effect import notice_of
from fastmem.serve.jobs import AnswerFinished


@dataclass(frozen=True)
class CommonFields:
    """What all objects of one request have in common. chat: of `/v1/chat/completions`, otherwise `/v1/completions`. n:
    answers to each prompt. logprobs: whether they are reported."""

    id: str
    created: int
    model: str
    method: str
    chat: bool
    n: int
    logprobs: bool


def complete_response(
    common: CommonFields, answers: Sequence[tuple[AnswerFinished, Sequence[Piece]]], tokenizer: Any
) -> dict[str, Any]:
    """All answers of a request, each with its pieces."""
    choices = []
    for index, (end, pieces) in enumerate(answers):
        message = {"role": "assistant", "content": end.answer.text, "refusal": None}
        content = {"message": message} if common.chat else {"text": end.answer.text}
        logprobs = _logprobs(common, pieces, tokenizer) if common.logprobs else None
        choices.append({"index": index, "finish_reason": end.answer.reason, **content, "logprobs": logprobs})
    ends = [end for end, _ in answers]
    kind = "chat.completion" if common.chat else "text_completion"
    return _object(common, kind, choices) | {"usage": usage(common, ends), "fastmem": costs(common, ends)}


def piece_chunk(common: CommonFields, index: int, piece: Piece, tokenizer: Any, first: bool = False) -> dict[str, Any]:
    """A piece of a streamed answer. first: it is the first of its answer, which has the role."""
    role = {"role": "assistant"} if first else {}
    content = {"delta": {**role, "content": piece.text}} if common.chat else {"text": piece.text}
    logprobs = _logprobs(common, [piece], tokenizer) if piece.logprob is not None else None
    return _chunk(common, [{"index": index, "finish_reason": None, **content, "logprobs": logprobs}])


def last_chunk(common: CommonFields, index: int, end: AnswerFinished) -> dict[str, Any]:
    """The end of a streamed answer: the reason and the costs."""
    content: dict[str, Any] = {"delta": {}} if common.chat else {"text": ""}
    choice = {"index": index, "finish_reason": end.answer.reason, "logprobs": None, **content}
    return _chunk(common, [choice]) | {"fastmem": costs(common, [end])}


def usage_chunk(common: CommonFields, ends: Sequence[AnswerFinished]) -> dict[str, Any]:
    """The usage of all answers, after the last one."""
    return _chunk(common, []) | {"usage": usage(common, ends)}


def usage(common: CommonFields, ends: Sequence[AnswerFinished]) -> dict[str, Any]:
    """Numbers of tokens in the prompts, cached and in total, and in the answers. A prompt counts once."""
    prompt_tokens = sum(end.answer.prompt_tokens for end in ends[:: common.n])
    completion_tokens = sum(len(end.answer.token_ids) for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.answer.cached_tokens for end in ends[:: common.n])},
    }


def costs(common: CommonFields, ends: Sequence[AnswerFinished]) -> dict[str, Any]:
    """The `fastmem` object: the method, the memory, whether it was made for these answers and took, and seconds."""
    memory = ends[0].memory
    return {
        "method": common.method,
        "memory": memory["id"] if memory else None,
        "memory_made": any(end.made for end in ends),
        "stopped": memory["stopped"] if memory else None,
        "notice": notice_text(memory) if memory else None,
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
        "notice": notice_text(record),
    }


def notice_text(record: Mapping[str, Any]) -> str | None:
    """The warning about a memory, with what to ask for instead; None if there is none."""
    losses = [step["cross_entropy"] for step in record["trace"]]
    notice = notice_of(losses, record["stopped"], record["recipe"]["learning_rate"])
    if notice is None:
        return None
    return f"{notice.seen}: memorize again with a learning_rate {notice.better_rate} in fastmem.recipe."


def model_object(name: str, created: int, parent: str | None = None, root: str | None = None) -> dict[str, Any]:
    """A model, or a memory whose parent is its base."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "fastmem",
        "root": root or name,
        "parent": parent,
    }


def error_object(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form, short, and without halves of characters, which a message may quote."""
    shown = message if len(message) <= 2000 else f"{message[:2000]} ..."
    found = {"message": shown, "type": kind, "param": param and param[:200], "code": code}
    return {"error": {name: text and text.encode("utf-8", "replace").decode() for name, text in found.items()}}


def finite(number: float) -> float | None:
    """The number, or None for one that JSON lacks: NaN and infinities."""
    return number if isfinite(number) else None


def sse_event(data: Mapping[str, Any] | str, kind: str | None = None) -> bytes:
    """One server-sent event. kind: its name, if it has one. Errors: `ValueError` for a number that JSON lacks."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    name = f"event: {kind}\n" if kind is not None else ""
    return f"{name}data: {text}\n\n".encode()


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
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0))[: len(tokens)],
    }


def _logprobs(common: CommonFields, pieces: Sequence[Piece], tokenizer: Any) -> dict[str, Any]:
    return (chat_logprobs if common.chat else completion_logprobs)(pieces, tokenizer)


def _reported(pieces: Sequence[Piece]) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """(token, its log-probability, the most likely tokens with theirs), for every token that has text."""
    return [(piece.token, *piece.logprob) for piece in pieces if piece.logprob is not None]


def _chunk(common: CommonFields, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return _object(common, "chat.completion.chunk" if common.chat else "text_completion", choices)


def _object(common: CommonFields, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": common.id,
        "object": kind,
        "created": common.created,
        "model": common.model,
        "choices": choices,
    }
