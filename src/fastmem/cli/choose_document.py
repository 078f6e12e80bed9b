"""`fastmem ask --documents DIR`: the document of a folder that a question is answered from."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from fastmem.cli.output import Status, say
from fastmem.cli.read_document import no_documents
from fastmem.documents import (
    Document,
    DocumentFile,
    Skipped,
    find_documents,
    read_document,
    read_documents,
    word_scores,
)
from fastmem.documents.document_files import FORMATS, log_notes
from fastmem.errors import InputError
from fastmem.home_path import expanded

NEXT_SHOWN, UNREAD_SHOWN = 3, 10  # names in a notice


@dataclass(frozen=True)
class Choice:
    """A document. others: name and score of those that share words with the question, best first.

    score: how well its words fit the question; None if it was named. skipped: files of the folder that were not read.
    """

    document: Document
    score: float | None = None
    others: tuple[tuple[str, float], ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "document": {"name": self.document.name, "score": self.score, "sha256": self.document.digest},
            "other_documents": [{"name": name, "score": score} for name, score in self.others],
            "skipped": [{"name": one.name, "reason": one.reason} for one in self.skipped],
        }


def named_document(folder: Path, name: str) -> Choice:
    """The document of that name. name: its path in the folder, or the end of it, with or without the ending.

    Errors: `InputError` for none or several of that name, `DocumentError` if it cannot be read.
    """
    files, skipped = find_documents(folder)
    found = _of_name(files, folder, name)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{len(found)} documents are named {name!r}: give one of {names}.", field="document")
    if not found:
        raise _unknown(folder, name, files, skipped)
    document = read_document(found[0].path, name=found[0].name)
    log_notes(document)
    return Choice(document)


def fitting_document(folder: Path, question: str, status: Status) -> Choice:
    """The document that shares most with the question: BM25 over the words of its name and its text.

    Errors: `InputError` if there is no document, or none that shares a word.
    """
    found = read_documents(folder, on_file=lambda name, number, count: status(f"reading {name} ({number} of {count})"))
    status("")
    if not found.documents:
        raise no_documents(folder, found.skipped)
    texts = [f"{document.name}\n{document.text}" for document in found.documents]
    scores = word_scores(question, texts)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    best = order[0]
    if scores[best] == 0 and len(order) > 1:
        text = f"no document in {str(folder)!r} shares a word with the question: choose one by its name."
        raise InputError(text, options=["document"])
    document = found.documents[best]
    log_notes(document)
    others = tuple((found.documents[i].name, scores[i]) for i in order[1:] if scores[i] > 0)
    return Choice(document, scores[best], others, found.skipped)


def say_choice(choice: Choice) -> None:
    """Say which document was chosen, which came next, and what could not be read."""
    if unread := [one.name for one in choice.skipped if one.path.suffix.lower() in FORMATS]:
        files = "file" if len(unread) == 1 else "files"
        say(f"note: {len(unread)} {files} not read: {_listed(unread, UNREAD_SHOWN)}; --json says why.")
    text = f"note: answering from {choice.document.name}"
    if choice.score:
        text += f", whose words fit best (score {choice.score:.1f})"
    if choice.others:
        next_best = [f"{name} ({score:.1f})" for name, score in choice.others]
        text += f"; next: {_listed(next_best, NEXT_SHOWN)}. --document NAME chooses another"
    say(f"{text}.")


def _of_name(files: Sequence[DocumentFile], folder: Path, name: str) -> list[DocumentFile]:
    """The files of that name, by the most exact way in which any has it."""
    wanted = _folded(name)
    given = expanded(name)
    ways = (
        lambda file: _folded(file.name) == wanted,
        lambda file: given.exists() and file.path.samefile(given),
        lambda file: f"/{_folded(file.name)}".endswith(f"/{wanted}"),
        lambda file: f"/{_folded(str(PurePosixPath(file.name).with_suffix('')))}".endswith(f"/{wanted}"),
    )
    for way in ways:
        if found := [file for file in files if way(file)]:
            return found
    return []


def _unknown(folder: Path, name: str, files: Sequence[DocumentFile], skipped: Sequence[Skipped]) -> InputError:
    wanted = _folded(name)
    for one in skipped:
        if _folded(one.name) == wanted or _folded(PurePosixPath(one.name).name) == wanted:
            return InputError(f"{one.name} cannot be read: {one.reason}.", field="document")
    if not files:
        return no_documents(folder, skipped)
    near = get_close_matches(name, [file.name for file in files], n=3, cutoff=0.4)
    others = _listed([file.name for file in files], UNREAD_SHOWN)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {others}."
    return InputError(f"no document in {str(folder)!r} is named {name!r}. {hint}", field="document")


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _folded(name: str) -> str:
    """Names in one Unicode form: macOS stores "é" as two characters, a keyboard gives one."""
    return unicodedata.normalize("NFC", name).casefold()
