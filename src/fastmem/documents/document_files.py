"""A folder of documents: which files are documents, their texts, and why a file is skipped.

Bounds, all checked before or while a file is read: `MAX_FILES` in a folder, the bytes of a file (`FORMATS`), the
characters of a document and of all together, and in `text_process` time and memory.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fastmem.documents.pdf_text import MAX_CHARACTERS
from fastmem.documents.plain_text import plain_text
from fastmem.documents.text_process import TextProcess
from fastmem.errors import DocumentError, InputError, MissingPackageError
from fastmem.extras import require
from fastmem.home_path import expanded

log = logging.getLogger("fastmem")

MAX_FILES = 10_000
MAX_TOTAL_CHARACTERS = 200_000_000


@dataclass(frozen=True)
class Format:
    """What a file's ending stands for. max_bytes: of a file. packages: import names of what reads it."""

    max_bytes: int
    packages: tuple[str, ...] = ()


_PLAIN, _HTML = Format(16 * 2**20), Format(16 * 2**20, ("lxml",))
FORMATS = {
    ".txt": _PLAIN,
    ".text": _PLAIN,
    ".md": _PLAIN,
    ".markdown": _PLAIN,
    ".html": _HTML,
    ".htm": _HTML,
    ".xhtml": _HTML,
    ".pdf": Format(100 * 2**20, ("pypdfium2",)),
    ".docx": Format(100 * 2**20, ("mammoth", "lxml")),
}
# What a person with such a file can do.
ADVICE = {
    **dict.fromkeys((".doc", ".rtf", ".odt", ".pages"), "save it as .docx or .pdf"),
    **dict.fromkeys((".ppt", ".pptx", ".odp", ".key"), "save it as .pdf"),
}


@dataclass(frozen=True)
class Document:
    """A file's text. name: path relative to the folder. digest: SHA-256 of the text. notes: what is not in it."""

    name: str
    path: Path
    text: str
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DocumentFile:
    """A file that may be a document. name: path relative to the folder, with "/", all characters printable."""

    name: str
    path: Path


