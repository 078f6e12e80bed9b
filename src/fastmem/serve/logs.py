"""The server's log: one line per request, and the cause of every failure, without documents, prompts or keys.

The message of an unexpected exception can quote what was being worked on, so of those only the type and the lines of
code are written.
"""

import json
import logging
import sys
import time
import traceback
from typing import Literal

from fastmem.errors import FastMemError

LogFormat = Literal["text", "json"]


def cause(error: BaseException) -> str:
    """What went wrong and where, in one line: our own messages whole, others by their type."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = " < ".join(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )
    text = error.text if isinstance(error, FastMemError) else _system_text(error)
    return f"{type(error).__name__}{f': {text}' if text else ''} at {where or 'an unknown place'}"


def reason_of(error: BaseException) -> str:
    """What the system says of a failure, without a path."""
    told: BaseException | None = error
    while told is not None and not (isinstance(told, OSError) and told.strerror):
        told = told.__cause__
    return told.strerror if isinstance(told, OSError) and told.strerror else type(error).__name__


def _system_text(error: BaseException) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else ""


class _Formatter(logging.Formatter):
    """A record as text or as a JSON object; `extra={"fields": {...}}` are its fields."""

    def __init__(self, log_format: LogFormat):
        super().__init__()
        self.log_format = log_format

    def format(self, record: logging.LogRecord) -> str:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level, fields = record.levelname.lower(), getattr(record, "fields", {})
        if self.log_format == "json":
            return json.dumps({"time": now, "level": level, "message": record.getMessage()} | fields)
        return " ".join([now, level, record.getMessage(), *(f"{name}={value}" for name, value in fields.items())])


def start_logging(log_format: LogFormat) -> None:
    """Write the log to stderr: requests and our own warnings, and what uvicorn and asyncio warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(log_format))
    for name, level in (("fastmem", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
