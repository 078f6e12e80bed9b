"""`/v1/memories`: make, list, show, download and delete memories, and compare surprisals before and after memorizing.

For GET and DELETE the salt is a query parameter, `?cache_salt=...`.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fastmem.errors import FastMemError, InputError
from fastmem.prompts import Tokens
from fastmem.serve.completion_routes import EventStream
from fastmem.serve.document_prompts import documents_text
from fastmem.serve.http_errors import HttpRefusal, error_response
from fastmem.serve.jobs import ActionFinished, Job, JobFailed, MemorizeProgress
from fastmem.serve.mailbox import Mailbox, with_memory
from fastmem.serve.memory_source import MemorySource, requested_recipe, source_of, text_digest
from fastmem.serve.responses import finite, memory_object, sse_event
from fastmem.serve.schemas import MemoryRequest, SurpriseRequest
from fastmem.serve.service import service_of
from fastmem.serve.store import Entry
from fastmem.surprisal_report import surprisal_report

router = APIRouter(prefix="/v1/memories")
Limit = Annotated[int, Query(ge=1, le=1000)]
DOWNLOADED_AT_ONCE = 2**20


def page_of(entries: list[Entry], limit: int, after: str | None) -> tuple[list[Entry], bool]:
    """(at most `limit` entries after the one with this id, whether there are more). Errors: `InputError`."""
    start = 0
    if after is not None:
        keys = [entry.source.key for entry in entries]
        if after not in keys:
            raise InputError(
                f"the memory {after!r} does not exist: give the last id of the page before.", field="after"
            )
        start = keys.index(after) + 1
    return entries[start : start + limit], len(entries) > start + limit


@router.post("", response_model=None)
async def make_memory(body: MemoryRequest, request: Request) -> Response:
    """Memorize documents, or find their memory. Answers when the memory is on disk, if the server stores memories."""
    service = service_of(request)
    if body.model not in (None, service.name, *service.aliases):
        text = f"the model {body.model!r} does not exist: this server has {service.name!r}."
        raise HttpRefusal(404, text, "model", "model_not_found")
    if body.name is not None and (body.name in (service.name, *service.aliases) or body.name.startswith("mem-")):
        raise InputError(f"the name {body.name!r} is taken or reserved: choose another.", field="name")
    sender = service.sender(request)
    tenant = sender.salted(body.cache_salt)

    def read() -> MemorySource:
        service.check_documents(body.documents)
        recipe = requested_recipe(service.llm, body.fastmem, service.limits)
        return source_of(service.llm, body.documents, recipe, sender, body.cache_salt, service.limits, body.name)

    source = await service.text.run(read)
    if body.name is not None and (owner := service.store.claim(tenant, body.name, source.key)) is not None:
        text = f"the name {body.name!r} belongs to memory {owner}: delete it or choose another."
        raise HttpRefusal(409, text, "name", "name_taken")

    def unclaim() -> None:
        if body.name is not None:
            service.store.unclaim(tenant, body.name, source.key)

    def named(done: ActionFinished) -> dict[str, Any]:
        entry = service.store.find(tenant, source.key)
        if entry is None:  # it had to make room for another already
            return memory_object(done.memory, service.name)
        if body.name is not None and entry.record["name"] != body.name:
            service.store.rename(entry, body.name)
        return memory_object(entry.record, service.name)

    job = Job(
        source=source,
        action=lambda memory: None,
        on_device=service.vllm is None,
        durable=True,
        progress=body.stream,
    )
    mailbox, streaming = Mailbox(service, [job], sender), False
    try:
        mailbox.submit()
        if body.stream:
            streaming = True

            def close() -> None:
                mailbox.close()
                unclaim()

            return EventStream(close, _progress(mailbox, named, request.state.request_id))
        while not isinstance(event := (await mailbox.next_or_gone(request))[1], ActionFinished):
            pass
        return JSONResponse(await run_in_threadpool(named, event))
    finally:
        if not streaming:
            mailbox.close()
            unclaim()  # the name of a memory that was made stays


async def _progress(
    mailbox: Mailbox, named: Callable[[ActionFinished], dict[str, Any]], request_id: str
) -> AsyncIterator[bytes]:
    """Every step, then the memory, `[DONE]`. An error is an event, too."""
    while True:
        _, event = await mailbox.next()
        if isinstance(event, MemorizeProgress):
            progress = {"step": event.step, "steps": event.steps, "loss": finite(event.loss)}
            yield sse_event({"object": "memory.progress"} | progress)
        elif isinstance(event, JobFailed):
            yield sse_event(bytes(error_response(event.error, request_id).body).decode())
            return
        elif isinstance(event, ActionFinished):
            try:
                yield sse_event(await run_in_threadpool(named, event))
                yield sse_event("[DONE]")
            except FastMemError as error:
                yield sse_event(bytes(error_response(error, request_id).body).decode())
            return


@router.get("")
async def list_memories(
    request: Request, cache_salt: str | None = None, limit: Limit = 100, after: str | None = None
) -> dict[str, Any]:
    """A page of the caller's memories, oldest first. after: the id of the last one of the page before."""
    service = service_of(request)
    entries = service.store.of_tenant(service.tenant(request, cache_salt))
    page, more = page_of(entries, limit, after)
    objects = [memory_object(entry.record, service.name) for entry in page]
    ends = {"first_id": objects[0]["id"], "last_id": objects[-1]["id"]} if objects else {}
    return {"object": "list", "data": objects, "has_more": more} | ends


