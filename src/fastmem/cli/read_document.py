"""Reading the document: from a file, standard input, or the command line."""

import sys
from pathlib import Path

from fastmem.errors import InputError


def read_document(context: str | None, text: str | None = None) -> str:
    """The text of `--context FILE`, `--context -` or `--text TEXT`. Errors: `InputError`."""
    if (context is None) == (text is None):
        given = "no document is" if context is None else "two documents are"
        raise InputError(f"{given} given: give one of --context FILE, --context - (standard input), --text TEXT.")
    if text is not None:
        document, source = text, "--text"
    elif context == "-":
        source = "standard input"
        document = _decoded(sys.stdin.buffer.read(), source)
    else:
        source = f"context file {context!r}"
        document = _decoded(_bytes(Path(str(context)).expanduser(), source), source)
    if not document.strip():
        raise InputError(f"the context is empty: {source} contains no text; give the document to answer from.")
    return document


def _bytes(path: Path, source: str) -> bytes:
    if path.is_dir():
        raise InputError(f"{source} is a folder: give one text file.")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist: give a text file, or - for standard input.") from error
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}): give a readable text file.") from error


def _decoded(data: bytes, source: str) -> str:
    remedy = "give plain text in UTF-8; convert PDF, Word or other encodings first"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte 0x{data[error.start]:02x} at position {error.start} is not UTF-8"
        raise InputError(f"{source} is not text ({reason}): {remedy}.") from error
    if "\0" in text:
        raise InputError(f"{source} is not text (it contains zero bytes): {remedy}.")
    return text
