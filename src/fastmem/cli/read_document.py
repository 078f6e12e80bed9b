"""Where a document comes from: a file, standard input, or the command line itself."""

import sys
from pathlib import Path

from fastmem.errors import InputError


def document(context: str | None, text: str | None) -> str:
    """The text of `--context FILE`, `--context -` or `--text TEXT`. Errors: `InputError` that says what to give."""
    if (context is None) == (text is None):
        given = "no document is" if context is None else "two documents are"
        raise InputError(f"{given} given: give one of --context FILE, --context - (standard input), --text TEXT.")
    if text is not None:
        found, what = text, "--text"
    elif context == "-":
        found, what = _decoded(sys.stdin.buffer.read(), "standard input"), "standard input"
    else:
        what = f"context file {context!r}"
        found = _decoded(_read(Path(str(context)).expanduser(), what), what)
    if not found.strip():
        raise InputError(f"the context is empty: {what} holds no text; give the document to be faithful to.")
    return found


def _read(path: Path, what: str) -> bytes:
    if path.is_dir():
        raise InputError(f"{what} is a folder: give one text file.")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{what} does not exist: give a text file, or - for standard input.") from error
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror}): give a readable text file.") from error


def _decoded(data: bytes, what: str) -> str:
    remedy = "give plain text in UTF-8; convert PDF, Word or other encodings first"
    try:
        found = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte 0x{data[error.start]:02x} at position {error.start} is not UTF-8"
        raise InputError(f"{what} is not text ({reason}): {remedy}.") from error
    if "\0" in found:
        raise InputError(f"{what} is not text (it holds zero bytes): {remedy}.")
    return found
