"""Reading the document: from a file, standard input, or the command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from fastmem.documents import DocumentFile, Skipped, document_files
from fastmem.documents.plain_text import plain_text
from fastmem.documents.text_process import TextProcess
from fastmem.errors import InputError
from fastmem.home_path import expanded

READ = "FastMem reads UTF-8 text, and files whose names end in .html, .pdf or .docx"


def read_document(context: str | None, text: str | None = None) -> str:
    """The text of `--context FILE`, `--context -` or `--text TEXT`, of which the caller has one at least.

    Errors: `InputError`, `MissingPackageError`.

    A file whose name ends as HTML, PDF or Word files do is read as one of these, any other as plain text.
    """
    if context is not None and text is not None:
        raise InputError(
            "two documents are given: give one of --context FILE, --context - (standard input), --text TEXT."
        )
    if text is not None:
        document, source = text, "--text"
    elif context == "-":
        source = "standard input"
        document = _decoded(sys.stdin.buffer.read(), source)
    else:
        source = f"context file {context!r}"
        document = _file(expanded(str(context)), source)
    if not document.strip():
        raise InputError(f"the context is empty: {source} contains no text; give the document to answer from.")
    return document


def _file(path: Path, source: str) -> str:
    try:
        if path.is_dir():
            raise InputError(f"{source} is a folder: give one file.", options=["documents"])
        if document_files.is_plain(path):
            return _decoded(path.read_bytes(), source)
        path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist: give a file, or - for standard input.") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: of a name with a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source:.80} cannot be read ({reason}): give a readable file, or a text.") from error
    with TextProcess() as process:
        return read_from_folder(DocumentFile(source, path), process)


def read_from_folder(file: DocumentFile, process: TextProcess) -> str:
    """The text of a file. What could not be read of it is logged. Errors: `DocumentError`."""
    document = document_files.read_document(file.path, name=file.name, process=process)
    document_files.log_notes(document)
    return document.text


def no_documents(folder: Path, skipped: Sequence[Skipped]) -> InputError:
    """The error for a folder in which nothing can be read. skipped: its files."""
    text = (
        f"{str(folder)!r} contains no document; FastMem reads files that end in {', '.join(document_files.FORMATS)}."
    )
    if skipped:
        named = "; ".join(f"{one.name}: {one.reason}" for one in skipped[:5])
        text += f" Skipped: {named}" + (f"; and {len(skipped) - 5} more." if len(skipped) > 5 else ".")
    return InputError(text, field="documents")


def _decoded(data: bytes, source: str) -> str:
    try:
        return plain_text(data)
    except ValueError as error:
        raise InputError(f"{source} is not text ({error}). {READ}.") from error
