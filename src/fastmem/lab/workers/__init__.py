"""Who answers the units of a run: this process, or processes of Ray on this machine and others.

A *unit* is what is done at once: a batch of examples with all their methods, an example with all points of a grid, or
a part of a document that is memorized.
What is done with it is a `Make`: it gets the model of the process it runs in, and gives the function that turns a unit
into results. The results of a unit do not depend on who made them, so a run can be continued in another way.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fastmem.model import FastMem

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Make = Callable[[FastMem], Callable[[Unit], Iterable[Result]]]


@dataclass(frozen=True)
class Lost(Generic[Unit]):
    """A unit that was given up. reason: in a sentence, with the place of the worker's log."""

    unit: Unit
    reason: str


class Workers(Protocol):
    """Something that answers units. count: how many are answered at the same time."""

    @property
    def count(self) -> int: ...

    def results(self, make: Make[Unit, Result], units: Iterable[Unit]) -> Iterator[Result | Lost[Unit]]:
        """The results of all units, in any order."""
        ...


@dataclass(frozen=True)
class ThisProcess:
    """Answers the units here, one after another, and gives every result as soon as it is made."""

    llm: FastMem
    count: int = 1

    def results(self, make: Make[Unit, Result], units: Iterable[Unit]) -> Iterator[Result | Lost[Unit]]:
        """The results of all units, in their order."""
        answer = make(self.llm)
        for unit in units:
            yield from answer(unit)
