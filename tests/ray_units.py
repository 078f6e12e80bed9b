"""What the workers of tests/test_ray_workers.py do. They import it by name."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace


def stub(digest: str = "0123456789abcdef") -> SimpleNamespace:
    """In place of a model: nothing but its identity."""
    base, nothing = SimpleNamespace(family="stub", digest=digest), SimpleNamespace(dtype="", parameters=lambda: [])
    return SimpleNamespace(base=lambda *_: base, reader={}, tokenizer=None, model=nothing, split_model=nothing)


def broken() -> SimpleNamespace:
    """A model that cannot be loaded."""
    raise ValueError("there is no such model")


def other() -> SimpleNamespace:
    """A model with other weights."""
    return stub("f" * 16)


@dataclass(frozen=True)
class Doubling:
    """Doubles a number and writes down that it was there. deadly: this number kills its process, so many times."""

    folder: str
    deadly: int = -1
    deaths: int = 10**6
    failing: int = -1
    seconds: float = 0.0

    def __call__(self, llm: object) -> "Doubling":
        return self

    def answer(self, number: int) -> Iterator[int]:
        before = len(list(Path(self.folder).glob(f"{number}.*")))
        (Path(self.folder) / f"{number}.{before}").touch()
        time.sleep(self.seconds)
        if number == self.deadly and before < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.failing:
            raise ValueError(f"{number} fails")
        yield 2 * number


def doubling(llm: object, work: Doubling) -> object:
    """The `Make`."""
    return work.answer


def embedded() -> object:
    """The embedded model."""
    from fastmem import FastMem

    return FastMem.from_pretrained(device="cpu")


def enlarging(llm: object, megabytes: int) -> object:
    """A `Make`: of a unit, which begins with its number, it returns the number and so many MiB."""
    return lambda unit: [(unit[0], os.urandom(1024) * 1024 * megabytes)]
