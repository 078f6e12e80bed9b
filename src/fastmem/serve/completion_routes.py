"""`/v1/chat/completions` and `/v1/completions`."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fastmem.answer.contrast import method_named
from fastmem.answer.request import Request as DecodeRequest
from fastmem.answer.running_batch import Piece
from fastmem.errors import InputError
from fastmem.serve.asgi import Receive, Scope, Send
from fastmem.serve.document_prompts import (
    DocumentPrompt,
    chat_prompt,
    completion_prompt,
    requested_method,
    template_options,
)
from fastmem.serve.http_errors import error_response
from fastmem.serve.jobs import AnswerFinished, Event, Job, JobFailed
from fastmem.serve.mailbox import Mailbox
from fastmem.serve.memory_source import MemorySource, check_adapter, requested_recipe, source_of
from fastmem.serve.responses import CommonFields, complete_response, last_chunk, piece_chunk, sse_event, usage_chunk
from fastmem.serve.schemas import ChatRequest, CompletionRequest
from fastmem.serve.service import Service, service_of
from fastmem.serve.tenants import Tenant

router = APIRouter(prefix="/v1")
Body = ChatRequest | CompletionRequest


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    return await _answer(service_of(request), request, body)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts."""
    return await _answer(service_of(request), request, body)


@dataclass(frozen=True)
class Asked:
    """What a request asks for. jobs: in the order of the prompts, `n` for each."""

    jobs: list[Job]
    method: str
    top_logprobs: int | None


def asked_of(service: Service, sender: Tenant, body: Body) -> Asked:
    """The jobs of a request, with everything checked. Runs in the text thread. Errors: `HttpRefusal`, `InputError`."""
    tenant = sender.salted(body.cache_salt)
    if isinstance(body, ChatRequest):
        _check_count(service, body, 1)
        service.text.check_texts(body.texts())
        if body.top_logprobs and not body.logprobs:
            raise InputError("top_logprobs needs logprobs=true.", field="top_logprobs")
        method, source = _method_and_source(service, sender, body)
        messages, template = [m.plain() for m in body.messages], body.fastmem.template or service.template
        options = template_options(body.chat_template_kwargs)
        prompts = [chat_prompt(service.llm, messages, body.documents, template, method, options)]
        max_tokens = body.max_completion_tokens or body.max_tokens
        top_logprobs = body.top_logprobs if body.logprobs else None
    else:
        texts = body.prompts()
        _check_count(service, body, len(texts))
        for text in body.texts():
            service.text.check_texts([text])
        method, source = _method_and_source(service, sender, body)
        prompts = [completion_prompt(service.llm, text, body.documents, method) for text in texts]
        max_tokens, top_logprobs = body.max_tokens, body.logprobs
    schema = None
    if isinstance(body, ChatRequest) and body.response_format is not None:
        schema = service.llm.preparer.schema(json.dumps(body.response_format.definition()))
    jobs = []
    for prompt in prompts:
        prepared = _prepared(service, body, method, prompt, max_tokens, top_logprobs, tenant)
        prepared = replace(prepared, schema=schema)
        for k in range(body.n):  # a given seed is the first answer's
            seed = None if body.seed is None else body.seed + k
            one = replace(prepared, sampling=replace(prepared.sampling, seed=seed))
            jobs.append(Job(source=source, request=one))
    return Asked(jobs, method, top_logprobs)


def _method_and_source(service: Service, sender: Tenant, body: Body) -> tuple[str, MemorySource | None]:
    """(the method, the memory it needs: the one that `model` names, otherwise that of the documents).

    Errors: `HttpRefusal`, `InputError`.
    """
    entry = service.memory_of_model(sender.salted(body.cache_salt), body.model)
    method = requested_method(body.fastmem, entry is not None, bool(body.documents))
    service.check_method(method)
    service.check_documents(body.documents)
    if not method_named(method).memorized:
        return method, None
    if entry is None:
        recipe = requested_recipe(service.llm, body.fastmem, service.limits)
        return method, source_of(service.llm, body.documents, recipe, sender, body.cache_salt, service.limits)
    if body.fastmem.recipe:
        text = f"{body.model!r} is a memory with its own recipe: leave the recipe out."
        raise InputError(text, field="fastmem.recipe")
    check_adapter(entry.source.recipe, service.limits)
    return method, replace(entry.source, tokens=None)


