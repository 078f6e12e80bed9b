"""The files of a run. Rows are appended one by one, other files are replaced as a whole.

    run.json         task, data, model, recipe and decoding. Written first; a run with other values is refused
    examples.jsonl   the examples in the order they are answered, so that a report needs neither data nor model
    rows.jsonl       one line per example and method, appended and flushed as it is made
    summary.json     counts, means and the environment; written when a run ends or is interrupted

A last line without a line break was left by a killed process and is removed before more is appended.
"""

import errno
import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from fastmem.atomic_write import replacing
from fastmem.errors import RunError
from fastmem.lab.run.run_shapes import EXAMPLE, ROW, require_shape
from fastmem.lab.run.run_shapes import RUN as RUN_SHAPE
from fastmem.lab.tasks.example import Example

RUN, EXAMPLES, ROWS, SUMMARY = "run.json", "examples.jsonl", "rows.jsonl", "summary.json"
SEARCH = "search.json"  # in the folder of a search, see `fastmem.lab.search.search`

Record = dict[str, Any]

# What older versions did not record: unknown where it is absent, and no difference. Of other values, None is one.
_RECORDED_LATER = {"data.digest", "scorers"}
_RECORDED_LATER |= {f"model.{name}" for name in ("tuned_weights", "sampled_weights", "tokenizer", "template")}


class Appender:
    """The rows of one run, open for appending by this process alone.

    Errors: `RunError` if the folder cannot be written or locked, another process appends to it, a line is damaged, or
    the disk is full.
    """

    def __init__(self, path: Path):
        self.path = path
        with _explained(path):
            path.touch()
            self._file: TextIO = path.open("r+", encoding="utf-8", newline="\n")
        try:
            _lock(self._file, path.parent)
            end, self.rows = complete_rows(path)
            self._file.truncate(end)
            self._file.seek(end)
        except BaseException:
            self._file.close()
            raise

    def append(self, record: Record) -> None:
        """Write one line and flush it, so it is kept if the process is killed."""
        with _explained(self.path):
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Allow other processes to append."""
        # Data that a full disk did not take is still in the buffer and would raise again.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(file: TextIO, folder: Path) -> None:
    """Keep other processes from appending until the file is closed. Errors: `RunError`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"another process is writing to {folder}: wait for it, or give another folder. Several processes work on "
            "one folder with --workers N.",
            field="output",
        ) from error
    except OSError as error:  # some network file systems
        raise RunError(
            f"{folder} cannot be locked ({error.strerror or error}), so two processes could write to it at once: give "
            "a folder on another disk.",
            field="output",
        ) from error


def cut_to_whole_lines(path: Path) -> None:
    """Remove the unfinished last line of a file, which a full disk or a killed process leaves."""
    if path.exists():
        with _explained(path), path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def has_rows(folder: Path) -> bool:
    """Whether the folder holds a run with at least one complete row."""
    return (folder / ROWS).is_file() and complete_rows(folder / ROWS)[0] > 0


def read_rows(folder: Path) -> list[Record]:
    """The complete rows of a run. Errors: `RunError` if there is no run, or a line is damaged or wrong."""
    rows = _read_lines(folder, ROWS)
    require_rows(folder / ROWS, rows)
    return rows


def require_rows(path: Path, rows: Iterable[Record]) -> None:
    """Errors: `RunError` that names a line that is not a row, or is the second one of its example and method."""
    lines: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, 1):
        require_shape(row, ROW, f"{path}, line {number}")
        first = lines.setdefault((row["id"], row["method"]), number)
        if first != number:
            raise RunError(
                f"{path}, line {number}: a row of {row['method']} for {row['id']!r}, as in line {first}: delete one."
            )


def read_examples(folder: Path) -> tuple[Example, ...]:
    """The examples of a run, in order. Errors: those of `read_rows`."""
    path, rows = folder / EXAMPLES, _read_lines(folder, EXAMPLES)
    lines: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        require_shape(row, EXAMPLE, f"{path}, line {number}")
        if row["kind"] == "summary" and not row["answers"]:
            raise RunError(f"{path}, line {number}: answers is empty; it must hold the reference summary.")
        if (first := lines.setdefault(row["id"], number)) != number:
            raise RunError(f"{path}, line {number}: the id {row['id']!r} is that of line {first}: delete one.")
    if not rows:
        raise RunError(f"{path} holds no example: give a folder that `fastmem eval` wrote.")
    return tuple(map(_example, rows))


def read_run(folder: Path) -> Record:
    """The content of `run.json`. Errors: `RunError` if there is none, or it is wrong or of another format."""
    about = read_json(folder / RUN)
    require_shape(about, RUN_SHAPE, str(folder / RUN))
    return about


def read_json(path: Path) -> Record:
    """A file that `write_json` wrote. Errors: `RunError` if it is absent or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: give a folder that `fastmem eval` wrote.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}): it was not written by `fastmem eval`.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds no JSON object: it was not written by `fastmem eval`.")
    return value


def write_json(path: Path, value: Record) -> None:
    """Replace the file atomically: a reader sees the old content or the new one, also if the process is killed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """One line per example."""
    write_text(path, "".join(json.dumps(example.record, ensure_ascii=False) + "\n" for example in examples))


def write_text(path: Path, text: str) -> None:
    """`write_json` for any text. Errors: `RunError` if the file cannot be written.

    UTF-8 lacks only halves of surrogate pairs, which stand for the bytes of a file's name that is not UTF-8. They are
    written as JSON writes them: \\udcff.
    """
    with _explained(path), replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def complete_rows(path: Path) -> tuple[int, list[Record]]:
    """(bytes up to the last line break, the rows in them). Errors: `RunError` if a line is damaged."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    rows: list[Record] = []
    for number, line in enumerate(content[:end].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}, line {number} is damaged ({error}): delete that line to go on.") from error
    return end, rows


def differences(was: Record, now: Record, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of every value that differs; None stands for one that is absent.

    What only one of the two versions that wrote them records is no difference.
    """
    found: list[tuple[str, Any, Any]] = []
    for name in {**was, **now}:
        before, after = was.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after and not (prefix + name in _RECORDED_LATER and None in (before, after)):
            found.append((prefix + name, before, after))
    return found


def _read_lines(folder: Path, name: str) -> list[Record]:
    if not (folder / name).is_file():
        raise RunError(f"{folder} holds no run: there is no {name}. Give a folder that `fastmem eval` wrote.")
    return complete_rows(folder / name)[1]


def _example(row: Record) -> Example:
    names = {field.name for field in fields(Example)}
    given = {name: value for name, value in row.items() if name in names and value is not None}
    values: Record = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Example(**values)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a `RunError` with a remedy."""
    try:
        yield
    except OSError as error:
        kept = "what was finished is kept; " if path.name == ROWS else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"the disk of {path} is full: {kept}make room and start the same command again.") from error
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}): {kept}give a writable folder.", field="output"
        ) from error
