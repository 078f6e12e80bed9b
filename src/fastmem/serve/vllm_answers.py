"""Answers that running vLLMs write. Memories are made by the engine, in its thread, and written as adapters.

A job passes four stages: its turn, its memory as an adapter in the folder, the adapter loaded in the vLLM that it
belongs to, and the answer, streamed. `submit` and `cancel` are those of the engine; they are called in the event loop.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastmem.errors import FastMemError, InputError
from fastmem.serve.adapter_folder import AdapterFolder, adapter_name
from fastmem.serve.engine import Engine
from fastmem.serve.jobs import (
    ActionFinished,
    AnswerFinished,
    DrainingError,
    Event,
    Job,
    JobFailed,
    MemorizeProgress,
    OverloadedError,
)
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.vllm_adapters import Adapter, VllmAdapters, chosen_for
from fastmem.serve.vllm_client import VllmClient, VllmLimits, VllmRefusedError, VllmUnavailableError, checked_url
from fastmem.serve.vllm_protocol import ChunkReader, completion_body

log = logging.getLogger("fastmem")


@dataclass(frozen=True)
class VllmOptions:
    """urls: of the vLLMs, which all serve the model of this server. folder: of the adapters, at the same path for all.
    adapters: how many may be loaded in each vLLM. key: the API key of the vLLMs."""

    urls: tuple[str, ...]
    folder: Path
    adapters: int = 64
    key: str | None = None
    limits: VllmLimits = field(default_factory=VllmLimits)

    def check(self, rows: int) -> None:
        """rows: answers at the same time. Errors: `InputError`."""
        urls = [checked_url(url) for url in self.urls]
        if len(set(urls)) < len(urls):
            raise InputError("vllm names the same address twice: give each once.", field="vllm")
        if self.adapters < rows:
            text = (
                f"vllm_adapters is {self.adapters}: give at least {rows}, since each running answer can need its own."
            )
            raise InputError(text, field="vllm_adapters", options=("rows",))

    def client(self, url: str) -> VllmClient:
        """A client of one of the vLLMs, for the event loop in which it is used first."""
        return VllmClient(url, self.key, self.limits)


class VllmAnswers:
    """Who answers when vLLMs write the answers. on_event: called with the name of an event and the seconds it took.

    Errors: `InputError` for options that cannot be used, `StorageError` for the folder.
    """

    def __init__(
        self,
        engine: Engine,
        options: VllmOptions,
        on_event: Callable[[str, float], None] = lambda name, value: None,
    ):
        options.check(engine.limits.rows)
        self.engine, self.options, self._on_event = engine, options, on_event
        self.folder = folder = AdapterFolder(options.folder)
        self.servers = [VllmAdapters(options.client(url), folder, options.adapters) for url in options.urls]
        self._limits = engine.limits
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._turns = Turns(engine.limits.rows)
        for server in self.servers:
            server.adopt([name for name in folder.names() if chosen_for(name, self.servers) is server])

    @property
    def running(self) -> int:
        """Answers that have begun, or whose memory is being made."""
        return self._turns.taken

    @property
    def waiting(self) -> int:
        """Answers whose turn has not come."""
        return max(len(self._tasks) - self.running, 0)

    def submit(self, *jobs: Job) -> None:
        """Submit all jobs or none. Errors: `OverloadedError`, `DrainingError`; `InputError` for a contrast."""
        if all(job.request is None for job in jobs):
            self.engine.submit(*jobs)
            return
        if self.engine.draining:
            raise DrainingError("the server is shutting down and accepts no new requests: try again later.")
        limit = self._limits.rows + self._limits.waiting
        if len(self._tasks) + len(jobs) > limit:
            text = f"{len(self._tasks)} answers are running or waiting; this server accepts {limit}: try again in 5 s."
            raise OverloadedError(text, 5)
        for job in jobs:
            task = self._tasks[job] = asyncio.create_task(self._run(job))
            task.add_done_callback(lambda done, job=job: self._tasks.pop(job, None))  # type: ignore[misc]

    def cancel(self, job: Job) -> None:
        """End a job, and vLLM's work for it. Does nothing if it is over."""
        if job in self._tasks:
            self._tasks[job].cancel()
        else:
            self.engine.cancel(job)

    async def delete(self, source: MemorySource) -> None:
        """Unload and remove the adapter of a memory that was deleted, once nobody uses it."""
        name = adapter_name(source.key)
        await chosen_for(name, self.servers).delete(name)

    async def close(self) -> None:
        """End what runs, and close the connections."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.client.close()
        self.folder.close()

    async def _run(self, job: Job) -> None:
        """The whole job; its last event says how it ended."""
        try:
            job.emit(await self._answered(job))
        except Exception as error:  # every job ends with an event, also after a bug
            if isinstance(error, VllmUnavailableError):
                self._on_event("vllm_failed", 0.0)
            job.emit(JobFailed(error))
        finally:
            job.over = True
            job.release()

    async def _answered(self, job: Job) -> AnswerFinished:
        async with self._turns.turn(job.account, self._limits.wait_seconds):
            if self.engine.draining:
                raise DrainingError("the server is shutting down and has not started this request: try again later.")
            if job.source is None:
                return await self._of_base(job)
            name = adapter_name(job.source.key)
            server = chosen_for(name, self.servers)
            async with server.using(name) as adapter:
                return await self._of_memory(job, job.source, server, adapter)

    async def _of_base(self, job: Job) -> AnswerFinished:
        """An answer without a memory, from the vLLM that has least to do and can be reached."""
        problem: Exception | None = None
        for server in sorted(self.servers, key=lambda server: server.answering):
            try:
                return await self._streamed(job, server, None)
            except VllmUnavailableError as error:
                if job.first_token:
                    raise
                problem = error
        raise problem or AssertionError("there is no vLLM")

    async def _of_memory(
        self, job: Job, source: MemorySource, server: VllmAdapters, adapter: Adapter
    ) -> AnswerFinished:
        """An answer with a memory. If vLLM has forgotten its adapter, it is loaded again, once."""
        for last in (False, True):
            record = await self._written(job, source, adapter)
            await self._loaded(job, source, server, adapter)
            job.memory_available = time.perf_counter()
            try:
                finished = await self._streamed(job, server, adapter)
                return replace(finished, memory=record)
            except VllmRefusedError as error:
                if error.status != 404 or last or job.first_token:
                    raise
                log.info("vLLM has lost its adapters; they are loaded again when they are needed.")
                self._on_event("vllm_restarted", 0.0)
                server.forgotten()
        raise AssertionError("not reached")

    async def _written(self, job: Job, source: MemorySource, adapter: Adapter) -> dict[str, object]:
        """The memory's record, when its adapter is in the folder. Errors: those of memorizing, `StorageError`."""
        entry = self.engine.store.find(source.tenant, source.key)
        if entry is not None and self.folder.has(adapter.name):
            self.engine.store.touch(entry)
            return entry.record
        adapter.loaded = False
        llm, folder, loop = self.engine.llm, self.folder, asyncio.get_running_loop()
        done: asyncio.Future[Event] = loop.create_future()

        def emit(event: Event) -> None:  # in the worker's thread
            if not isinstance(event, MemorizeProgress):
                loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(event))

        def write(memory: object) -> None:
            began = time.perf_counter()
            folder.write(llm, memory, adapter.name)  # type: ignore[arg-type]
            self._on_event("adapter_written", time.perf_counter() - began)

        making = Job(emit, source=source, action=write, on_device=False, account=job.account)
        self.engine.submit(making)
        try:
            event = await done
        finally:
            if not done.done() or done.cancelled():
                self.engine.cancel(making)
        job.made = job.made or making.made
        if isinstance(event, JobFailed):
            raise event.error
        assert isinstance(event, ActionFinished)
        return event.memory

    async def _loaded(self, job: Job, source: MemorySource, server: VllmAdapters, adapter: Adapter) -> None:
        """Load the adapter. Files that vLLM cannot read are written once more."""
        try:
            await self._load(server, adapter)
        except VllmRefusedError as error:
            log.warning("vLLM did not accept an adapter, which is written once more: %s", error.detail)
            await asyncio.to_thread(self.folder.remove, adapter.name)
            await self._written(job, source, adapter)
            await self._load(server, adapter)

    async def _load(self, server: VllmAdapters, adapter: Adapter) -> None:
        if not adapter.loaded:
            began = time.perf_counter()
            try:
                await server.load(adapter)
            except VllmUnavailableError:
                server.forgotten()
                raise
            self._on_event("adapter_loaded", time.perf_counter() - began)

    async def _streamed(self, job: Job, server: VllmAdapters, adapter: Adapter | None) -> AnswerFinished:
        """The answer of a vLLM; its pieces are emitted as they come."""
        assert job.request is not None
        reader = ChunkReader(job.request)
        server.answering += 1
        try:
            base = await server.base()
            body = completion_body(job.request, adapter.name if adapter is not None else base.name, base)
            async with aclosing(server.client.completion(body)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    for piece in reader.pieces(chunk):
                        job.first_token = job.first_token or time.perf_counter()
                        if piece.text or piece.logprob is not None:
                            job.emit(piece)
            return job.finished(reader.answer())
        except VllmUnavailableError:
            server.forgotten()
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, FastMemError):
                raise
            raise VllmUnavailableError(
                f"{server.client.url} sent a response that makes no sense: {error!r:.200}"
            ) from error
        finally:
            server.answering -= 1


