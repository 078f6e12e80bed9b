"""`--workers N`: answers from several processes, here or on a Ray cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fastmem.cli.flags import ModelFlags, option
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.lab.workers import Workers
    from fastmem.model import FastMem


@dataclass(frozen=True)
class WorkerFlags:
    """Who answers: this process, or workers of Ray, each with a model of its own."""

    heading: ClassVar[str] = "Workers"

    workers: int | None = option("Answer with N processes; extra ray.", "N", min=1)
    ray: str | None = option("Address of a Ray cluster that runs, or auto; default: this machine.", "ADDRESS")
    cpus_per_worker: int | None = option("Cores and threads of each worker; default: all cores / N.", "N", min=1)
    gpus_per_worker: float | None = option("GPUs of each worker, also a part of one; default: 0.", "X", min=0)

    def driver(self, model: ModelFlags) -> ModelFlags:
        """How this process loads the model: on the CPU if it does not answer itself."""
        return replace(model, device="cpu") if self.workers else model

    def check(self) -> None:
        """Errors: `InputError` for flags that need --workers, `MissingPackageError`."""
        others = {
            "--ray": self.ray,
            "--cpus-per-worker": self.cpus_per_worker,
            "--gpus-per-worker": self.gpus_per_worker,
        }
        given = [flag for flag, value in others.items() if value is not None]
        if given and self.workers is None:
            raise InputError(f"{given[0]} needs --workers N, the number of workers.", field="workers")
        if self.workers is not None:
            from fastmem.extras import require

            require("ray", extra="ray", purpose="--workers", options=())

    @contextmanager
    def opened(self, model: ModelFlags, llm: "FastMem") -> Iterator["Workers"]:
        """The workers. llm: the model of this process."""
        from fastmem.lab.workers import ThisProcess

        if self.workers is None:
            yield ThisProcess(llm)
            return
        from fastmem.lab.workers.ray_workers import ray_workers

        cpus = self.cpus_per_worker or max(1, (os.cpu_count() or 1) // self.workers)
        gpus = self.gpus_per_worker or 0
        with ray_workers(
            model.load, llm.base().digest, count=self.workers, address=self.ray, cpus=cpus, gpus=gpus
        ) as workers:
            yield workers
