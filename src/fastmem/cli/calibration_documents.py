"""Documents of a person's own for `fastmem calibrate`: a handful of short pieces of the files of a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastmem.cli.read_document import no_documents
from fastmem.documents import DocumentFile, Skipped, find_documents
from fastmem.documents.document_files import read_document, require_readers
from fastmem.documents.text_process import TextProcess
from fastmem.encoding import encoded
from fastmem.errors import DocumentError
from fastmem.home_path import expanded

PIECES = 8
"""As many as the neutral set has documents."""
PIECE_CHARACTERS = 3000
"""Of a piece before it is cut to tokens: no usual language has more characters in `PIECE_TOKENS`."""
PIECE_TOKENS = 150


def calibration_pieces(
    path: Path, on_file: Callable[[str], None] = lambda name: None
) -> tuple[list[str], list[Skipped]]:
    """Up to `PIECES` pieces of text from as many files of a folder, or from one file, and the files that were skipped.

    The files are spread evenly over the names; if there are few, each gives several pieces. on_file: called with the
    name of each before it is read. Errors: `InputError` if there is no document, `MissingPackageError`.
    """
    path = expanded(path)
    if path.is_file():
        files, skipped = [DocumentFile(path.name, path)], list[Skipped]()
    else:
        files, skipped = find_documents(path)
    ordered = _spread(files)
    texts: list[str] = []
    with TextProcess() as process:
        for file in ordered:
            if len(texts) == PIECES:
                break
            on_file(file.name)
            require_readers([file.path])
            try:
                texts.append(read_document(file.path, name=file.name, process=process).text)
            except DocumentError as error:
                skipped.append(Skipped(file.name, file.path, error.reason))
    if not texts:
        raise no_documents(path, skipped)
    return _pieces(texts), sorted(skipped, key=lambda one: one.name)


def cut(text: str, tokenizer: Any) -> str:
    """The first `PIECE_TOKENS` tokens of a text."""
    ids = encoded(tokenizer, text, add_special_tokens=False)["input_ids"]
    if len(ids) <= PIECE_TOKENS:
        return text
    return str(tokenizer.decode(ids[:PIECE_TOKENS], skip_special_tokens=True)).rstrip("\ufffd")


def _spread(files: Sequence[DocumentFile]) -> list[DocumentFile]:
    """`PIECES` files that are spread evenly, then the others, which replace those that cannot be read."""
    chosen = dict.fromkeys(len(files) * i // PIECES for i in range(PIECES)) if files else {}
    return [files[i] for i in [*chosen, *(i for i in range(len(files)) if i not in chosen)]]


def _pieces(texts: Sequence[str]) -> list[str]:
    """The beginning of each text; of few texts also later pieces, as far as they are long enough."""
    found = []
    for number, text in enumerate(texts):
        wanted = (PIECES - number + len(texts) - 1) // len(texts)  # together `PIECES`
        count = max(1, min(wanted, len(text) // PIECE_CHARACTERS))
        for i in range(count):
            start = len(text) * i // count
            if start:  # begin with a whole word
                start = max(start, text.find(" ", start, start + PIECE_CHARACTERS // 10))
            found.append(text[start : start + PIECE_CHARACTERS].strip())
    return [piece for piece in found if piece]
