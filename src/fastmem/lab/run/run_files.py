"""The files of a run: rows appended one by one, whole files replaced at once.

    run.json         what is run: task, data, model, recipe, decoding. Written first; a run that differs is refused
    examples.jsonl   the examples in the order they are answered, so that a report needs neither data nor model
    rows.jsonl       one line per example and method, appended and flushed as it is made
    summary.json     counts, means and the environment; replaced at once when a run ends or is interrupted

A line without its line break is what a killed process left behind: it is cut off before more is appended.
"""

import errno
import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

from fastmem.atomic_write import replacing
from fastmem.errors import RunError
from fastmem.lab.tasks.example import Example

RUN, EXAMPLES, ROWS, SUMMARY = "run.json", "examples.jsonl", "rows.jsonl", "summary.json"

Record = dict[str, Any]


class Appender:
    """The rows of one run, open for appending by this process alone.

    Errors: `RunError` where the folder cannot be written, another process appends to it, or the disk is full.
    """

    def __init__(self, path: Path):
        self.path = path
        with _explained(path):
            path.touch()
            self._file: TextIO = path.open("r+", encoding="utf-8", newline="\n")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise RunError(
                f"another process is writing to {path.parent}: wait for it, or give another folder.", field="output"
            ) from error
        whole, self.rows = _whole_rows(path)
        self._file.truncate(whole)
        self._file.seek(whole)

    def append(self, record: Record) -> None:
        """One line, flushed: it survives whatever happens to the process afterwards."""
        with _explained(self.path):
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Let others append."""
        # What a full disk did not take is still in the buffer, and would raise once more.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(folder: Path) -> list[Record]:
    """The complete rows of a run. Errors: `RunError` where there are none or a line in the middle is damaged."""
    path = folder / ROWS
    if not path.is_file():
        raise RunError(f"{folder} holds no run: there is no {ROWS}. Give a folder that `fastmem eval` wrote.")
    return _whole_rows(path)[1]


def read_examples(folder: Path) -> tuple[Example, ...]:
    """The examples of a run, in their order."""
    path = folder / EXAMPLES
    if not path.is_file():
        raise RunError(f"{folder} holds no run: there is no {EXAMPLES}. Give a folder that `fastmem eval` wrote.")
    known = {field.name for field in fields(Example)}
    return tuple(_example({k: v for k, v in row.items() if k in known}) for row in _whole_rows(path)[1])


def read_json(path: Path) -> Record:
    """A file that `write_json` wrote. Errors: `RunError` where it is absent or no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: give a folder that `fastmem eval` wrote.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): it was not written by `fastmem eval`.") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} holds no JSON object: it was not written by `fastmem eval`.")
    return found


def write_json(path: Path, value: Record) -> None:
    """Replace the file at once: a reader, and a killed process, sees the old one or the new one, never half of it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """One line per example."""
    write_text(path, "".join(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples))


def write_text(path: Path, text: str) -> None:
    """`write_json` of any text. Errors: `RunError` if it cannot be written."""
    with _explained(path), replacing(path) as file:
        file.write(text.encode())


def _whole_rows(path: Path) -> tuple[int, list[Record]]:
    """(bytes up to the last line break, the rows in them)."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    rows: list[Record] = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"{path}, line {number} is damaged ({error}): delete that line to go on.") from error
    return whole, rows


def _example(values: Record) -> Example:
    lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return Example(**(values | lists))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "what was finished is kept; " if path.name == ROWS else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"the disk of {path} is full: {kept}make room and start the same command again.") from error
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}): {kept}give a folder that can be.", field="output"
        ) from error
