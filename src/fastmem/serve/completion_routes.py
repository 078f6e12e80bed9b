"""`/v1/chat/completions` and `/v1/completions`."""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fastmem.core.decode import Request as DecodeRequest
from fastmem.core.memory import Memory
from fastmem.model import FastMem
from fastmem.prompts import Tokens
from fastmem.serve import compose
from fastmem.serve.door import Refusal, failure
from fastmem.serve.jobs import Event, Failed, Finished, Piece
from fastmem.serve.replies import Answer, Heading, chunk, event, last_chunk, usage_chunk, whole
from fastmem.serve.schemas import ChatRequest, CompletionRequest
from fastmem.serve.service import Mailbox, Service, service_of

router = APIRouter(prefix="/v1")


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    _check_count(service, body, 1)
    if body.top_logprobs and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs=true.", "top_logprobs", "invalid_value")
    template = body.fastmem.template or service.template
    composed = compose.chat(service.llm, [m.plain() for m in body.messages], body.documents, template)
    max_tokens = body.max_completion_tokens or body.max_tokens
    return await _answer(service, request, body, [composed], max_tokens, body.top_logprobs if body.logprobs else None)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on from prompts."""
    service, texts = service_of(request), body.prompts()
    _check_count(service, body, len(texts))
    composed = [compose.completion(service.llm, text, body.documents) for text in texts]
    return await _answer(service, request, body, composed, body.max_tokens, body.logprobs)


async def _answer(
    service: Service,
    request: Request,
    body: ChatRequest | CompletionRequest,
    composed: Sequence[compose.Composed],
    max_tokens: int | None,
    top_logprobs: int | None,
) -> Response:
    """`body.n` answers to each prompt, in the order of the prompts."""
    tenant = service.tenant(request, body.cache_salt)
    entry = service.chosen(tenant, body.model)
    method = compose.method_of(body.fastmem, entry is not None, bool(body.documents))
    wish = None
    if compose.method_named(method).memorized:
        if entry is not None:
            if body.fastmem.recipe:
                text = f"{body.model!r} is a memory with a recipe of its own: leave the recipe out."
                raise Refusal(400, text, "fastmem.recipe", "invalid_value")
            wish = replace(entry.wish, tokens=None)
        else:
            recipe = compose.recipe_of(service.llm, body.fastmem, service.limits)
            wish = compose.wish_for(service.llm, body.documents, recipe, tenant, service.limits)
    options: dict[str, Any] = body.sampling() | {
        "top_logprobs": top_logprobs,
        "alpha": body.fastmem.alpha,
        "relative_top": body.fastmem.relative_top,
        "final_norm": body.fastmem.final_norm,
    }
    job = {"tenant": tenant, "wish": wish, "stop": body.stops()}
    jobs = []
    for one in composed:
        options["max_new_tokens"] = _max_tokens(service, len(one.prompt), max_tokens)
        for k in range(body.n):  # a seed that is given is the first answer's
            seed = None if body.seed is None else body.seed + k
            build = _checked(service.llm, one, method, options | {"seed": seed})
            jobs.append(job | {"build": build, "shared_tokens": one.shared_tokens})
    chat = isinstance(body, ChatRequest)
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    heading = Heading(name, int(time.time()), body.model, method, chat, body.n, top_logprobs is not None)
    box = Mailbox(service, jobs).submit()
    streaming = False
    try:
        first = await box.next_or_gone(request)
        if isinstance(first[1], Failed):
            raise first[1].error
        if not body.stream:
            return await _collected(service, request, box, heading, first, len(jobs))
        usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _stream(service, box, heading, first, len(jobs), usage, request.state.request_id)
        streaming = True
        return StreamingResponse(chunks, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    finally:
        if not streaming:
            box.close()


def _checked(
    llm: FastMem, composed: compose.Composed, method: str, options: dict[str, Any]
) -> Callable[[Memory | None], DecodeRequest]:
    """How to build the request once its memory is there. Errors: `InputError` for all that can be known before."""
    prompt = Tokens(composed.prompt)
    without = None if composed.without is None else Tokens(composed.without)
    llm.request(prompt, None, "base", **options)
    compose.method_named(method).contrast(options["alpha"], options["relative_top"], options["final_norm"])
    return lambda memory: llm.request(prompt, memory, method, **options, without_context=without)


async def _collected(
    service: Service, request: Request, box: Mailbox, heading: Heading, first: tuple[int, Event], count: int
) -> Response:
    """The whole answers at once."""
    answers = [Answer() for _ in range(count)]
    number, now = first
    while True:
        if isinstance(now, Failed):
            raise now.error
        if isinstance(now, Piece):
            answers[number].texts.append(now.text)
            if now.logprob is not None:
                answers[number].logprobs.append(now.logprob)
        elif isinstance(now, Finished):
            service.metrics.answered(heading.method, now)
            answers[number].end = now
            if all(one.end is not None for one in answers):
                return JSONResponse(whole(heading, answers, service.llm.tokenizer))
        number, now = await box.next_or_gone(request)


async def _stream(
    service: Service,
    box: Mailbox,
    heading: Heading,
    first: tuple[int, Event],
    count: int,
    include_usage: bool,
    request_id: str,
) -> AsyncIterator[bytes]:
    """Server-sent events: pieces, the ends with their reasons, `[DONE]`. A late error is an event too."""
    ends: dict[int, Finished] = {}
    opened: set[int] = set()
    try:
        number, now = first
        while True:
            if isinstance(now, Failed):
                yield event(bytes(failure(now.error, request_id).body).decode())
                return
            if isinstance(now, Piece):
                yield event(chunk(heading, number, now, service.llm.tokenizer, number not in opened))
                opened.add(number)
            elif isinstance(now, Finished):
                service.metrics.answered(heading.method, now)
                yield event(last_chunk(heading, number, now))
                ends[number] = now
                if len(ends) == count:
                    break
            number, now = await box.next()
        if include_usage:
            yield event(usage_chunk(heading, [ends[i] for i in range(count)]))
        yield event("[DONE]")
    finally:
        box.close()


def _check_count(service: Service, body: ChatRequest | CompletionRequest, prompts: int) -> None:
    """Errors: `Refusal` for more answers than one request may ask for, or for several that would be the same."""
    count, most = body.n * prompts, service.limits.answers
    if count > most:
        text = f"n times the number of prompts is {count}: this server gives at most {most} answers to a request."
        raise Refusal(400, text, "n" if body.n > 1 else "prompt", "invalid_value")
    if body.n > 1 and body.temperature == 0:
        text = (
            f"n is {body.n} at temperature 0 (the default here), where all answers are the same: give a temperature."
        )
        raise Refusal(400, text, "n", "invalid_value")


def _max_tokens(service: Service, prompt_tokens: int, asked: int | None) -> int:
    """How long the answer may become. Errors: `Refusal` above the server's limit."""
    limits, positions = service.limits, service.llm.trunk.max_positions
    if asked is not None:
        if asked > limits.max_tokens:
            text = f"max_tokens is {asked}: this server writes at most {limits.max_tokens}."
            raise Refusal(400, text, "max_tokens", "invalid_value")
        return asked
    room = limits.default_tokens if positions is None else positions - prompt_tokens
    return max(min(limits.default_tokens, room), 1)
