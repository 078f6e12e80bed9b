"""`/v1/chat/completions` and `/v1/completions`."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fastmem.answer.contrast import method_named
from fastmem.answer.request import Request as DecodeRequest
from fastmem.answer.running_batch import Piece
from fastmem.serve.document_prompts import DocumentPrompt, chat_prompt, completion_prompt, requested_method
from fastmem.serve.http_errors import HttpRefusal, failure
from fastmem.serve.jobs import Event, Failed, Finished, Job
from fastmem.serve.mailbox import Mailbox
from fastmem.serve.memory_source import MemorySource, requested_recipe, source_of
from fastmem.serve.responses import Heading, chunk, event, last_chunk, usage_chunk, whole
from fastmem.serve.schemas import ChatRequest, CompletionRequest
from fastmem.serve.service import Service, service_of
from fastmem.serve.store import Entry

router = APIRouter(prefix="/v1")
Body = ChatRequest | CompletionRequest


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    _check_count(service, body, 1)
    if body.top_logprobs and not body.logprobs:
        raise HttpRefusal(400, "top_logprobs needs logprobs=true.", "top_logprobs", "invalid_value")
    entry, method = _memory_and_method(service, request, body)
    messages, template = [m.plain() for m in body.messages], body.fastmem.template or service.template
    prompt = chat_prompt(service.llm, messages, body.documents, template, method, service.limits)
    max_tokens = body.max_completion_tokens or body.max_tokens
    top_logprobs = body.top_logprobs if body.logprobs else None
    return await _answer(service, request, body, entry, method, [prompt], max_tokens, top_logprobs)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts."""
    service, texts = service_of(request), body.prompts()
    _check_count(service, body, len(texts))
    entry, method = _memory_and_method(service, request, body)
    prompts = [completion_prompt(service.llm, text, body.documents, method, service.limits) for text in texts]
    return await _answer(service, request, body, entry, method, prompts, body.max_tokens, body.logprobs)


def _memory_and_method(service: Service, request: Request, body: Body) -> tuple[Entry | None, str]:
    """(the memory that `model` names, the method). Errors: `HttpRefusal`, `InputError`."""
    entry = service.chosen(service.tenant(request, body.cache_salt), body.model)
    return entry, requested_method(body.fastmem, entry is not None, bool(body.documents))


async def _answer(
    service: Service,
    request: Request,
    body: Body,
    entry: Entry | None,
    method: str,
    prompts: Sequence[DocumentPrompt],
    max_tokens: int | None,
    top_logprobs: int | None,
) -> Response:
    """`body.n` answers to each prompt, in the order of the prompts."""
    # 1. The jobs: everything is checked before one is submitted.
    tenant = service.tenant(request, body.cache_salt)
    source = _source(service, body, entry, tenant) if method_named(method).memorized else None
    jobs = []
    for prompt in prompts:
        prepared = _prepared(service, body, method, prompt, max_tokens, top_logprobs)
        prepared = replace(prepared, shared_tokens=prompt.shared_tokens, salt=tenant)
        for k in range(body.n):  # a given seed is the first answer's
            seed = None if body.seed is None else body.seed + k
            one = replace(prepared, sampling=replace(prepared.sampling, seed=seed))
            jobs.append(partial(Job, source=source, request=one))
    # 2. The answers, all at once or as a stream.
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


def _source(service: Service, body: Body, entry: Entry | None, tenant: str) -> MemorySource:
    """The memory that is needed: the named one, or that of the documents. Errors: `HttpRefusal`, `InputError`."""
    if entry is None:
        recipe = requested_recipe(service.llm, body.fastmem, service.limits)
        return source_of(service.llm, body.documents, recipe, tenant, service.limits)
    if body.fastmem.recipe:
        text = f"{body.model!r} is a memory with its own recipe: leave the recipe out."
        raise HttpRefusal(400, text, "fastmem.recipe", "invalid_value")
    return replace(entry.source, tokens=None)


def _prepared(
    service: Service, body: Body, method: str, prompt: DocumentPrompt, max_tokens: int | None, top_logprobs: int | None
) -> DecodeRequest:
    """The request for a prompt, without its memory. Errors: `InputError`, `HttpRefusal`."""
    options: dict[str, Any] = body.sampling() | {
        "stop": body.stops(),
        "top_logprobs": top_logprobs,
        "alpha": body.fastmem.alpha,
        "relative_top": body.fastmem.relative_top,
        "final_norm": body.fastmem.final_norm,
        "max_new_tokens": _max_tokens(service, len(prompt.prompt), max_tokens),
        "without_context": prompt.without,
    }
    return service.llm.prepare(prompt.prompt, method, **options)


async def _collected(
    service: Service, request: Request, box: Mailbox, heading: Heading, first: tuple[int, Event], count: int
) -> Response:
    """All answers in one response."""
    ends: dict[int, Finished] = {}
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    number, now = first
    while True:
        if isinstance(now, Failed):
            raise now.error
        if isinstance(now, Piece):
            pieces[number].append(now)
        elif isinstance(now, Finished):
            service.metrics.answered(heading.method, now)
            ends[number] = now
            if len(ends) == count:
                answers = [(ends[i], pieces[i]) for i in range(count)]
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
    """Server-sent events: pieces, the ends with their reasons, `[DONE]`. A late error is an event, too."""
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


def _check_count(service: Service, body: Body, prompts: int) -> None:
    """Errors: `HttpRefusal` for more answers than one request may ask for, or for several identical ones."""
    count, most = body.n * prompts, service.limits.answers
    if count > most:
        text = f"n times the number of prompts is {count}: this server gives at most {most} answers to a request."
        raise HttpRefusal(400, text, "n" if body.n > 1 else "prompt", "invalid_value")
    if body.n > 1 and body.temperature == 0:
        text = (
            f"n is {body.n} at temperature 0 (the default here), where all answers are the same: give a temperature."
        )
        raise HttpRefusal(400, text, "n", "invalid_value")


def _max_tokens(service: Service, prompt_tokens: int, requested: int | None) -> int:
    """The longest answer. Errors: `HttpRefusal` above the server's limit."""
    limits, positions = service.limits, service.llm.split_model.max_positions
    if requested is not None:
        if requested > limits.max_tokens:
            text = f"max_tokens is {requested}: this server writes at most {limits.max_tokens}."
            raise HttpRefusal(400, text, "max_tokens", "invalid_value")
        return requested
    room = limits.default_tokens if positions is None else positions - prompt_tokens
    return max(min(limits.default_tokens, room), 1)