@dataclass(frozen=True)
class Skipped:
    """A file that is no document, or whose text cannot be read."""

    name: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Documents:
    """The texts of a folder, and what was skipped; both in the order of their names."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


def is_plain(path: Path) -> bool:
    """Whether the file is read as plain text, whatever it is: all but HTML, PDF and Word files."""
    found = FORMATS.get(path.suffix.lower())
    return found is None or not found.packages


def require_readers(paths: Iterable[Path]) -> None:
    """Errors: `MissingPackageError` if a package is missing that reads one of these files."""
    endings = {path.suffix.lower() for path in paths}
    packages = {ending: form.packages for ending, form in FORMATS.items() if ending in endings and form.packages}
    names = dict.fromkeys(name for needed in packages.values() for name in needed)
    require(*names, extra="documents", purpose=f"reading {', '.join(packages)} files")


def find_documents(folder: Path, exclude: Path | None = None) -> tuple[list[DocumentFile], list[Skipped]]:
    """The files of a folder and its subfolders that may be documents, and those that are not; sorted by name.

    Left out without a word: files and folders whose name begins with a dot, and "~$..." and the like, which Office and
    Windows hide. Of links only those to hidden files inside the folder are followed. exclude: a folder inside that is
    left out. Nothing is read. Errors: `InputError` for no folder, or one of more than `MAX_FILES` files.
    """
    root = expanded(folder).resolve()
    left_out = expanded(exclude).resolve() if exclude else None
    if not root.is_dir():
        missing = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{str(folder)!r} {missing}: give a folder of documents.", field="documents")
    files: list[DocumentFile] = []
    skipped: list[Skipped] = []

    def unreadable(inside: Path, error: OSError) -> None:
        skipped.append(Skipped(_name(inside, root), inside, f"the folder cannot be read ({error.strerror})"))

    for number, entry in enumerate(visible_entries(root, left_out, unreadable), 1):
        if number > MAX_FILES:
            text = f"{str(folder)!r} contains more than {MAX_FILES:,} files and folders: give a smaller folder."
            raise InputError(text, field="documents")
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            continue
        if reason := _unfit(path, root):
            skipped.append(Skipped(_name(path, root), path, reason))
        else:
            files.append(DocumentFile(_name(path, root), path))
    return sorted(files, key=lambda file: file.name), sorted(skipped, key=lambda one: one.name)


def visible_entries(
    folder: Path, exclude: Path | None = None, on_error: Callable[[Path, OSError], None] = lambda folder, error: None
) -> Iterator["os.DirEntry[str]"]:
    """Files, links and folders in a folder, sorted by name, then those in its subfolders; without hidden ones.

    Of one folder no more than `MAX_FILES` + 1 are listed. Links are not followed. exclude: an entry that is left out.
    on_error: called with a folder that cannot be read.
    """
    folders = [folder]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(inside) as found:
                visible = (entry for entry in found if not _is_hidden(entry.name) and Path(entry.path) != exclude)
                entries = sorted(islice(visible, MAX_FILES + 1), key=lambda entry: entry.name)
        except OSError as error:
            on_error(inside, error)
            continue
        yield from entries
        folders += [Path(entry.path) for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]


def read_document(path: Path | str, *, name: str | None = None, process: TextProcess | None = None) -> Document:
    """The text of a file, by its ending (`FORMATS`).

    name: what it is called; the file's own name if left out. process: one to read several files with. Errors:
    `DocumentError` with the reason, `MissingPackageError`.
    """
    path = expanded(path)
    name = name if name is not None else printable(path.name)
    try:
        form = FORMATS.get(path.suffix.lower())
        if form is None:
            raise ValueError(_unknown_ending(path))
        require_readers([path])
        _check_file(path, form)
        if not form.packages:
            text, notes = plain_text(path.read_bytes()), tuple[str, ...]()
        elif process is not None:
            text, notes = process.text(path)
        else:
            with TextProcess() as own:
                text, notes = own.text(path)
        if not text.strip():
            raise ValueError("it contains no text")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"its text has more than {MAX_CHARACTERS:,} characters")
    except MissingPackageError:
        raise
    except OSError as error:
        raise DocumentError(name, error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise DocumentError(name, str(error)) from error
    return Document(name, path, text, hashlib.sha256(text.encode()).hexdigest(), notes)


def log_notes(document: Document) -> None:
    """Log what could not be read of a document."""
    for note in document.notes:
        log.warning("%s: %s.", document.name, note)


def read_documents(
    path: Path | str, *, exclude: Path | None = None, on_file: Callable[[str, int, int], None] | None = None
) -> Documents:
    """The documents of a folder and its subfolders, or of one file.

    exclude: a folder inside that is left out. on_file: called before each file with its name, its number from 1, and
    how many there are. Errors: as `find_documents`; `MissingPackageError` before anything is read; `InputError` for
    texts of more than `MAX_TOTAL_CHARACTERS` together.
    """
    path = expanded(path)
    if path.is_file():
        files, skipped = [DocumentFile(printable(path.name), path)], list[Skipped]()
    else:
        files, skipped = find_documents(path, exclude)
    require_readers(file.path for file in files)
    documents: list[Document] = []
    characters = 0
    with TextProcess() as process:
        for number, file in enumerate(files, 1):
            if on_file:
                on_file(file.name, number, len(files))
            try:
                documents.append(read_document(file.path, name=file.name, process=process))
            except DocumentError as error:
                skipped.append(Skipped(file.name, file.path, error.reason))
                continue
            characters += len(documents[-1].text)
            if characters > MAX_TOTAL_CHARACTERS:
                text = f"{str(path)!r} contains more than {MAX_TOTAL_CHARACTERS:,} characters: give a smaller folder."
                raise InputError(text, field="documents")
    return Documents(tuple(documents), tuple(sorted(skipped, key=lambda one: one.name)))


def _unfit(path: Path, root: Path) -> str | None:
    """Why an entry of a folder is no document, or None."""
    try:
        if path.is_symlink():
            if not path.exists():
                return "it is a link to a file that does not exist"
            target = path.resolve(strict=True)
            if not target.is_relative_to(root):
                return "it is a link that leaves the folder"
            if target.is_dir():
                return "it is a link to a folder"
            if not any(_is_hidden(part) for part in target.relative_to(root).parts):
                return f"it is a link to {_name(target, root)}"
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise RuntimeError for a link to itself
        return "it is a link that cannot be followed"
    return None if path.suffix.lower() in FORMATS else _unknown_ending(path)


def _check_file(path: Path, form: Format) -> None:
    """Errors: `ValueError`, `OSError`. A pipe or a device, which may never end, is not opened."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(found.st_mode) else "it is not a regular file")
    if found.st_size == 0:
        raise ValueError("it is empty")
    if found.st_size > form.max_bytes:
        raise ValueError(f"it has {found.st_size:,} bytes; up to {form.max_bytes:,} are read")


def _unknown_ending(path: Path) -> str:
    ending = printable(path.suffix.lower())
    kind = f"{ending} files" if ending else "files without an ending"
    return f"{kind} are not read" + (f"; {ADVICE[ending]}" if ending in ADVICE else "")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "~$")) or name in ("Thumbs.db", "desktop.ini", "__MACOSX")


def _name(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def printable(name: str) -> str:
    """A file's name for a terminal: it may contain line breaks, escape codes and bytes of another encoding."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)
