"""One model, one thread that owns it: memories are made, rows join, all step, rows leave.

Between two tokens of the running rows at most one update of one memory is made, so that a long memorization costs
the others the time of one update per token, never all of it at once. Files are read and written in a second thread,
which never touches the model. Everybody else talks to the engine by messages: `submit`, `cancel`, `drain`, `close`.
"""

import copy
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastmem.core.cache import PrefixCache
from fastmem.errors import FastMemError, MemoryFileError
from fastmem.model import FastMem, explained_out_of_memory
from fastmem.serve.jobs import Done, DrainingError, Event, Failed, Job, OverloadedError
from fastmem.serve.making import Makings
from fastmem.serve.records import Wish
from fastmem.serve.rows import Rows
from fastmem.serve.store import Entry, Store
from fastmem.streaming import Detokenizer

log = logging.getLogger("fastmem")


@dataclass(frozen=True)
class EngineLimits:
    """rows: answers decoded side by side. waiting: jobs that may wait. wait_seconds: for how long. prefix_bytes: keys
    and values of documents kept to be reused."""

    rows: int = 16
    waiting: int = 64
    wait_seconds: float = 120.0
    prefix_bytes: int = 256 * 2**20
    overtaking: int = 16
    """How many later jobs may begin to use what is in the store while one waits for room in it."""


