"""The errors for models that cannot be split."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastmem.errors import UnsupportedModelError


def unsupported(family: str, reason: str, remedy: str, error: Exception | None = None) -> UnsupportedModelError:
    """The error for a model that cannot be used: family, reason, what can be done. error: what was raised, if so; the
    first line of its message is part of the reason."""
    because = "" if error is None else f" ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return UnsupportedModelError(
        f"{family!r} cannot be split at its last feed-forward network: {reason}{because}; {remedy}."
    )


@contextmanager
def unsupported_if(errors: tuple[type[Exception], ...], family: str, reason: str, remedy: str) -> Iterator[None]:
    """Turn one of these errors within the block into that for a model that cannot be used. A lack of memory is not one
    of them, though torch makes it a `RuntimeError`: the model may fit elsewhere."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except errors as error:
        raise unsupported(family, reason, remedy, error) from error