@router.get("/{reference}")
async def show_memory(reference: str, request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """One memory, by id or name."""
    service = service_of(request)
    return memory_object(service.memory(service.tenant(request, cache_salt), reference).record, service.name)


@router.get("/{reference}/content")
async def download_memory(reference: str, request: Request, cache_salt: str | None = None) -> Response:
    """The memory as a file, which `Memory.load` and `fastmem ask --memory` read."""
    service = service_of(request)
    entry = service.memory(service.tenant(request, cache_salt), reference)
    file = await run_in_threadpool(service.store.opened_file, entry)
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": f'attachment; filename="{entry.record["name"] or entry.source.key}.safetensors"',
    }
    return StreamingResponse(_chunks(file), media_type="application/octet-stream", headers=headers)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(DOWNLOADED_AT_ONCE):
            yield chunk


@router.delete("/{reference}")
async def delete_memory(reference: str, request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """Delete one memory, also on disk. Running answers that use it are completed."""
    service = service_of(request)
    entry = service.memory(service.tenant(request, cache_salt), reference)
    await run_in_threadpool(service.store.delete, entry)
    if service.vllm is not None:
        await service.vllm.delete(entry.source)
    return {"id": entry.source.key, "object": "memory.deleted", "deleted": True}


@router.post("/{reference}/surprise")
async def surprise(reference: str, body: SurpriseRequest, request: Request) -> dict[str, Any]:
    """The surprisal of every token of the documents, in nats, before and after memorizing; null if not finite."""
    service = service_of(request)
    tenant, llm = service.tenant(request, body.cache_salt), service.llm
    entry = service.memory(tenant, reference)

    def read() -> Tokens:
        service.check_documents(body.documents)
        text = documents_text(body.documents)
        if entry.record["about"]["text_sha256"] != text_digest(text):
            other = "the memory was made from other documents than these: give the ones it was made from."
            raise InputError(other, field="documents")
        return llm.memory_tokens(text, entry.source.recipe)

    tokens = await service.text.run(read)
    done = await with_memory(service, request, entry.source, lambda memory: surprisal_report(llm, tokens, memory))
    rows = [{"text": t.text, "before": _shown(t.before), "after": _shown(t.after)} for t in done.result]
    return {"object": "surprise", "tokens": rows}


def _shown(surprisal: float) -> float | None:
    return finite(round(surprisal, 4))
