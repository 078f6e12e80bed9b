"""What goes where: data on standard output, everything else on standard error; colour only on a terminal."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def emit(result: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output, the last a command writes there."""
    print(json.dumps(result, ensure_ascii=False), flush=True)


class _Say(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{'note' if record.levelno <= logging.WARNING else 'error'}: {record.getMessage()}")


@contextmanager
def notices(*, quiet: bool, debug: bool) -> Iterator[None]:
    """Within the block, what the library logs is said: warnings, nothing when quiet, everything when debugging."""
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
