"""A request as vLLM's `/v1/completions` takes it, and the pieces of an answer from the chunks that come back.

The prompt is sent as token ids, so vLLM reads exactly what FastMem would read. Tokens come back as ids, too. What ends
an answer is FastMem's set of stop tokens, therefore `ignore_eos`.
"""

import json
from collections.abc import Mapping
from typing import Any

from fastmem.answer.request import Request as DecodeRequest
from fastmem.answer.row import Logprob
from fastmem.answer.running_batch import Answer, Piece
from fastmem.errors import InputError
from fastmem.serve.vllm_client import BaseModel

MOST_TOKENS_OF_A_CHUNK = 4096


def completion_body(request: DecodeRequest, model: str, base: BaseModel) -> dict[str, Any]:
    """The body for one answer. Errors: `InputError` for a prompt that leaves no room for an answer."""
    prompt, sampling = request.prompt.tolist(), request.sampling
    most = request.max_new_tokens
    if base.positions is not None:
        if len(prompt) >= base.positions:
            text = f"the prompt has {len(prompt)} tokens: prompt and answer together may have {base.positions}."
            raise InputError(text)
        most = min(most, base.positions - len(prompt))
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": most,
        "min_tokens": min(request.min_new_tokens, most),
        "stop": list(request.stop),
        "stop_token_ids": sorted(request.stop_ids),
        "ignore_eos": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): value for token, value in dict(sampling.logit_bias).items()},
        "seed": sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": request.top_logprobs,
        "cache_salt": request.salt or None,
    }
    if request.schema is not None:
        schema = {"name": "answer", "schema": json.loads(request.schema.text)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in body.items() if value is not None}


class ChunkReader:
    """The pieces of one answer, chunk by chunk. What makes no sense raises `ValueError`, `TypeError`, `LookupError` or
    `AttributeError`."""

    def __init__(self, request: DecodeRequest):
        self.request = request
        self.reason: str | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[Logprob] = []
        self._cached_tokens = 0

    def pieces(self, chunk: Mapping[str, Any]) -> list[Piece]:
        """A piece for every token of a chunk; the text of the chunk is in the first one."""
        usage = chunk.get("usage")
        if usage is not None:
            details = usage.get("prompt_tokens_details") or {}
            self._cached_tokens = int(details.get("cached_tokens") or 0)
        if not chunk["choices"]:
            return []
        (choice,) = chunk["choices"]
        text, tokens = choice["text"], [int(token) for token in choice.get("token_ids") or ()]
        if not isinstance(text, str) or len(tokens) > MOST_TOKENS_OF_A_CHUNK:
            raise ValueError("a chunk without a text, or with too many tokens")
        if len(self._tokens) + len(tokens) > self.request.max_new_tokens:
            raise ValueError("more tokens than were asked for")
        self._texts.append(text)
        self._tokens += tokens
        self.reason = choice.get("finish_reason") or self.reason
        logprobs = self._read_logprobs(choice, len(tokens))
        texts = [text, *[""] * (len(tokens) - 1)]
        if not tokens:
            return [Piece(text, -1)] if text else []
        return [Piece(*fields) for fields in zip(texts, tokens, logprobs, strict=True)]

    def answer(self) -> Answer:
        """The whole answer. Errors: `ValueError` if vLLM did not end it as it should."""
        if self.reason not in ("stop", "length"):
            raise ValueError(f"an answer that ended with {self.reason!r}")
        return Answer(
            text="".join(self._texts),
            token_ids=tuple(self._tokens),
            reason=self.reason,
            method=self.request.method,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self._cached_tokens,
            logprobs=tuple(self._logprobs),
        )

    def _read_logprobs(self, choice: Mapping[str, Any], count: int) -> list[Logprob | None]:
        """The log-probability of every token of a chunk; none for an end token, to which no text belongs."""
        top, given = self.request.top_logprobs, choice.get("logprobs")
        if top is None or given is None:
            return [None] * count
        found: list[Logprob | None] = []
        for value, others in zip(given["token_logprobs"], given["top_logprobs"] or [{}] * count, strict=True):
            likely = sorted(
                ((_id(name), float(one)) for name, one in (others or {}).items()), key=lambda pair: -pair[1]
            )
            found.append((float(value), likely[:top]))
        if len(found) != count:
            raise ValueError("a chunk with another number of log-probabilities than tokens")
        if count and choice.get("finish_reason") == "stop" and self._tokens[-1] in self.request.stop_ids:
            found[-1] = None
        self._logprobs += [one for one in found if one is not None]
        return found


def _id(name: str) -> int:
    """A token's id from `token_id:17`."""
    return int(name.removeprefix("token_id:"))
