"""The errors of FastMem: one base class, and a few kinds that also inherit the standard exception they refine.

A message says what was given, what is accepted and what to do next. It is the same for every interface; what differs
between them travels beside it: `field` names the argument that was refused, `options` the arguments that would help.
`str(error)` lists the options as a Python caller writes them, the command line as flags, the server not at all.
"""

import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class FastMemError(Exception):
    """An input, model, file or state that FastMem refuses on purpose.

    text: the message. field: name of the refused argument or recipe field. options: names of arguments that help.
    """

    def __init__(self, text: str = "", *, field: str | None = None, options: Iterable[str] = ()):
        super().__init__(text)
        self.text, self.field, self.options = text, field, tuple(options)

    def __str__(self) -> str:
        return f"{self.text} Options that help: {', '.join(self.options)}." if self.options else self.text


class InputError(FastMemError, ValueError):
    """An argument, prompt, recipe or option that cannot be used as given."""


class DocumentError(InputError):
    """A file whose text cannot be read. reason: why, without the file's name."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} cannot be read: {reason}.")
        self.reason = reason


class UnsupportedModelError(FastMemError, ValueError):
    """A model that cannot be split at its last feed-forward network, or a folder without a causal language model."""


class MemoryMismatchError(FastMemError, ValueError):
    """A memory made for another base model, or for other weights of it."""


class MemoryFileError(FastMemError, OSError):
    """A memory file that is missing, damaged, of a newer format, or not a memory."""


class StorageError(FastMemError, OSError):
    """A folder of memories that is full, read-only, or in use by another server."""


class StorageReadError(StorageError):
    """The file of a stored memory that cannot be read now, for instance because too many files are open."""


class MissingPackageError(FastMemError, ImportError):
    """An optional package that is not installed; the message names the extra that installs it."""


class TaskError(FastMemError, RuntimeError):
    """A data set that is absent, unreadable or has unexpected columns."""


class RunError(FastMemError, OSError):
    """A results folder that belongs to another run, is in use, is damaged or cannot be written."""


class ResourceError(FastMemError, MemoryError):
    """Not enough memory on the device. The message says how much is needed and what to reduce."""


def one_of(value: str, accepted: Iterable[str], what: str, field: str | None = None) -> str:
    """`value` if it is accepted. Errors: `InputError` that suggests the nearest accepted value and lists all."""
    names = list(accepted)
    if isinstance(value, str) and value in names:
        return value
    near = get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {what} {shown(value)}.{hint} Accepted: {', '.join(names)}.", field=field)


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and not too long."""
    return " ".join(f"{value!r:.80}".split())


def without_frames(error: E) -> E:
    """The error, without the frames that it and its causes passed through: they hold the tensors of what failed."""
    for each in _with_causes(without_locals(error)):
        each.__traceback__ = None
    return error


def without_locals(error: E) -> E:
    """The error, which says where it and its causes were raised, but holds no tensors of what failed."""
    for each in _with_causes(error):
        traceback.clear_frames(each.__traceback__)
    return error


def _with_causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and not any(each is one for one in found):
            found.append(each)
            left += [each.__cause__, each.__context__]
    return found
