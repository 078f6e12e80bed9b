"""The engine: one worker thread that makes memories and decodes answers. No other thread uses the model.

Between two tokens of the running rows it makes at most one update of one memory, so a long memorization slows the
others by one update per token and never blocks them. Accounts that have used less of its time go first
(`fair_share.py`). Files are read and written by a second thread. `submit`, `cancel`, `drain` and `close` may be called
from any thread; they send the worker a message.
"""

import copy
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fastmem.answer.cache import PrefixCache
from fastmem.answer.running_batch import RunningBatch
from fastmem.device_memory import explained_out_of_memory
from fastmem.errors import FastMemError, StorageError, StorageReadError
from fastmem.model import FastMem
from fastmem.serve.fair_share import FairShare
from fastmem.serve.isolated_batch import IsolatedBatch
from fastmem.serve.jobs import (
    ActionFinished,
    DrainingError,
    Event,
    Job,
    JobFailed,
    OverloadedError,
)
from fastmem.serve.limits import EngineLimits
from fastmem.serve.logs import cause
from fastmem.serve.memorize_queue import Memorization, MemorizeQueue
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.store import Entry, Store

log = logging.getLogger("fastmem")


class Engine:
    """The worker and its queue. on_event: called with the name of an event and the seconds it took."""

    def __init__(
        self,
        llm: FastMem,
        store: Store,
        limits: EngineLimits | None = None,
        on_event: Callable[[str, float], None] = lambda name, value: None,
    ):
        self.llm, self.store, self.limits, self._on_event = llm, store, limits or EngineLimits(), on_event
        self.prefixes = PrefixCache(self.limits.prefix_bytes)
        # A fast tokenizer can fail in one thread while another changes its settings.
        self._tokenizer = copy.deepcopy(llm.tokenizer)
        self.batch = self._new_batch()
        self.draining = False
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._memorize_queue = MemorizeQueue(llm)
        self._share = FairShare()
        self._loading: set[str] = set()
        self._open: set[Job] = set()
        self._lock = threading.Lock()
        self._seconds_per_job = 1.0
        self._last_end = time.perf_counter()
        self._files = ThreadPoolExecutor(1, "fastmem-files")
        self._saved_at = time.perf_counter()
        self._closing = False
        self._changed = False  # something that waiting jobs may wait for
        self._thread = threading.Thread(target=self._work, name="fastmem-worker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs and takes jobs."""
        return self._thread.is_alive() and not self.draining

    @property
    def waiting(self) -> int:
        """Jobs that were submitted and have no row yet."""
        return max(len(self._open) - len(self.batch), 0)

    def submit(self, *jobs: Job) -> None:
        """Submit all jobs or none. Errors: `OverloadedError` if the queue is full, `DrainingError` during shutdown."""
        with self._lock:
            if self.draining:
                raise DrainingError("the server is shutting down and accepts no new requests: try again later.")
            if len(self._open) + len(jobs) > self.limits.rows + self.limits.waiting:
                raise OverloadedError(
                    f"{len(self._open)} answers are running or waiting; this server accepts "
                    f"{self.limits.rows + self.limits.waiting}: try again in {self._retry_after()} s.",
                    self._retry_after(),
                )
            self._open.update(jobs)
        self._inbox.put(lambda: self._waiting.extend(jobs))

    def cancel(self, job: Job) -> None:
        """End a job and free what it uses. Does nothing if it is over."""
        self._inbox.put(lambda: self._end(job, None))

    def drain(self) -> None:
        """Finish running jobs, refuse waiting ones, accept no new ones. Returns at once."""
        self.draining = True
        self._inbox.put(self._refuse_waiting)

    def close(self, timeout_seconds: float | None = None) -> None:
        """`drain`, then wait until all jobs are over and all files are written."""
        self.drain()
        self._closing = True
        self._inbox.put(lambda: None)
        self._thread.join(timeout_seconds)
        self._files.shutdown()
        self.store.close()

    def _work(self) -> None:
        while not (self._closing and not self._open and not self._memorize_queue):
            try:
                self._receive()
                self._save_again()
                self._admit()
                making = self._memorize_queue.next_up(self._share.level)
                lowest = self._share.lowest_level(self.batch, making)
                self._memorize(making, lowest)
                self._decode(lowest)
            except Exception as error:  # a bug; later requests must still be answered
                log.error("the worker met an unexpected error, all open requests fail: %s", cause(error))
                self._memorize_queue = MemorizeQueue(self.llm)
                self.batch = self._new_batch()
                for job in list(self._open):
                    self._end(job, JobFailed(error))

    def _receive(self) -> None:
        """Process all messages; wait for one if there is nothing else to do."""
        idle = not self._memorize_queue and not len(self.batch) and not self._changed
        self._changed = False
        try:
            while True:
                self._inbox.get(block=idle, timeout=1.0)()
                idle = False
        except queue.Empty:
            pass

    def _admit(self) -> None:
        """Give waiting jobs room for their memory, the memory, and a row: first those who have used little."""
        joining: list[Job] = []
        blocked: Job | None = None
        now = time.perf_counter()
        for job in sorted(self._waiting, key=lambda job: self._share.level(job.account)):
            memorizing = job.entry is not None and not job.entry.made  # then it does not wait for the queue
            if now - job.submitted > self.limits.wait_seconds and not memorizing and job.row is None:
                late = f"no answer could be started within {self.limits.wait_seconds:g} s: try again later."
                self._end(job, JobFailed(OverloadedError(late, self._retry_after())))
                continue
            try:
                if job.source is not None and job.entry is None and not self._hold(job, job.source, blocked):
                    blocked = blocked or job
                    continue
                if not self._has_memory(job):
                    continue
                if job.action is not None:
                    self._run_action(job)
                elif not self.batch.set_aside and self._has_row(job, len(joining)):
                    self._add_memory(job)
                    joining.append(job)
            except Exception as error:
                self._end(job, JobFailed(error))
        if joining:
            self._waiting = [job for job in self._waiting if job not in joining]
            self.batch.join(joining)

    def _hold(self, job: Job, source: MemorySource, blocked: Job | None) -> bool:
        """Hold the memory that a job needs; False if there is no room for it now.

        blocked: an earlier job without room, or None. Later jobs may then only share a memory that is held already,
        and at most `overtaking` of them. Jobs that hold a memory always go on, since only their end makes room.
        """
        if blocked is not None:
            if blocked.overtaken >= self.limits.overtaking or not self.store.is_held(source.key):
                return False
            blocked.overtaken += 1
        job.entry = self.store.hold(source)
        return job.entry is not None

    def _has_memory(self, job: Job) -> bool:
        """Whether the job's memory, if it needs one, is in RAM; if not, start making or loading it."""
        entry = job.entry
        if job.source is None or entry is None:
            return True
        if not entry.made:
            job.made = self._memorize_queue.add(entry, job.source, job.progress) or job.made
            return False
        if entry.loading and entry.source.key not in self._loading:
            self._loading.add(entry.source.key)
            self._files.submit(self._load, entry)
        missing = job.durable and self.store.folder is not None and entry.path is None and entry.memory is not None
        if missing and not entry.unsaved and not job.saved_again:
            job.saved_again = entry.unsaved = True
            self._files.submit(self._save, entry)
        return entry.memory is not None and not (job.durable and entry.unsaved)

    def _has_row(self, job: Job, joining: int) -> bool:
        """Whether there is a row for a job. If there is none, an answer of a higher level leaves and is read again."""
        if len(self.batch) + joining < self.limits.rows:
            return True
        leaving = self._share.leaves_for(job, self.batch)
        if leaving is not None:
            self.batch.leave(leaving)
            self._waiting.append(leaving)
        return leaving is not None

    def _add_memory(self, job: Job) -> None:
        """Complete the request with the memory's weights on the device."""
        assert job.request is not None
        if job.entry is None or job.row is not None:
            return
        with explained_out_of_memory():
            job.request = self.llm.with_memory(job.request, self.store.ready(job.entry))
        job.memory_available = job.memory_available or time.perf_counter()

    def _run_action(self, job: Job) -> None:
        assert job.action is not None
        assert job.entry is not None
        if job.durable and self.store.folder is not None and job.entry.path is None:
            raise StorageError(
                "the memory was made and can be used, but the store did not take it "
                f"({job.entry.problem or 'deleted'}): the server tries again, and so can you."
            )
        with explained_out_of_memory():
            result = job.action(self.store.ready(job.entry, job.on_device))
        self._end(job, ActionFinished(result, job.entry.record))

    def _memorize(self, made: Memorization | None, lowest: int) -> None:
        """One update of a memory, if nobody of a lower level has something to do."""
        if made is None or self._share.level(made.entry.source.account) > lowest:
            return
        self._share.add(made.entry.source.account, self._memorize_queue.step(made))
        if made.memory is None and made.error is None:
            for job in self._waiting_for(made.entry):
                if job.progress and made.progress is not None:
                    job.emit(made.progress)
            return
        if made.memory is not None:
            self._on_event("memorized", made.seconds)
            self.store.put(made.entry, made.memory)
            self._changed = True
            if self.store.folder is not None:
                for job in self._waiting_for(made.entry):
                    job.saved_again = True  # this is its attempt
                self._files.submit(self._save, made.entry)
            return
        self._on_event("memorize_failed", made.seconds)
        for job in self._waiting_for(made.entry):
            self._end(job, JobFailed(made.error or FastMemError("memorizing returned no memory.")))

    def _decode(self, lowest: int) -> None:
        """One token for the rows of the lowest level."""
        stepped = self._share.stepped(self.batch, lowest)
        if not stepped and not self.batch.set_aside:
            return
        self.batch.step_only(stepped)
        started = time.perf_counter()
        pieces, failed = self.batch.step()
        took = time.perf_counter() - started
        self._on_event("stepped", took)
        for job in stepped:
            self._share.add(job.account, took / len(stepped))
        for job, piece in pieces:
            job.first_token = job.first_token or time.perf_counter()
            if piece.text or piece.logprob is not None:
                job.emit(replace(piece, answer=None))
            if piece.answer is not None:
                now = time.perf_counter()
                self._seconds_per_job += 0.1 * (now - self._last_end - self._seconds_per_job)
                self._last_end = now
                self._end(job, job.finished(piece.answer))
        for job, error in failed:
            self._end(job, JobFailed(error))

    def _save_again(self) -> None:
        """Write the memories that could not be written, now and then."""
        now = time.perf_counter()
        if now - self._saved_at > self.limits.save_again_seconds:
            self._saved_at = now
            for entry in self.store.to_save():
                self._files.submit(self._save, entry)

    def _load(self, entry: Entry) -> None:
        """In the thread for files. A damaged file is deleted; jobs that bring the documents make the memory again."""
        problem: Exception | None = None
        try:
            self.store.load(entry)
        except Exception as error:  # also for lack of memory, which the next attempt may have
            log.warning("a stored memory could not be read: %s", cause(error))
            problem = error
        self._inbox.put(lambda: self._loaded(entry, problem))

    def _loaded(self, entry: Entry, error: Exception | None) -> None:
        self._loading.discard(entry.source.key)
        self._on_event("loaded" if error is None else "load_failed", 0.0)
        if error is None:
            return
        for job in self._waiting_for(entry):
            damaged = isinstance(error, FastMemError | OSError) and not isinstance(error, StorageReadError)
            if damaged and job.source is not None and job.source.tokens is not None:
                self.store.release(entry)
                job.entry = None
            else:
                self._end(job, JobFailed(error))

    def _save(self, entry: Entry) -> None:
        """In the thread for files. A memory that cannot be written stays in RAM until it is evicted."""
        try:
            self.store.save(entry)
        except Exception as error:
            log.error("a memory could not be written to disk: %s", cause(error))
            self._on_event("save_failed", 0.0)
        self._inbox.put(lambda: None)

    def _refuse_waiting(self) -> None:
        refusal = DrainingError("the server is shutting down and has not started this request: try again later.")
        for job in [job for job in self._waiting if job.entry is None and job.row is None]:
            self._end(job, JobFailed(refusal))

    def _end(self, job: Job, event: Event | None) -> None:
        """End a job: free its row, release its memory, and emit its last event."""
        if job.over:
            return
        job.over = self._changed = True
        if job in self._waiting:
            self._waiting.remove(job)
        self.batch.leave(job)
        if job.entry is not None:
            self.store.release(job.entry)
        with self._lock:
            self._open.discard(job)
        if event is not None:
            job.emit(event)
        job.release()

    def _waiting_for(self, entry: Entry) -> list[Job]:
        return [job for job in self._waiting if job.entry is entry]

    def _new_batch(self) -> IsolatedBatch:
        return IsolatedBatch(RunningBatch(self.llm.split_model, self._tokenizer, self.prefixes))

    def _retry_after(self) -> int:
        """Seconds until about half of the queue will probably have been answered."""
        return int(min(max(math.ceil(self._seconds_per_job * self.waiting / 2), 1), 60))
