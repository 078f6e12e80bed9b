"""Memory files in a folder: where they lie, their records for `--json`, and their lines."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmem.cli.output import notice_text
from fastmem.documents.document_files import printable
from fastmem.errors import InputError, MemoryFileError

if TYPE_CHECKING:
    from fastmem.memory.memory import Memory

SUFFIX = ".safetensors"


def document_name(file: str) -> str:
    """The name under which the memory of a document that was given as a file is kept: `docs/leave.pdf` -> `leave`.

    All of its characters are printable, as in the names of a folder's documents.
    """
    return "stdin" if file == "-" else printable(Path(file).stem)


def memory_path(memories: Path, name: str) -> Path:
    """Where the memory of a document in a folder lies: `hr/leave.pdf` -> `MEMORIES/hr/leave.pdf.safetensors`."""
    return memories / f"{name}{SUFFIX}"


def memory_of(memories: Path, names: Sequence[str], text: str) -> Path | None:
    """The memory of a document in a folder; None if it has none. names: those under which it may be kept.

    A memory of this text is preferred. One of another text counts only under the first name, and is warned about.
    """
    from fastmem.memory.memory import Memory
    from fastmem.prompts import require_text, sha256

    digest = sha256(require_text(text))
    found = [file for name in names if (file := memory_path(memories, name)).exists()]
    for file in found:
        with suppress(MemoryFileError):  # of a damaged file
            if Memory.peek(file).details.get("text_sha256") == digest:
                return file
    own = memory_path(memories, names[0])
    return own if own in found else None


def names_in_folders(file: Path) -> list[str]:
    """The names that `memorize --documents DIR` gives a file's memory, for every DIR it is in, the nearest first."""
    parts = Path(os.path.abspath(file)).parts[1:]
    return [printable("/".join(parts[start:])) for start in reversed(range(len(parts)))]


def memory_files(path: Path) -> list[Path]:
    """The memory files in a folder and its subfolders, or the one file. Errors: `InputError`."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{str(path)!r} does not exist: give a folder of memories, or one file.")
    files = (file for file in path.rglob(f"*{SUFFIX}") if file.is_file())
    found = sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not found:
        raise InputError(f"{str(path)!r} contains no memory ({SUFFIX} file): make one with fastmem memorize.")
    return found


def memory_name(file: Path, path: Path) -> str:
    """A file's name as it is listed. path: what `memory_files` was asked for."""
    return file.name if file == path else file.relative_to(path).as_posix()


def memory_record(file: Path, memory: "Memory") -> dict[str, Any]:
    """What `--json` says about a memory."""
    recipe = memory.recipe
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "base": memory.base.name,
        "tokens": memory.details.get("tokens"),
        "parametrization": recipe.parametrization + (f" {recipe.rank}" if recipe.parametrization == "lora" else ""),
        "steps": len(memory.trace),
        "first_loss": memory.trace[0].loss if memory.trace else None,
        "last_loss": memory.trace[-1].loss if memory.trace else None,
        "stopped": memory.stopped,
        "notice": notice_text(memory.notice),
    }


def memory_line(record: dict[str, Any], name: str) -> str:
    """A record on one line."""
    if "error" in record:
        return f"{name}  {record['error']}"
    losses = f"loss {record['first_loss']:.3f} to {record['last_loss']:.3f}" if record["steps"] else "no step"
    seconds = f", {record['seconds']:.1f} s" if "seconds" in record else ", kept" if record.get("kept") else ""
    return (
        f"{name}  {record['tokens']} tokens, {record['parametrization']}, {record['steps']} steps, {losses}, "
        f"{record['bytes']:,} bytes, base {record['base']}{seconds}"
    )
