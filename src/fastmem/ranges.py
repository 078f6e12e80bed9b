"""The range of every option: given beside its default, checked in one place.

    @dataclass(frozen=True)
    class Recipe:
        steps: int = ranged(10, Number(0, whole=True))

        def __post_init__(self):
            check(self, "recipe")

None is accepted where it is the default. Numbers of numpy and torch become Python's, so that a record of them can be
written as JSON.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from fastmem.errors import InputError, one_of, shown

T = TypeVar("T")
RANGE, PATH = "range", "path"  # keys of a field's metadata


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `greatest`. above: without `least` itself. whole: an integer."""

    least: float = 0
    greatest: float = math.inf
    above: bool = False
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{kind} above {self.least}, at most {self.greatest}"
        return f"{kind}, {self.least} " + (f"to {self.greatest}" if math.isfinite(self.greatest) else "or more")

    def accept(self, value: Any) -> float:
        """The value as a number of Python. Errors: `TypeError`, `ValueError`."""
        value = plain(value)
        if not isinstance(value, int if self.whole else int | float) or isinstance(value, bool):
            raise TypeError
        inside = self.least <= value <= self.greatest and abs(value) <= sys.float_info.max
        if not inside or (self.above and value == self.least):
            raise ValueError
        return value


@dataclass(frozen=True)
class Other:
    """A value of another kind. text: what to give. accept: the value to keep; ValueError and TypeError refuse it."""

    text: str
    accept: Callable[[Any], Any]

    def __str__(self) -> str:
        return self.text


# A tuple holds the accepted names.
Range = Number | Other | tuple[str, ...]


def ranged(default: T, accepted: Range, path: str = "") -> T:
    """A dataclass field with a default and a range. path: the `field` of its error, if not its name."""
    return cast(T, field(default=default, metadata={RANGE: accepted, PATH: path}))


def check(options: Any, what: str = "") -> None:
    """Check all fields of an instance. what: precedes their names in the errors. Errors: `InputError`."""
    for f in fields(options):
        value = getattr(options, f.name)
        if value is not None or f.default is not None:
            value = checked(value, f.metadata[RANGE], f.name, what, f.metadata.get(PATH, ""))
            object.__setattr__(options, f.name, value)


def checked(value: T, accepted: Range, name: str, what: str = "", path: str = "") -> T:
    """The value to keep. Errors: `InputError` that names the option; its field is the path or the name."""
    if isinstance(accepted, tuple):
        return cast(T, one_of(cast(str, value), accepted, name, field=path or name))
    try:
        return cast(T, accepted.accept(value))
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that has no numbers
        text = f"{what} {name} is {shown(value)}: give {accepted}."
        raise InputError(text.lstrip(), field=path or name) from error


def instance_of(kind: type) -> Callable[[Any], Any]:
    """Accepts the instances of a class."""

    def accept(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return accept


def plain(value: Any) -> object:
    """A number of numpy or torch as one of Python; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _flag(value: Any) -> bool:
    if not isinstance(value := plain(value), bool):
        raise TypeError
    return value


FLAG = Other("True or False", _flag)
