"""The documents of a folder, by file name."""

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from fastmem.documents.document_files import is_plain, log_notes, read_document, visible_entries
from fastmem.documents.plain_text import plain_text
from fastmem.errors import DocumentError, TaskError

MOST_CHARACTERS = (
    5_000_000  # of a document, and so of any text: over a million tokens, more than models have positions
)
_LISTED = 5  # names in an error message


def document_text(path: Path) -> str:
    """The text of a document: HTML, PDF and Word files by their ending, all others as plain text.

    What could not be read of it is logged. Errors: `TaskError` if it cannot be read, `MissingPackageError`.
    """
    try:
        if not is_plain(path):
            document = read_document(path)
            log_notes(document)
            return document.text
        if path.stat().st_size > 4 * MOST_CHARACTERS:  # at most four bytes per character, in UTF-8, -16 and -32
            raise TaskError(f"the document {path} has {path.stat().st_size:,} bytes: no model can read as many.")
        return plain_text(path.read_bytes())
    except DocumentError as error:
        raise TaskError(f"the document {path} cannot be read: {error.reason}.") from error
    except OSError as error:
        raise TaskError(f"the document {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise TaskError(
            f"the document {path} cannot be read: {error}. Give a text, HTML, PDF or Word file."
        ) from error


class DocumentFolder:
    """The files below a folder, read when they are asked for, each once. A single file is a folder of one document.

    texts: what was read so far, by name. Errors: `TaskError` if the folder is absent or holds no file.
    """

    def __init__(self, path: Path):
        self.path = path.parent if path.is_file() else path
        self.texts: dict[str, str] = {}
        self._only = path.name if path.is_file() else None
        if not self.path.is_dir():
            raise TaskError(f"no folder of documents at {path}: give a folder, or one file.", field="documents")
        if not self.first():
            raise TaskError(f"the folder of documents {path} has no file.", field="documents")

    def first(self, most: int = _LISTED + 1) -> list[str]:
        """The first names."""
        return list(islice(self._names(), most))

    def text(self, name: str) -> str:
        """The text of the document with this name, relative to the folder.

        Errors: `TaskError` if there is none, if the name leads out of the folder, or if the file is not a text.
        """
        if name not in self.texts:
            self.texts[name] = self._read(name)
        return self.texts[name]

    def _read(self, name: str) -> str:
        path = self.path / name
        try:
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise TaskError(f"the document {name!r} is outside of {self.path}: give the name of a file in it.")
            known = path.is_file() if self._only is None else name == self._only
        except (OSError, ValueError):  # a name that no file can have: too long, or with a zero byte
            known = False
        if not known:
            near = get_close_matches(name, list(self._names()), n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]!r}?" if near else f" It holds {listed(self.first())}."
            raise TaskError(f"no document {name!r:.80} in {self.path}.{hint}")
        return document_text(path)

    def _names(self) -> Iterator[str]:
        if self._only is not None:
            yield self._only
            return
        for entry in visible_entries(self.path):
            if entry.is_file():
                yield Path(entry.path).relative_to(self.path).as_posix()


def listed(names: list[str]) -> str:
    """`a, b, c`, the first few of many."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
