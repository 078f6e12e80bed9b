"""`Mailbox`: the events of a request's jobs, on their way from the worker's thread to the event loop."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import Request

from fastmem.answer.running_batch import Piece
from fastmem.errors import FastMemError
from fastmem.memory.memory import Memory
from fastmem.serve.http_errors import HttpRefusal
from fastmem.serve.jobs import ActionFinished, AnswerFinished, Event, Job, JobFailed
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.service import Service
from fastmem.serve.tenants import Tenant


class Mailbox:
    """The events of several jobs, each with the number of its job.

    `close` cancels jobs that are not over, for instance because the client has left. The first job that fails also
    cancels the others, since a request is answered completely or not at all.
    """

    def __init__(self, service: Service, jobs: Sequence[Job], sender: Tenant):
        self.jobs, self._sender, self._counted = jobs, sender, False
        # What is charged: prompts, or documents to be memorized, and the tokens that were written, also of who leaves.
        self._read = sum(len(job.request.prompt) for job in jobs if job.request is not None)
        self._read += sum(len(job.source.tokens) for job in jobs if job.action and job.source and job.source.tokens)
        self._written = [0] * len(jobs)
        self._service, self._loop = service, asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._open: set[int] = set()
        account, together = sender.salted(None), object()
        for number, job in enumerate(jobs):
            job.emit, job.account, job.together = partial(self._emit, number), account, together

    def submit(self) -> "Mailbox":
        """All jobs or none. Errors: `QuotaError`, `OverloadedError`, `DrainingError`."""
        self._service.usage.begin(self._sender)
        self._counted = True
        try:
            self._service.answering.submit(*self.jobs)
        except FastMemError:
            self.close()
            raise
        self._open = set(range(len(self.jobs)))
        return self

    async def next(self) -> tuple[int, Event]:
        """Wait for the next event of any job."""
        number, event = await self._events.get()
        if isinstance(event, AnswerFinished | ActionFinished | JobFailed):
            self._open.discard(number)
        if isinstance(event, Piece):
            self._written[number] += 1
        if isinstance(event, AnswerFinished):
            self._written[number] = len(event.answer.token_ids)
        if isinstance(event, JobFailed):
            self._cancel()
        return number, event

    async def next_or_gone(self, request: Request) -> tuple[int, Event]:
        """The next event. Errors: that of a job that failed; `HttpRefusal` if the client leaves first."""
        number, event = await (self._next_unless_gone(request) if self._events.empty() else self.next())
        if isinstance(event, JobFailed):
            raise event.error
        return number, event

    def close(self) -> None:
        """Cancel the jobs that are not over."""
        if self._counted:
            self._service.usage.spend(self._sender, self._read + sum(self._written))
            self._service.usage.end(self._sender)
            self._counted = False
        if self._open:
            self._service.metrics.abandoned.inc()
            self._cancel()

    async def _next_unless_gone(self, request: Request) -> tuple[int, Event]:
        leaving = asyncio.ensure_future(_disconnected(request))
        coming = asyncio.ensure_future(self.next())
        try:
            await asyncio.wait({leaving, coming}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            raise HttpRefusal(499, "the client has left.")
        finally:
            leaving.cancel()
            coming.cancel()

    def _cancel(self) -> None:
        for number in self._open:
            self._service.answering.cancel(self.jobs[number])
        self._open = set()

    def _emit(self, number: int, event: Event) -> None:
        with suppress(RuntimeError):  # the event loop has ended: server and client are gone
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))


async def with_memory(
    service: Service, request: Request, source: MemorySource, action: Callable[[Memory], Any]
) -> ActionFinished:
    """Apply `action` to a memory in the worker's thread, once it exists and is on disk. Errors: those of the job."""
    job = Job(source=source, action=action, durable=True)
    mailbox = Mailbox(service, [job], service.sender(request)).submit()
    try:
        _, event = await mailbox.next_or_gone(request)
    finally:
        mailbox.close()
    assert isinstance(event, ActionFinished)
    return event


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
