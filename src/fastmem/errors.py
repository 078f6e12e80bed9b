"""The errors of FastMem: one base, a few kinds, each also the standard exception it refines.

A text says what was given, what is accepted and what to do next. The command line prints it on one line and leaves
with exit code 2; `except ValueError` and its like keep working.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FastMemError(Exception):
    """Anything FastMem refuses on purpose."""


class InputError(FastMemError, ValueError):
    """An argument, prompt, recipe or option that cannot be used as given."""


class UnsupportedModelError(FastMemError, ValueError):
    """A model that cannot be split at its last feed-forward network, or a folder that holds no causal model."""


class MemoryMismatchError(FastMemError, ValueError):
    """A memory made for another base model, or for other weights of it."""


class MemoryFileError(FastMemError, OSError):
    """A memory file that is missing, damaged, of a newer format, or no memory at all."""


class TaskError(FastMemError, RuntimeError):
    """A data set that is absent, unreadable or not of the expected columns."""


class RunError(FastMemError, OSError):
    """A folder of results that belongs to another run, is in use, is damaged or cannot be written."""


class ResourceError(FastMemError, MemoryError):
    """Not enough memory on the device; the text says what was needed and what to lower."""


def one_of(value: str, accepted: Iterable[str], what: str) -> str:
    """`value` if it is accepted; otherwise an `InputError` that names the nearest accepted one and all of them."""
    names = list(accepted)
    if value in names:
        return value
    near = get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {what} {value!r}.{hint} Accepted: {', '.join(names)}.")
