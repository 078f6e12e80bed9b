"""What every route needs: the model, its store and engine, the limits, and who is asking."""

import asyncio
import functools
import hmac
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from fastmem.core.memory import Memory
from fastmem.model import FastMem
from fastmem.serve.compose import Limits, tenant_of
from fastmem.serve.door import Refusal
from fastmem.serve.engine import Engine
from fastmem.serve.jobs import Done, Event, Failed, Finished, Job
from fastmem.serve.metrics import Metrics
from fastmem.serve.records import Wish
from fastmem.serve.schemas import Template
from fastmem.serve.store import Entry, Store


@dataclass(frozen=True)
class Service:
    """One server. api_keys: who may ask; none lets everybody. template: how documents enter a prompt by default."""

    llm: FastMem
    store: Store
    engine: Engine
    metrics: Metrics
    name: str
    started: int
    limits: Limits = field(default_factory=Limits)
    api_keys: tuple[str, ...] = ()
    template: Template = "context"

    def tenant(self, request: Request, salt: str | None) -> str:
        """Whose memories this request may see."""
        return tenant_of(self._bearer(request), salt)

    def authorize(self, request: Request) -> None:
        """Errors: `Refusal` where a key is needed and none of the accepted ones was given."""
        given = self._bearer(request).encode()
        if self.api_keys and not any(hmac.compare_digest(given, key.encode()) for key in self.api_keys):
            text = "this server needs an API key: send it as 'Authorization: Bearer <key>'."
            raise Refusal(401, text, code="invalid_api_key")

    def memory(self, tenant: str, reference: str) -> Entry:
        """A memory of this tenant by id or name. Errors: `Refusal`, the same whether or not another tenant has it."""
        entry = self.store.find(tenant, reference)
        if entry is None:
            text = f"the memory {reference!r} does not exist: make it with POST /v1/memories."
            raise Refusal(404, text, code="memory_not_found")
        return entry

    def chosen(self, tenant: str, model: str) -> Entry | None:
        """What `model` names: None for the base, else a memory, `<memory>` or `<base>:<memory>`. Errors: `Refusal`."""
        if model == self.name:
            return None
        reference = model.removeprefix(f"{self.name}:")
        entry = self.store.find(tenant, reference)
        if entry is None:
            text = (
                f"the model {model!r} does not exist: accepted are {self.name!r} and the memories of GET /v1/models."
            )
            raise Refusal(404, text, "model", "model_not_found")
        return entry

    def _bearer(self, request: Request) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


def service_of(request: Request) -> Service:
    """The server a request came to."""
    return request.app.state.service


class Mailbox:
    """Events of a request's jobs, from the worker's thread to the event loop's, each with the number of its job.

    Leaving the block without all last events, for instance because the client has gone, cancels what still runs; so
    does the first job that fails, since a request is answered whole or not at all.
    """

    def __init__(self, service: Service, jobs: Sequence[Mapping[str, Any]]):
        self._service, self._loop = service, asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._jobs = [Job(emit=functools.partial(self._emit, i), **job) for i, job in enumerate(jobs)]
        self._open: set[int] = set()

    def submit(self) -> "Mailbox":
        """All jobs or none. Errors: `OverloadedError`, `DrainingError`."""
        self._service.engine.submit(*self._jobs)
        self._open = set(range(len(self._jobs)))
        return self

    async def next(self) -> tuple[int, Event]:
        """Wait for the next event of any job."""
        number, event = await self._events.get()
        if isinstance(event, Done | Failed | Finished):
            self._open.discard(number)
        if isinstance(event, Failed):
            self._cancel()
        return number, event

    async def next_or_gone(self, request: Request) -> tuple[int, Event]:
        """The next event. Errors: `Refusal` where the client leaves before it comes."""
        if not self._events.empty():
            return await self.next()
        leaving = asyncio.ensure_future(_disconnected(request))
        coming = asyncio.ensure_future(self.next())
        try:
            await asyncio.wait({leaving, coming}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            raise Refusal(499, "the client has left.")
        finally:
            leaving.cancel()
            coming.cancel()

    def close(self) -> None:
        """Cancel the jobs that are not over."""
        if self._open:
            self._service.metrics.abandoned.inc()
            self._cancel()

    def _cancel(self) -> None:
        for number in self._open:
            self._service.engine.cancel(self._jobs[number])
        self._open = set()

    def _emit(self, number: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended: the server is gone, and so is who asked
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))


async def with_memory(service: Service, request: Request, wish: Wish, act: Callable[[Memory], Any]) -> Done:
    """Do something with a memory in the worker's thread, once it is there and on disk. Errors: those of the job."""
    box = Mailbox(service, [{"tenant": wish.tenant, "wish": wish, "act": act, "durable": True}]).submit()
    try:
        _, event = await box.next_or_gone(request)
    finally:
        box.close()
    if isinstance(event, Failed):
        raise event.error
    assert isinstance(event, Done)
    return event


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