class Engine:
    """The worker and its queue. on_event: called in the worker's thread with what happened, for the metrics."""

    def __init__(
        self,
        llm: FastMem,
        store: Store,
        limits: EngineLimits | None = None,
        on_event: Callable[[str, float], None] = lambda name, value: None,
    ):
        self.llm, self.store, self.limits, self._on_event = llm, store, limits or EngineLimits(), on_event
        self.prefixes = PrefixCache(self.limits.prefix_bytes)
        self.rows = Rows(llm.trunk, self.prefixes)
        self.draining = False
        # Fast tokenizers refuse two threads at once when one of them changes their settings.
        self._tokenizer = copy.deepcopy(llm.tokenizer)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._makings = Makings(llm)
        self._loading: set[str] = set()
        self._open: set[Job] = set()
        self._lock = threading.Lock()
        self._seconds_per_job = 1.0
        self._last_end = time.perf_counter()
        self._files = ThreadPoolExecutor(1, "fastmem-files")
        self._closing = False
        self._stirred = False  # something has changed that those who wait may have waited for
        self._thread = threading.Thread(target=self._work, name="fastmem-worker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs and takes jobs."""
        return self._thread.is_alive() and not self.draining

    @property
    def waiting(self) -> int:
        """Jobs that were submitted and have no row yet."""
        return max(len(self._open) - len(self.rows), 0)

    def submit(self, *jobs: Job) -> None:
        """All or none. Errors: `OverloadedError` where the queue is full, `DrainingError` while shutting down."""
        with self._lock:
            if self.draining:
                raise DrainingError("the server is shutting down and takes no new requests: ask again later.")
            if len(self._open) + len(jobs) > self.limits.rows + self.limits.waiting:
                raise OverloadedError(
                    f"{len(self._open)} answers are running or waiting, this server takes "
                    f"{self.limits.rows + self.limits.waiting}: ask again in {self._retry_after()} s.",
                    self._retry_after(),
                )
            self._open.update(jobs)
        self._inbox.put(lambda: self._waiting.extend(jobs))

    def cancel(self, job: Job) -> None:
        """Its client has left: free what it holds. Nothing for a job that is over."""
        self._inbox.put(lambda: self._end(job, None))

    def drain(self) -> None:
        """Finish what has begun, refuse what waits, take nothing new. Returns at once."""
        self.draining = True
        self._inbox.put(self._refuse_waiting)

    def close(self, timeout_seconds: float | None = None) -> None:
        """`drain`, and wait until the worker and the files are done."""
        self.drain()
        self._closing = True
        self._inbox.put(lambda: None)
        self._thread.join(timeout_seconds)
        self._files.shutdown()

    def _work(self) -> None:
        while not (self._closing and not self._open and not self._makings):
            try:
                self._receive()
                self._admit()
                self._memorize()
                self._decode()
            except Exception as error:  # a bug of ours; the next request must still find a server
                log.exception("the worker met an unexpected error; all open requests fail")
                self._makings = Makings(self.llm)
                self.rows = Rows(self.llm.trunk, self.prefixes)
                for job in list(self._open):
                    self._end(job, Failed(error))

    def _receive(self) -> None:
        """Take all messages; wait for one where there is nothing else to do."""
        idle = not self._makings and not len(self.rows) and not self._stirred
        self._stirred = False
        try:
            while True:
                self._inbox.get(block=idle, timeout=1.0)()
                idle = False
        except queue.Empty:
            pass

    def _admit(self) -> None:
        """Give waiting jobs, in order, room for their memory, the memory, and a row."""
        joining: list[Job] = []
        blocked: Job | None = None
        now = time.perf_counter()
        for job in list(self._waiting):
            begun = job.entry is not None and not job.entry.made  # its memory is in the making: not the queue's fault
            if now - job.submitted > self.limits.wait_seconds and not begun:
                late = f"no answer could be begun within {self.limits.wait_seconds:g} s: ask again later."
                self._end(job, Failed(OverloadedError(late, self._retry_after())))
                continue
            try:
                if job.wish is not None and job.entry is None and not self._held(job, job.wish, blocked):
                    blocked = blocked or job
                    continue
                if not self._has_memory(job):
                    continue
                if job.act is not None:
                    self._act(job)
                elif len(self.rows) + len(joining) < self.limits.rows and not self.rows.aside:
                    self._prepare(job)
                    joining.append(job)
            except Exception as error:
                self._end(job, Failed(error))
        for job in joining:
            self._waiting.remove(job)
        if joining:
            self.rows.join(joining)

    def _held(self, job: Job, wish: Wish, blocked: Job | None) -> bool:
        """Hold the memory a job wants; False where there is no room for it now.

        blocked: an earlier job without room. Whoever comes after it may only share a memory that is held already, and
        `overtaking` of them at most; who holds one goes on in any case, since that is what makes room.
        """
        if blocked is not None:
            if blocked.passed_by >= self.limits.overtaking or not self.store.is_held(wish.key):
                return False
            blocked.passed_by += 1
        job.entry = self.store.hold(wish)
        return job.entry is not None

    def _has_memory(self, job: Job) -> bool:
        """Whether the job's memory, if it wants one, is in RAM; else what is needed for that is under way."""
        entry = job.entry
        if job.wish is None or entry is None:
            return True
        if not entry.made:
            job.made = self._makings.begin(entry, job.wish) or job.made
            return False
        if entry.loading and entry.wish.key not in self._loading:
            self._loading.add(entry.wish.key)
            self._files.submit(self._load, entry)
        return entry.memory is not None and not (job.durable and entry.unsaved)

    def _prepare(self, job: Job) -> None:
        """Build the request, with the memory's weights on the device."""
        assert job.build is not None
        with explained_out_of_memory():
            memory = self.store.ready(job.entry) if job.entry is not None else None
            job.request = job.build(memory)
        job.text = Detokenizer(self._tokenizer, job.stop)
        if job.memory_there == 0.0 and memory is not None:
            job.memory_there = time.perf_counter()

    def _act(self, job: Job) -> None:
        assert job.act is not None
        assert job.entry is not None
        if job.durable and self.store.folder is not None and job.entry.path is None:
            raise MemoryFileError("the memory was made, but could not be written to the store: see the server's log.")
        with explained_out_of_memory():
            result = job.act(self.store.ready(job.entry))
        self._end(job, Done(result, job.entry.record))

    def _memorize(self) -> None:
        """One update of the oldest memory under way."""
        made = self._makings.step()
        if made is None:
            return
        if made.memory is not None:
            self._on_event("memorized", made.seconds)
            self.store.put(made.entry, made.memory)
            self._stirred = True
            if self.store.folder is not None:
                self._files.submit(self._save, made.entry)
            return
        self._on_event("memorize_failed", made.seconds)
        for job in [job for job in self._waiting if job.entry is made.entry]:
            self._end(job, Failed(made.error or FastMemError("memorizing gave nothing.")))

    def _decode(self) -> None:
        if not len(self.rows):
            return
        started = time.perf_counter()
        done, failed = self.rows.step()
        self._on_event("stepped", time.perf_counter() - started)
        for job in done:
            now = time.perf_counter()
            self._seconds_per_job += 0.1 * (now - self._last_end - self._seconds_per_job)
            self._last_end = now
            self._end(job, job.finished())
        for job, error in failed:
            self._end(job, Failed(error))

    def _load(self, entry: Entry) -> None:
        """In the files' thread. A file that is damaged is forgotten, and made again by who has the documents."""
        try:
            self.store.load(entry)
        except (FastMemError, OSError) as error:
            log.warning("a stored memory was dropped: %s", error)
            problem = error
            self._inbox.put(lambda: self._loaded(entry, problem))
        else:
            self._inbox.put(lambda: self._loaded(entry, None))

    def _loaded(self, entry: Entry, error: Exception | None) -> None:
        self._loading.discard(entry.wish.key)
        self._on_event("loaded" if error is None else "load_failed", 0.0)
        for job in [job for job in self._waiting if job.entry is entry and error is not None]:
            if job.wish is not None and job.wish.tokens is not None:
                self.store.release(entry)
                job.entry = None
            else:
                self._end(job, Failed(error or FastMemError()))

    def _save(self, entry: Entry) -> None:
        """In the files' thread. What cannot be written stays in RAM until it is evicted."""
        try:
            self.store.save(entry)
        except Exception as error:
            log.error("a memory could not be written to disk: %s", error)
            self._on_event("save_failed", 0.0)
        self._inbox.put(lambda: None)

    def _refuse_waiting(self) -> None:
        refusal = DrainingError("the server is shutting down and has not begun this request: ask again later.")
        for job in [job for job in self._waiting if job.entry is None]:
            self._end(job, Failed(refusal))

    def _end(self, job: Job, event: Event | None) -> None:
        """The job is over: its row and its hold on a memory are free, its maker is told."""
        if job.over:
            return
        job.over = self._stirred = True
        if job in self._waiting:
            self._waiting.remove(job)
        self.rows.leave(job)
        if job.entry is not None:
            self.store.release(job.entry)
        with self._lock:
            self._open.discard(job)
        if event is not None:
            job.emit(event)
        job.let_go()

    def _retry_after(self) -> int:
        """Seconds until about half of the queue will have been served."""
        return int(min(max(math.ceil(self._seconds_per_job * self.waiting / 2), 1), 60))
