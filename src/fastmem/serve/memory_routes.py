"""`/v1/memories`: make, list, show and delete memories, and compare surprisals before and after memorizing.

For GET and DELETE the salt is a query parameter, `?cache_salt=...`.
"""

from typing import Any

from fastapi import APIRouter, Request

from fastmem.errors import InputError
from fastmem.serve.document_prompts import documents_text
from fastmem.serve.http_errors import HttpRefusal
from fastmem.serve.mailbox import with_memory
from fastmem.serve.memory_source import requested_recipe, source_of, text_digest
from fastmem.serve.responses import memory_object
from fastmem.serve.schemas import MemoryRequest, SurpriseRequest
from fastmem.serve.service import service_of
from fastmem.surprisal_report import surprisal_report

router = APIRouter(prefix="/v1/memories")


@router.post("")
async def make_memory(body: MemoryRequest, request: Request) -> dict[str, Any]:
    """Memorize documents, or find their memory. Answers when the memory is on disk, if the server stores memories."""
    service = service_of(request)
    if body.model not in (None, service.name):
        text = f"the model {body.model!r} does not exist: this server has {service.name!r}."
        raise HttpRefusal(404, text, "model", "model_not_found")
    if body.name is not None and (body.name == service.name or body.name.startswith("mem-")):
        raise InputError(f"the name {body.name!r} is taken or reserved: choose another.", field="name")
    tenant = service.tenant(request, body.cache_salt)
    recipe = requested_recipe(service.llm, body.fastmem, service.limits)
    source = source_of(service.llm, body.documents, recipe, tenant, service.limits, body.name)
    if body.name is not None and (other := service.store.find(tenant, body.name)) and other.source.key != source.key:
        text = f"the name {body.name!r} belongs to memory {other.source.key}: delete it or choose another."
        raise HttpRefusal(409, text, "name", "name_taken")
    done = await with_memory(service, request, source, lambda memory: None)
    entry = service.memory(tenant, source.key)
    if body.name is not None and entry.record["name"] != body.name:
        service.store.rename(entry, body.name)
        return memory_object(entry.record, service.name)
    return memory_object(done.memory, service.name)


@router.get("")
async def list_memories(request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """The caller's memories."""
    service = service_of(request)
    entries = service.store.of_tenant(service.tenant(request, cache_salt))
    return {"object": "list", "data": [memory_object(entry.record, service.name) for entry in entries]}


@router.get("/{reference}")
async def show_memory(reference: str, request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """One memory, by id or name."""
    service = service_of(request)
    return memory_object(service.memory(service.tenant(request, cache_salt), reference).record, service.name)


@router.delete("/{reference}")
async def delete_memory(reference: str, request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """Delete one memory, also on disk. Running answers that use it are completed."""
    service = service_of(request)
    entry = service.memory(service.tenant(request, cache_salt), reference)
    service.store.delete(entry)
    return {"id": entry.source.key, "object": "memory.deleted", "deleted": True}


@router.post("/{reference}/surprise")
async def surprise(reference: str, body: SurpriseRequest, request: Request) -> dict[str, Any]:
    """The surprisal of every token of the documents, in nats, before and after memorizing."""
    service = service_of(request)
    tenant, llm = service.tenant(request, body.cache_salt), service.llm
    entry, text = service.memory(tenant, reference), documents_text(body.documents, service.limits)
    if entry.record["about"]["text_sha256"] != text_digest(text):
        text = "these are not the documents that the memory was made from: give those."
        raise InputError(text, field="documents")
    tokens = llm.memory_tokens(text, entry.source.recipe)
    done = await with_memory(service, request, entry.source, lambda memory: surprisal_report(llm, tokens, memory))
    rows = [{"text": t.text, "before": round(t.before, 4), "after": round(t.after, 4)} for t in done.result]
    return {"object": "surprise", "tokens": rows}
