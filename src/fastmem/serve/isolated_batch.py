"""The running rows: one `Batch`, the jobs in it, and how one that fails is found without harm to the others.

A step that raises leaves the batch in a state nobody can trust, and does not say whose fault it was. So the batch is
built anew from what every job has answered so far, without the newest; when that runs, those set aside come back one
by one, and who makes a step fail alone among proven ones is the one that is refused.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch

from fastmem.core.cache import Prefix, PrefixCache, cropped
from fastmem.core.decode import Batch
from fastmem.core.trunk import Trunk
from fastmem.model import explained_out_of_memory
from fastmem.serve.jobs import Job, Piece, TokenLogprob

log = logging.getLogger("fastmem")


class Rows:
    """Jobs being decoded side by side. Lives in the worker's thread."""

    def __init__(self, trunk: Trunk, prefixes: PrefixCache):
        self.trunk, self.prefixes = trunk, prefixes
        self.jobs: list[Job] = []
        self.aside: deque[Job] = deque()
        self._batch = Batch(trunk)
        self._proven = True  # the present jobs have been stepped together before

    def __len__(self) -> int:
        return len(self.jobs) + len(self.aside)

    def join(self, jobs: Sequence[Job]) -> None:
        """Add jobs whose request is built. Their prompts are read by the next step."""
        requests = []
        for job in jobs:
            assert job.request is not None
            prefix = self.prefixes.longest(job.request.prompt, job.tenant) if job.request.shares_trunk else None
            requests.append(replace(job.request, prefix=prefix))
        for job, row in zip(jobs, self._batch.join(requests), strict=True):
            job.row = row
        self.jobs += jobs

    def leave(self, job: Job) -> None:
        """Free the row of a job that is not wanted any more."""
        if job in self.aside:
            self.aside.remove(job)
        if job in self.jobs:
            self.jobs.remove(job)
            if job.row is not None:
                self._batch.leave([job.row])

    def step(self) -> tuple[list[Job], list[tuple[Job, Exception]]]:
        """One more token for every row: (jobs that are complete, jobs that failed with why). Pieces are emitted."""
        if self.aside and (self._proven or not self.jobs):
            self._resume([self.aside.popleft()])
        for job in self.jobs:
            if job.row is not None and job.row.request.sampling.temperature > 0:
                job.draws = job.row.generator.get_state()
        try:
            with explained_out_of_memory():
                self._batch.step()
        except Exception as error:  # whatever it was, it must not reach the other rows
            return [], self._without_newest(error)
        done = [job for job in self.jobs if self._advance(job)]
        if done:  # the batch knows those that ended by token or length, not those that met a stop string
            self._batch.leave([job.row for job in done if job.row is not None])
            self.jobs = [job for job in self.jobs if job not in done]
        self._proven = True
        for job in self.jobs:
            job.suspect = False
        return done, []

    def _advance(self, job: Job) -> bool:
        """Hand on the row's new token; whether the answer is complete."""
        row, text = job.row, job.text
        assert row is not None
        assert text is not None
        if not job.token_ids:
            job.first_token, job.cached_tokens = time.perf_counter(), row.cached_tokens
            self._keep_prefix(job)
        token = row.token_ids[-1]
        job.token_ids.append(token)
        ends = token in row.request.stop_ids
        piece = "" if ends else text.add(token)
        if text.stopped:
            row.reason = "stop"
        if row.reason is not None:
            piece += text.finish()
        logprob = None
        if row.logprobs and not ends:
            logprob = TokenLogprob(token, *row.logprobs[-1])
        if piece or logprob:
            job.emit(Piece(piece, logprob))
        return row.reason is not None

    def _keep_prefix(self, job: Job) -> None:
        """What was read of the documents serves the next question on them, with any memory of the last FFN."""
        assert job.row is not None
        if job.shared_tokens <= job.cached_tokens or (prefix := self._batch.prefix(job.row)) is None:
            return
        length = min(job.shared_tokens, len(prefix.ids))
        self.prefixes.add(Prefix(prefix.ids[:length], cropped(prefix.cache, length)), job.tenant)

    def _without_newest(self, error: Exception) -> list[tuple[Job, Exception]]:
        """Start again without the newest job: refused if it was on probation or alone, else set aside."""
        newest = self.jobs.pop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        failed = []
        if newest.suspect or not self.jobs:
            log.warning("a row was refused: %s", error)
            failed = [(newest, error)]
        else:
            newest.suspect = True
            self.aside.appendleft(newest)
        jobs, self.jobs, self._batch, self._proven = self.jobs, [], Batch(self.trunk), False
        self._resume(jobs)
        return failed

    def _resume(self, jobs: Sequence[Job]) -> None:
        """Go on with jobs, begun or not, in the present batch."""
        for job, row in zip(jobs, self._batch.join([job.remaining() for job in jobs]), strict=True):
            job.row = row
            if job.draws is not None:
                row.generator.set_state(job.draws)
        self.jobs += jobs
