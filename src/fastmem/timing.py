"""Wall time of work on a device."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """Yields a list to which the seconds of the block are appended, once the device has finished it."""
    seconds: list[float] = []
    synchronize(device)
    started = time.perf_counter()
    yield seconds
    synchronize(device)
    seconds.append(time.perf_counter() - started)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    with timed(device) as seconds:
        work()
    return seconds[0]


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 3, warmups: int = 1) -> float:
    """Median wall time of `repeats` calls, after `warmups` calls that do not count."""
    for _ in range(warmups):
        work()
    return statistics.median(seconds_of(work, device) for _ in range(repeats))
