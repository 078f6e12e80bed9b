"""Units answered by Ray actors, each with a model of its own.

    driver    hands out units, two at most to an actor, and alone writes results
    actor     one process with one model, which it loads itself; Ray starts it again when it dies

A unit that was running when its actor died is answered again, by any actor; one that was waiting behind it is not
blamed. After `MOST_DEATHS` deaths a unit is given up, so it cannot stop the others. An actor gets units when it has
said that its model is loaded, so actors that wait for a node hold nothing back.
"""

import itertools
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from fastmem.errors import InputError, RunError
from fastmem.extras import require
from fastmem.lab.run.run_files import differences
from fastmem.lab.workers import Lost, Make, Result, Unit
from fastmem.model import FastMem
from fastmem.model_identity import identity_of_model

log = logging.getLogger("fastmem")

MOST_DEATHS = 3  # of the workers that answer one unit
MOST_REFUSALS = 3  # of the store, to take the results of one unit
MOST_RESTARTS = 100  # of one worker: a model that cannot be loaded without killing its process ends at last
CONNECT_SECONDS = 10
WINDOW = 2  # units of one actor: the one that runs, and the next
Load = Callable[[], FastMem]
"""Loads the model. It is sent to the actors, so it holds names and no weights."""


class Worker:
    """What runs in an actor."""

    def __init__(self, load: Load, identity: dict[str, str], threads: int):
        torch.set_num_threads(threads)
        self.llm = load()
        if found := differences(identity, identity_of_model(self.llm)):
            names = ", ".join(name.replace("_", " ") for name, _, _ in found)
            raise InputError(
                f"the worker has another model than the driver, which differs in {names}: give all machines the same "
                "model."
            )
        self._made: tuple[int, Any] | None = None

    def ready(self) -> str:
        """Where its output goes, below Ray's folder of sessions. It answers when the model is loaded."""
        import ray

        context = ray.get_runtime_context()
        return f"{context.get_session_name()}/logs/worker-*-{os.getpid()}.err on node {context.get_node_id()[:12]}"

    def answer(self, number: int, make: Make[Unit, Result], unit: Unit) -> list[Result]:
        """The results of a unit. number: of the `make`, which is called once for all units that have it."""
        if self._made is None or self._made[0] != number:
            self._made = number, make(self.llm)
        return list(self._made[1](unit))


@dataclass(eq=False)
class _Actor:
    handle: Any
    log: str = ""  # empty: its model is not loaded
    units: deque[Any] = field(default_factory=deque)  # references, the one that runs first

    def start(self) -> Any:
        """A reference to the place of its log, which is there when the model is loaded, also after restarts."""
        self.log = ""
        return self.handle.ready.options(max_task_retries=-1).remote()


@dataclass
class RayWorkers:
    """A pool of actors. `ray_workers` opens one."""

    actors: list[_Actor]
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def count(self) -> int:
        return len(self.actors)

    def results(self, make: Make[Unit, Result], units: Iterable[Unit]) -> Iterator[Result | Lost[Unit]]:
        """The results of all units, as they come.

        Units and results travel through Ray's store, which moves to the disk what it has no room for. Errors:
        `RunError` if no actor can start, and if that disk is full, too.
        """
        import ray

        number, window, deaths, refusals = next(self._numbers), WINDOW, Counter[int](), Counter[int]()
        fresh = enumerate(units)
        left = deque(islice(fresh, 1))  # units are taken from the iterable as they are needed
        full = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)
        running: dict[Any, tuple[_Actor, int, Unit]] = {}
        behind = set[Any]()  # what waited behind a unit whose worker died, and is lost with it
        starting = {actor.start(): actor for actor in self.actors}
        while left or running:
            for actor in self.actors:
                while left and actor.log and len(actor.units) < window:
                    index, unit = left.popleft()
                    try:
                        reference = actor.handle.answer.remote(number, make, unit)
                    except full as error:
                        raise _no_room(error) from error
                    actor.units.append(reference)
                    running[reference] = actor, index, unit
                    if not left:
                        left.extend(islice(fresh, 1))
            (reference, *_), _ = ray.wait([*starting, *running], num_returns=1)
            if reference in starting:
                self._started(starting, reference)
                continue
            actor, index, unit = running.pop(reference)
            blamed = actor.units[0] is reference and reference not in behind
            behind.discard(reference)
            actor.units.remove(reference)
            try:
                results = ray.get(reference)
                del reference  # so that the store drops it while the results are used
                yield from results
            except full as error:  # there is room again when the results of others were fetched
                refusals[index] += 1
                if refusals[index] == MOST_REFUSALS:
                    raise _no_room(error) from error
                window = 1
                left.appendleft((index, unit))
            except ray.exceptions.RayTaskError as error:
                yield Lost(unit, f"{_cause(error)} (log: {actor.log})")
            except ray.exceptions.RayError as error:
                log.debug("unit %d is lost: %s", index, error)
                if blamed:
                    deaths[index] += 1
                    behind.update(actor.units)
                place = actor.log or "see those of its node"
                if deaths[index] < MOST_DEATHS:
                    left.appendleft((index, unit))
                else:
                    yield Lost(unit, f"its worker died {MOST_DEATHS} times while it was answered (log: {place})")
                if actor.log:
                    starting[actor.start()] = actor

    def _started(self, starting: dict[Any, _Actor], reference: Any) -> None:
        """Take note of an actor whose model is loaded, or that did not start."""
        import ray

        actor = starting.pop(reference)
        try:
            actor.log = ray.get(reference)
        except ray.exceptions.RayError as error:
            self.actors.remove(actor)
            log.warning("a worker cannot start: %s", _cause(error))
            if not self.actors:
                raise RunError(f"no worker can start: {_cause(error)}") from error


