"""`/v1/chat/completions` and `/v1/completions`."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fastmem.core.decode import Request as DecodeRequest
from fastmem.core.memory import Memory
from fastmem.prompts import Tokens
from fastmem.serve import compose
from fastmem.serve.door import Refusal, failure
from fastmem.serve.jobs import Event, Failed, Finished, Piece, TokenLogprob
from fastmem.serve.records import Wish
from fastmem.serve.replies import Heading, chunk, event, last_chunks, whole
from fastmem.serve.schemas import ChatRequest, CompletionRequest
from fastmem.serve.service import Mailbox, Service, service_of

router = APIRouter(prefix="/v1")


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    if body.top_logprobs and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs=true.", "top_logprobs", "invalid_value")
    template = body.fastmem.template or service.template
    composed = compose.chat(service.llm, [m.plain() for m in body.messages], body.documents, template)
    max_tokens = body.max_completion_tokens or body.max_tokens
    return await _answer(service, request, body, composed, max_tokens, body.top_logprobs if body.logprobs else None)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on from a prompt."""
    service = service_of(request)
    is_list_of_texts = isinstance(body.prompt, list) and isinstance(body.prompt[0], str)
    prompt: Any = body.prompt[0] if is_list_of_texts else body.prompt
    composed = compose.completion(service.llm, prompt, body.documents)
    return await _answer(service, request, body, composed, body.max_tokens, body.logprobs)


async def _answer(
    service: Service,
    request: Request,
    body: ChatRequest | CompletionRequest,
    composed: compose.Composed,
    max_tokens: int | None,
    top_logprobs: int | None,
) -> Response:
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
        "max_new_tokens": _max_tokens(service, len(composed.prompt), max_tokens),
        "top_logprobs": top_logprobs,
        "alpha": body.fastmem.alpha,
        "relative_top": body.fastmem.relative_top,
        "final_norm": body.fastmem.final_norm,
    }
    box = _submitted(service, composed, options, method, wish, tenant, body.stops())
    kind = "chatcmpl" if isinstance(body, ChatRequest) else "cmpl"
    chat = isinstance(body, ChatRequest)
    heading = Heading(f"{kind}-{uuid.uuid4().hex}", int(time.time()), body.model, method, chat)
    streaming = False
    try:
        first = await box.next_or_gone(request)
        if isinstance(first, Failed):
            raise first.error
        if not body.stream:
            return await _collected(service, request, box, heading, first, top_logprobs is not None)
        usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _stream(service, box, heading, first, usage, request.state.request_id)
        streaming = True
        return StreamingResponse(chunks, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    finally:
        if not streaming:
            box.close()


def _submitted(
    service: Service,
    composed: compose.Composed,
    options: dict[str, Any],
    method: str,
    wish: Wish | None,
    tenant: str,
    stop: tuple[str, ...],
) -> Mailbox:
    """Check all that can be checked before a memory is made, then queue. Errors: `InputError`, `OverloadedError`."""
    llm = service.llm
    prompt = Tokens(composed.prompt)
    without = None if composed.without is None else Tokens(composed.without)
    llm.request(prompt, None, "base", **options)
    compose.method_named(method).contrast(options["alpha"], options["relative_top"], options["final_norm"])

    def build(memory: Memory | None) -> DecodeRequest:
        return llm.request(prompt, memory, method, **options, without_context=without)

    shared = composed.shared_tokens
    return Mailbox(service, tenant=tenant, wish=wish, build=build, stop=stop, shared_tokens=shared).submit()


async def _collected(
    service: Service, request: Request, box: Mailbox, heading: Heading, first: Event, logprobs: bool
) -> Response:
    """The whole answer at once."""
    texts: list[str] = []
    found: list[TokenLogprob] = []
    now = first
    while isinstance(now, Piece):
        texts.append(now.text)
        if now.logprob is not None:
            found.append(now.logprob)
        now = await box.next_or_gone(request)
    if isinstance(now, Failed):
        raise now.error
    assert isinstance(now, Finished)
    service.metrics.answered(heading.method, now)
    return JSONResponse(whole(heading, "".join(texts), found if logprobs else None, now, service.llm.tokenizer))


async def _stream(
    service: Service, box: Mailbox, heading: Heading, first: Event, include_usage: bool, request_id: str
) -> AsyncIterator[bytes]:
    """Server-sent events: pieces, the end with its reason, `[DONE]`. A late error is an event too."""
    try:
        now, opening = first, True
        while isinstance(now, Piece):
            yield event(chunk(heading, now.text, now.logprob, service.llm.tokenizer, opening))
            opening = False
            now = await box.next()
        if isinstance(now, Failed):
            yield event(bytes(failure(now.error, request_id).body).decode())
            return
        assert isinstance(now, Finished)
        service.metrics.answered(heading.method, now)
        for one in last_chunks(heading, now, include_usage):
            yield event(one)
        yield event("[DONE]")
    finally:
        box.close()


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