async def _answer(service: Service, request: Request, body: Body) -> Response:
    """`body.n` answers to each prompt, all at once or as a stream, in the order of the prompts."""
    sender = service.sender(request)
    asked = await service.text.run(lambda: asked_of(service, sender, body))
    chat = isinstance(body, ChatRequest)
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    common = CommonFields(
        name, int(time.time()), body.model, asked.method, chat, body.n, asked.top_logprobs is not None
    )
    mailbox = Mailbox(service, asked.jobs, sender).submit()
    streaming = False
    try:
        first = await mailbox.next_or_gone(request)
        if not body.stream:
            return await _collected(service, request, mailbox, common, first)
        usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _stream(service, mailbox, common, first, usage, request.state.request_id)
        streaming = True
        return EventStream(mailbox.close, chunks)
    finally:
        if not streaming:
            mailbox.close()


def _prepared(
    service: Service,
    body: Body,
    method: str,
    prompt: DocumentPrompt,
    max_tokens: int | None,
    top_logprobs: int | None,
    tenant: str,
) -> DecodeRequest:
    """The request for a prompt, without its memory. Errors: `InputError`."""
    options: dict[str, Any] = body.sampling() | {
        "stop": body.stops(),
        "top_logprobs": top_logprobs,
        "alpha": body.fastmem.alpha,
        "relative_top": body.fastmem.relative_top,
        "final_norm": body.fastmem.final_norm,
        "max_new_tokens": _max_tokens(service, len(prompt.prompt), max_tokens),
        "without_context": prompt.without,
    }
    prepared = service.llm.prepare(prompt.prompt, method, **options)
    return replace(prepared, shared_tokens=prompt.shared_tokens, salt=tenant)


class EventStream(StreamingResponse):
    """Server-sent events. close: called at the end, even if the client has left before the first event."""

    def __init__(self, close: Callable[[], None], chunks: AsyncIterator[bytes]):
        super().__init__(chunks, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _collected(
    service: Service,
    request: Request,
    mailbox: Mailbox,
    common: CommonFields,
    first: tuple[int, Event],
) -> Response:
    """All answers in one response."""
    count = len(mailbox.jobs)
    ends: dict[int, AnswerFinished] = {}
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    number, event = first
    while True:
        if isinstance(event, Piece):
            pieces[number].append(event)
        elif isinstance(event, AnswerFinished):
            service.metrics.count_answer(common.method, event)
            ends[number] = event
            if len(ends) == count:
                answers = [(ends[i], pieces[i]) for i in range(count)]
                making = partial(complete_response, common, answers, service.text.replies)
                return JSONResponse(await service.text.run(making))
        number, event = await mailbox.next_or_gone(request)


async def _stream(
    service: Service,
    mailbox: Mailbox,
    common: CommonFields,
    first: tuple[int, Event],
    include_usage: bool,
    request_id: str,
) -> AsyncIterator[bytes]:
    """Server-sent events: pieces, the end of each answer, `[DONE]`. A late error is an event, too."""
    count = len(mailbox.jobs)
    ends: dict[int, AnswerFinished] = {}
    opened: set[int] = set()
    try:
        number, event = first
        while True:
            if isinstance(event, JobFailed):
                yield sse_event(bytes(error_response(event.error, request_id).body).decode())
                return
            if isinstance(event, Piece):
                yield sse_event(piece_chunk(common, number, event, service.text.replies, number not in opened))
                opened.add(number)
            elif isinstance(event, AnswerFinished):
                service.metrics.count_answer(common.method, event)
                yield sse_event(last_chunk(common, number, event))
                ends[number] = event
                if len(ends) == count:
                    break
            number, event = await mailbox.next()
        if include_usage:
            yield sse_event(usage_chunk(common, [ends[i] for i in range(count)]))
        yield sse_event("[DONE]")
    finally:
        mailbox.close()


def _check_count(service: Service, body: Body, prompts: int) -> None:
    """Errors: `InputError` for more answers than the server gives to one request, or for several identical ones."""
    count, most = body.n * prompts, service.limits.answers
    if count > most:
        text = f"n times the number of prompts is {count}: this server gives at most {most} answers to a request."
        raise InputError(text, field="n" if body.n > 1 else "prompt")
    if body.n > 1 and body.temperature == 0:
        raise InputError(
            f"n is {body.n} at temperature 0, where all answers are the same: give another, or leave it out.",
            field="n",
        )


def _max_tokens(service: Service, prompt_tokens: int, requested: int | None) -> int:
    """The greatest number of tokens in the answer. Errors: `InputError` above the server's limit."""
    limits, positions = service.limits, service.llm.split_model.max_positions
    if requested is None:
        room = limits.default_tokens if positions is None else positions - prompt_tokens
        return max(min(limits.default_tokens, room), 1)
    if requested > limits.max_tokens:
        text = f"max_tokens is {requested}: this server writes at most {limits.max_tokens}."
        raise InputError(text, field="max_tokens")
    return requested
