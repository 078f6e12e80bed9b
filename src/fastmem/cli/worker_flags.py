"""`--workers N`: work done by several processes, here or on a Ray cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fastmem.cli.flags import ModelFlags, option, require_effect
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.lab.workers import Workers
    from fastmem.model import FastMem


@dataclass(frozen=True)
class WorkerFlags:
    """Who does the work: this process, or workers of Ray, each with a model of its own."""

    heading: ClassVar[str] = "Workers"

    workers: int | None = option("Work with N processes; extra ray.", "N", min=1)
    ray: str | None = option("Address of a running Ray cluster, or auto; default: this machine.", "ADDRESS")
    cpus_per_worker: int | None = option("Cores and threads of each worker; default: all cores / N.", "N", min=1)
    gpus_per_worker: float | None = option(
        "GPUs of each worker, also a part of one; default: 1 if --device is cuda, or is not given and this machine "
        "has a GPU, else 0.",
        "X",
        min=0,
    )

    def driver(self, model: ModelFlags) -> ModelFlags:
        """How this process loads the model: on the CPU if it does not do the work itself.

        Errors: `InputError` for a device that no worker has.
        """
        if not self.workers:
            return model
        kind, _, index = (model.device or "").partition(":")
        if kind == "cuda" and index not in ("", "0"):
            raise InputError(
                f"--device is {model.device!r}, but a worker counts its own GPUs from 0: give --device cuda.",
                field="device",
            )
        return replace(model, device="cpu")

    def gpus(self, device: str | None) -> float:
        """GPUs of each worker; without one it sees none. device: the value of --device."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        if device is None:
            import torch

            return float(torch.cuda.is_available())
        return float(device.partition(":")[0] == "cuda")

    def check(self) -> None:
        """Errors: `InputError` for flags that need --workers, and a number of GPUs that Ray does not give;
        `MissingPackageError`."""
        others = {
            "--ray": self.ray,
            "--cpus-per-worker": self.cpus_per_worker,
            "--gpus-per-worker": self.gpus_per_worker,
        }
        if self.workers is None:
            require_effect(others, "--workers N, the number of workers", "workers")
        if (gpus := self.gpus_per_worker or 0) > 1 and gpus % 1:
            text = f"--gpus-per-worker is {gpus:g}: give a whole number, or a part of one GPU such as 0.5."
            raise InputError(text, field="gpus_per_worker")
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
        from fastmem.model_identity import identity_of_model

        cpus = self.cpus_per_worker or max(1, (os.cpu_count() or 1) // self.workers)
        gpus = self.gpus(model.device)
        with ray_workers(
            model.load, identity_of_model(llm), count=self.workers, address=self.ray, cpus=cpus, gpus=gpus
        ) as workers:
            yield workers
