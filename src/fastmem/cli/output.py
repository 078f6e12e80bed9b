"""What goes where: data on standard output, everything else on standard error; colour only on a terminal."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def emit(result: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output, the last a command writes there."""
    print(json.dumps(result, ensure_ascii=False), flush=True)


def console(*, stderr: bool = False) -> "Console":
    """Rich's console: as wide as the terminal (80 columns elsewhere), without any escape code under NO_COLOR."""
    from rich.console import Console

    plain = "NO_COLOR" in os.environ
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, color_system=None if plain else "auto")


def writes(console: "Console", text: str) -> bool:
    """Whether the console's encoding has these characters."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


class Status:
    """One line on standard error that says what is being done, and is gone afterwards; only on a terminal.

    shown: whether anybody sees it.
    """

    def __init__(self, *, quiet: bool = False):
        self.shown = sys.stderr.isatty() and not quiet

    def __call__(self, text: str) -> None:
        if self.shown:
            fitting = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be taken back
            print(f"\r\x1b[K{fitting}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *_: object) -> None:
        self("")


class _Say(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{'note' if record.levelno <= logging.WARNING else 'error'}: {record.getMessage()}")


@contextmanager
def notices(*, quiet: bool, debug: bool) -> Iterator[None]:
    """Within the block, what the library logs is said: notices, nothing when quiet, everything when debugging."""
    log, handler = logging.getLogger("fastmem"), _Say()
    level, propagate = log.level, log.propagate
    log.setLevel(logging.DEBUG if debug else logging.ERROR if quiet else logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
