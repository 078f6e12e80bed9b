"""The running batch of the server: an answer that fails is found and refused without harm to the others.

A step that raises does not tell which row caused it, and its batch cannot be used any more. So the rows go on in a new
batch without the newest one and those that came with it. When that works, the rows that were set aside return one at a
time. A row that makes a step fail, although all others have been stepped together before, is the one that is refused.
"""

import logging
from collections import deque
from collections.abc import Sequence

import torch

from fastmem.answer.row import Row
from fastmem.answer.running_batch import Piece, PieceError, RunningBatch
from fastmem.device_memory import explained_out_of_memory
from fastmem.serve.jobs import Job
from fastmem.serve.logs import cause

log = logging.getLogger("fastmem")


class IsolatedBatch:
    """Jobs whose answers are decoded at the same time. Used by the worker's thread only."""

    def __init__(self, batch: RunningBatch):
        self.jobs: list[Job] = []  # that take part in the next step
        self.paused: list[Job] = []
        self.set_aside: deque[Job] = deque()
        self._batch = batch
        self._proven = True  # the present jobs have been stepped together before

    def __len__(self) -> int:
        return len(self.jobs) + len(self.paused) + len(self.set_aside)

    def join(self, jobs: Sequence[Job]) -> None:
        """Add jobs whose requests have their memory. The next step reads their prompts."""
        self._batch.resume(_rows(jobs))  # those that had to leave for others
        new = [job for job in jobs if job.row is None]
        rows = self._batch.join([job.request for job in new if job.request is not None])
        for job, row in zip(new, rows, strict=True):
            job.row = row
        self.jobs += jobs

    def step_only(self, jobs: Sequence[Job]) -> None:
        """From now on only these jobs take part in steps; the others are paused, or go on if they were."""
        chosen = set(map(id, jobs))
        pausing = [job for job in self.jobs if id(job) not in chosen]
        going_on = [job for job in self.paused if id(job) in chosen]
        if pausing:
            self._batch.pause(_rows(pausing))
        if going_on:
            self._batch.go_on(_rows(going_on))
        self.jobs = [job for job in self.jobs if id(job) in chosen] + going_on
        self.paused = [job for job in self.paused if id(job) not in chosen] + pausing

    def leave(self, job: Job) -> None:
        """Remove a job that is over or no longer wanted."""
        if job in self.set_aside:
            self.set_aside.remove(job)
        for jobs in (self.jobs, self.paused):
            if job in jobs:
                jobs.remove(job)
                self._batch.leave(_rows([job]))

    def step(self) -> tuple[list[tuple[Job, Piece]], list[tuple[Job, Exception]]]:
        """One more token for every row: (jobs with their pieces, jobs that failed with the reason)."""
        if self.set_aside and (self._proven or not self.jobs):
            job = self.set_aside.popleft()
            self._batch.resume(_rows([job]))
            self.jobs.append(job)
        try:
            with explained_out_of_memory():
                pieces = self._batch.step()
        except PieceError:  # all rows have moved on, so a restart would lose text
            raise
        except Exception as error:  # of any other kind: it must not end the other rows
            return [], self._restart_without_newest(error)
        self._proven = True
        by_row = {id(job.row): job for job in self.jobs}
        for job in self.jobs:
            job.suspect = False
        return [(by_row[id(row)], piece) for row, piece in pieces], []

    def _restart_without_newest(self, error: Exception) -> list[tuple[Job, Exception]]:
        """The newest job is refused if it was suspected before or is alone. Otherwise it is set aside, with the other
        answers to its request that have not begun either, which need as much."""
        self.jobs, self.paused = [*self.paused, *self.jobs], []  # keys and values of all are lost
        newest = self.jobs[-1]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        failed, leaving = [], [newest]
        if newest.suspect or len(self.jobs) == 1:
            log.warning("a row was refused: %s", cause(error))
            failed = [(newest, error)]
        else:
            leaving = [job for job in self.jobs if job is newest or (_is_new(job) and job.together is newest.together)]
            for job in leaving:
                job.suspect = True
            self.set_aside.extendleft(reversed(leaving))
        self.jobs = [job for job in self.jobs if job not in leaving]
        self._batch.restart(_rows(self.jobs))
        self._proven = False
        return failed


def _is_new(job: Job) -> bool:
    return job.row is not None and not job.row.token_ids


def _rows(jobs: Sequence[Job]) -> list[Row]:
    return [job.row for job in jobs if job.row is not None]
