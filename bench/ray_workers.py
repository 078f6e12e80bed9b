"""What workers of Ray gain and cost: `python -m bench.ray_workers`.

1. Two workers of one thread against one worker of one thread, on rows of the embedded world: seconds from the first
   unit to the last, with the models loaded, in turns.
2. How many rows a second one driver keeps up with: many workers that only sleep, as asynchronous tasks of a few
   processes, by the same loop of `ray.wait`.
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from fastmem import FastMem
from fastmem.lab.run.experiment import Experiment
from fastmem.lab.run.runner import run
from fastmem.lab.tasks import load
from fastmem.lab.workers.ray_workers import ray_workers
from fastmem.model_identity import identity_of_model

PROCESSES = 4


def embedded() -> FastMem:
    """The model of a worker."""
    return FastMem.from_pretrained(device="cpu")


def seconds_of_a_run(llm: FastMem, count: int, rows: int) -> float:
    """Seconds of a run of two methods with so many workers, without loading their models."""
    data = load("world_swap", limit=rows)
    experiment = Experiment("world_swap", ("base", "fastmem"), llm.recipe, batch_size=4, max_new_tokens=16)
    warm = load("world", limit=8 * count)
    with (
        tempfile.TemporaryDirectory() as folder,
        ray_workers(embedded, identity_of_model(llm), count=count, address=None, cpus=1, gpus=0) as workers,
    ):
        warming = Experiment("world", ("fastmem",), llm.recipe, batch_size=1, max_new_tokens=2)
        run(llm, warming, warm, Path(folder) / "warm", workers=workers)
        while not all(actor.log for actor in workers.actors):
            time.sleep(0.1)
        started = time.perf_counter()
        run(llm, experiment, data, Path(folder) / "run", workers=workers)
        return time.perf_counter() - started


class Sleeping:
    """A process that stands for many workers: its units only wait."""

    async def answer(self, seconds: float) -> list[int]:
        """A row after some seconds."""
        await asyncio.sleep(seconds)
        return [0]


def rows_per_second(workers: int, seconds: float, units: int) -> float:
    """Units that one driver hands out and collects in a second, with so many workers that take `seconds` for each."""
    import ray

    options = {"max_concurrency": 2 * workers // PROCESSES, "num_cpus": 0}
    processes: list[Any] = [ray.remote(Sleeping).options(**options).remote() for _ in range(PROCESSES)]
    ray.get([process.answer.remote(0.0) for process in processes])
    started, handed, done = time.perf_counter(), 0, 0
    running: set[Any] = set()
    while done < units:
        while handed < units and len(running) < 2 * workers:
            running.add(processes[handed % PROCESSES].answer.remote(seconds))
            handed += 1
        ready, _ = ray.wait(list(running), num_returns=1)
        for reference in ready:
            running.remove(reference)
            ray.get(reference)
            done += 1
    return units / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ray_workers", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--units", type=int, default=4000)
    args = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    llm = embedded()
    ratios = []
    for turn in range(args.turns):
        one, two = (seconds_of_a_run(llm, count, args.rows) for count in (1, 2))
        ratios.append(one / two)
        print(f"turn {turn + 1}: one worker {one:.1f} s, two {two:.1f} s, ratio {one / two:.2f}", flush=True)
    print(f"two workers against one, {args.rows} rows: {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for workers in (100, 1000):
        rate = rows_per_second(workers, 0.5, args.units)
        most = f"of at most {4 * workers}, with two in flight each"
        print(f"{workers} sleeping workers, 0.5 s a unit: {rate:.0f} units a second {most}")
    ray.shutdown()


if __name__ == "__main__":
    main()
