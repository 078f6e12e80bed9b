"""Measure while no other process works: what others take of the processors is measured beside everything.

On Linux; elsewhere, and where the counters cannot be read, every measurement counts as undisturbed.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

STAT = Path("/proc/stat")
# Processors that others may take during a measurement, on average. Threads of a product wait for the slowest one, so
# a second busy process makes two threads on two cores 10 to 40 times as slow, not twice.
LIMIT = 0.1
ATTEMPTS = 3
WAIT_SECONDS = 20

T = TypeVar("T")


def elsewhere(work: Callable[[], T]) -> tuple[T, float]:
    """(what `work` returns, processors that other processes and other machines took meanwhile, on average)."""
    busy, own, started = _busy_seconds(), _own_seconds(), time.perf_counter()
    result = work()
    wall = time.perf_counter() - started
    others = (_busy_seconds() - busy) - (_own_seconds() - own)
    return result, max(0.0, others) / max(wall, 1e-9)


def quietly(work: Callable[[], T]) -> tuple[T, float]:
    """The same, again if others took more than `LIMIT`: of at most `ATTEMPTS` the first quiet one, or the last."""
    for attempt in range(ATTEMPTS):
        result, others = elsewhere(work)
        if others <= LIMIT or attempt + 1 == ATTEMPTS:
            break
        print(f"  others took {others:.2f} processors: again", file=sys.stderr, flush=True)
        wait_until_quiet()
    return result, others


def wait_until_quiet(most: float = WAIT_SECONDS, window: float = 1.0) -> None:
    """Return when others have taken no more than `LIMIT` for a window of so many seconds, or after `most` seconds."""
    end = time.perf_counter() + most
    while elsewhere(lambda: time.sleep(window))[1] > LIMIT and time.perf_counter() < end:
        pass


def _busy_seconds() -> float:
    """Of all processors since the start, with what the hypervisor gave to others (proc(5): all but idle, iowait)."""
    if not STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    if not STAT.exists():
        return 0.0
    times = os.times()
    return times.user + times.system
