"""Where output goes: data to standard output, everything else to standard error, colour only to a terminal."""

import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastmem.memory.effect import Notice

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """Print one line to standard error."""
    print(text, file=sys.stderr, flush=True)


def emit(result: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of standard output; the last line that a command writes there."""
    text = json.dumps(result, ensure_ascii=False)
    readable = can_encode(getattr(sys.stdout, "encoding", None) or "utf-8", text)
    print(text if readable else json.dumps(result), flush=True)


def console() -> "Console":
    """Rich's console: as wide as the terminal (80 columns elsewhere), without escape codes if NO_COLOR is set."""
    from rich.console import Console

    plain = "NO_COLOR" in os.environ
    return Console(highlight=False, markup=False, emoji=False, color_system=None if plain else "auto")


def can_encode(encoding: str, text: str) -> bool:
    """Whether an encoding has these characters."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def escape_what_cannot_be_encoded() -> None:
    """From now on, characters that the encoding of standard output lacks are written as escapes, such as \\u2192.

    Names of files that are not UTF-8 have such characters. Standard error does so from the start.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def reader_left() -> bool:
    """Whether the reader of standard output or standard error has closed it, as `head` does.

    What could not be written there is dropped; otherwise Python would try again at its end, and exit with 120.
    """
    left = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            left = True
        except OSError:
            pass  # a full disk, which Python reports at its end
    return left


class Status:
    """A line on standard error that shows the current activity and is erased afterwards; only on a terminal.

    shown: whether it is visible.
    """

    def __init__(self, *, quiet: bool = False):
        self.shown = sys.stderr.isatty() and not quiet

    def __call__(self, text: str) -> None:
        if self.shown:
            fitting = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line cannot be erased
            print(f"\r\x1b[K{fitting}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *_: object) -> None:
        self("")


def notice_text(notice: Notice | None) -> str | None:
    """The warning about a memory with the options to give; None if there is none."""
    if notice is None:
        return None
    return f"{notice.seen}: memorize again with --recipe auto, or with a --learning-rate {notice.better_rate}."


class _SayHandler(logging.Handler):
    """Prints each message once, since messages about a document are logged again for every method. Of several
    documents on which memorizing had almost no effect, only the first is named."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        notice = record.msg if isinstance(record.msg, Notice) else None
        text = notice_text(notice) or record.getMessage()
        line = f"{'note' if record.levelno <= logging.WARNING else 'error'}: {text}"
        if (same := line if notice is None else notice.direction) not in self._said:
            self._said.add(same)
            say(f"\r\x1b[K{line}" if sys.stderr.isatty() else line)  # a status line may stand there


@contextmanager
def log_messages(*, quiet: bool, debug: bool) -> Iterator[None]:
    """Within the block, print what the library logs: errors only if quiet, everything if debug."""
    log, handler = logging.getLogger("fastmem"), _SayHandler()
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