@contextmanager
def ray_workers(
    load: Load, identity: dict[str, str], *, count: int, address: str | None, cpus: int, gpus: float
) -> Iterator[RayWorkers]:
    """A pool of `count` actors on this machine, or on the cluster at an address ("auto": the one that is found).

    identity: what `identity_of_model` says of the driver's model. cpus, gpus: of each actor; it computes with as many
    threads. A connection to Ray that is there already is used, and stays. Errors: `MissingPackageError`, `InputError`
    for an address without a cluster, and for more GPUs than this machine has.
    """
    require("ray", extra="ray", purpose="answering with several workers", options=("workers", "ray"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    connected = ray.is_initialized()
    if not connected:
        _require_answer(address)
        place = {"address": address} if address else {"num_cpus": count * cpus, "include_dashboard": False}
        try:
            ray.init(**place, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"there is no Ray cluster at {address!r} ({_cause(error)}) Start one with `ray start --head`, or give "
                "--workers alone for this machine.",
                field="ray",
            ) from error
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": MOST_RESTARTS, "max_task_retries": 0}
    actors: list[_Actor] = []
    try:
        if not connected and not address:
            require_gpus(count, gpus, int(ray.cluster_resources().get("GPU", 0)))
        actors += (_Actor(ray.remote(Worker).options(**options).remote(load, identity, cpus)) for _ in range(count))
        yield RayWorkers(list(actors))
    finally:
        if connected:
            for actor in actors:
                ray.kill(actor.handle)
        else:
            ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Ray itself waits for minutes. Errors: `InputError` for HOST:PORT where nobody listens."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"nobody listens at {address!r} ({error}): give the address that `ray start --head` printed, or --workers "
            "alone for this machine.",
            field="ray",
        ) from error


def require_gpus(count: int, gpus: float, present: int) -> None:
    """A worker without its GPUs would wait for ever, since no machine can join. Errors: `InputError`."""
    if not gpus:
        return
    fitting = int(present // gpus) if gpus >= 1 else present * int(1 / gpus)
    if fitting < count:
        raise InputError(
            f"{count} workers with {gpus:g} GPUs each do not fit: this machine has {present}, which are enough for "
            f"{fitting}. Give fewer --workers, another number of --gpus-per-worker, or --device cpu "
            "without it.",
            field="gpus_per_worker",
        )


def _no_room(error: BaseException) -> RunError:
    """The error that ends a run whose units or results Ray cannot pass on."""
    log.debug("there is no room in Ray's store: %s", error)
    return RunError(
        "Ray cannot pass on a unit or its results: its object store is full, and so is the disk it moves objects to "
        "(the one of its sessions; Ray counts 95 % as full). Make room there and run the same command again: what was "
        "finished is kept."
    )


def _cause(error: BaseException) -> str:
    """The last line of what Ray says, which names the error in the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