class Turns:
    """So many answers at once. The next turn goes to the account that has fewest, then to who has waited longest."""

    def __init__(self, most: int):
        self.most, self.taken = most, 0
        self._running: Counter[str] = Counter()
        self._queue: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, account: str, wait_seconds: float) -> AsyncIterator[None]:
        """Wait for a turn and have it. Errors: `OverloadedError` after `wait_seconds`."""
        if self.taken >= self.most or self._queue:
            place = (account, asyncio.get_running_loop().create_future())
            self._queue.append(place)
            try:
                await asyncio.wait_for(asyncio.shield(place[1]), wait_seconds)
            except BaseException as error:
                if place in self._queue:
                    self._queue.remove(place)
                else:  # its turn came in the same moment
                    self._give_back(account)
                if isinstance(error, TimeoutError):
                    text = f"no answer could be started within {wait_seconds:g} s: try again later."
                    raise OverloadedError(text, 5) from None
                raise
        else:
            self._take(account)
        try:
            yield
        finally:
            self._give_back(account)

    def _take(self, account: str) -> None:
        self.taken += 1
        self._running[account] += 1

    def _give_back(self, account: str) -> None:
        self.taken -= 1
        self._running[account] -= 1
        if not self._running[account]:
            del self._running[account]
        if self._queue and self.taken < self.most:
            place = min(self._queue, key=lambda place: self._running[place[0]])
            self._queue.remove(place)
            self._take(place[0])
            place[1].set_result(None)
