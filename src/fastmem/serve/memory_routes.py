"""`/v1/memories`: make ahead, list, show, delete, and see what a memory did to its document.

The salt of GET and DELETE is a query parameter, `?cache_salt=...`.
"""

from typing import Any

from fastapi import APIRouter, Request

from fastmem.core.memorize import read
from fastmem.core.memory import Memory
from fastmem.core.surprise import surprises
from fastmem.serve import compose
from fastmem.serve.door import Refusal
from fastmem.serve.replies import memory_object
from fastmem.serve.schemas import MemoryRequest, SurpriseRequest
from fastmem.serve.service import service_of, with_memory
from fastmem.streaming import Detokenizer

router = APIRouter(prefix="/v1/memories")


@router.post("")
async def make(body: MemoryRequest, request: Request) -> dict[str, Any]:
    """Memorize documents, or find the memory that is there; answered when it is on disk, where there is one."""
    service = service_of(request)
    if body.model not in (None, service.name):
        raise Refusal(
            404, f"the model {body.model!r} does not exist: it is {service.name!r}.", "model", "model_not_found"
        )
    if body.name is not None and (body.name == service.name or body.name.startswith("mem-")):
        raise Refusal(400, f"the name {body.name!r} is taken or reserved: choose another.", "name", "invalid_value")
    tenant = service.tenant(request, body.cache_salt)
    recipe = compose.recipe_of(service.llm, body.fastmem, service.limits)
    wish = compose.wish_for(service.llm, body.documents, recipe, tenant, service.limits, body.name)
    if body.name is not None and (other := service.store.find(tenant, body.name)) and other.wish.key != wish.key:
        text = f"the name {body.name!r} belongs to memory {other.wish.key}: delete it or choose another."
        raise Refusal(409, text, "name", "name_taken")
    done = await with_memory(service, request, wish, lambda memory: None)
    entry = service.memory(tenant, wish.key)
    if body.name is not None and entry.record["name"] != body.name:
        service.store.rename(entry, body.name)
        return memory_object(entry.record, service.name)
    return memory_object(done.memory, service.name)


@router.get("")
async def listed(request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """The memories of who asks."""
    service = service_of(request)
    mine = service.store.of(service.tenant(request, cache_salt))
    return {"object": "list", "data": [memory_object(entry.record, service.name) for entry in mine]}


@router.get("/{reference}")
async def shown(reference: str, request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """One memory, by id or name."""
    service = service_of(request)
    return memory_object(service.memory(service.tenant(request, cache_salt), reference).record, service.name)


@router.delete("/{reference}")
async def deleted(reference: str, request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """Forget one memory, on disk too. An answer that uses it is finished."""
    service = service_of(request)
    entry = service.memory(service.tenant(request, cache_salt), reference)
    service.store.delete(entry)
    return {"id": entry.wish.key, "object": "memory.deleted", "deleted": True}


@router.post("/{reference}/surprise")
async def surprise(reference: str, body: SurpriseRequest, request: Request) -> dict[str, Any]:
    """-log q of every token of the documents, in nats, before and after memorizing."""
    service = service_of(request)
    tenant, llm = service.tenant(request, body.cache_salt), service.llm
    entry = service.memory(tenant, reference)
    if not compose.same_documents(entry.record, body.documents):
        raise Refusal(400, "these are not the documents the memory was made of.", "documents", "invalid_value")
    tokens = llm.memory_tokens(compose.documents_text(body.documents), entry.wish.recipe)

    def both(memory: Memory) -> tuple[list[float], list[float]]:
        layers = llm.trunk.indices(memory.recipe.layers)
        reading = read(llm.trunk, tokens.ids, tokens.scored, layers)
        return surprises(llm.trunk, reading).tolist(), surprises(llm.trunk, reading, llm.ffn(memory)).tolist()

    before, after = (await with_memory(service, request, entry.wish, both)).result
    ids = tokens.ids[tokens.scored].tolist()
    texts = _pieces(llm.tokenizer, ids)
    return {
        "object": "surprise",
        "tokens": [
            {"text": text, "before": round(b, 4), "after": round(a, 4)}
            for text, b, a in zip(texts, before, after, strict=True)
        ],
    }


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text each token adds; a character of several tokens stands at its last."""
    text = Detokenizer(tokenizer)
    pieces = [text.add(token) for token in ids]
    pieces[-1] += text.finish()
    return pieces
