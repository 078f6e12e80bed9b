"""Questions of one's own: the task `qa`, from a file with a question, its answer and its document in every row.

The three columns are found by their usual names, in any case, or are named. A document is a text in the row, or a file
of a folder. Every row is checked before the first example is returned.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from fastmem.errors import InputError, TaskError, one_of, shown
from fastmem.lab.tasks.document_folder import MOST_CHARACTERS, DocumentFolder, listed
from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Row, digest, file_rows, files_of
from fastmem.lab.tasks.row_schema import ID_COLUMNS, Schema, as_list, examples_of, require_characters

TASK = "qa"
# Part of a row -> the usual names of its column.
NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question", "query", "prompt"),
    "answer": ("answer", "answers", "reference", "expected", "gold", "target"),
    "document": ("document", "context", "passage", "text", "file", "source"),
}
MOST_QUESTION_CHARACTERS = 100_000  # of a question or an answer
_LONGEST_NAME = 255  # characters; file systems allow no longer one
_DOCUMENT_SUFFIXES = (".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".docx", ".doc", ".odt", ".rtf", ".tex", ".epub")


@dataclass(frozen=True)
class Questions:
    """examples: in the order of the file. source: its name. revision: the digest of the file, the columns and the
    documents that were read."""

    examples: tuple[Example, ...]
    source: str
    revision: str


def read_questions(
    data: Path,
    columns: Mapping[str, str] | None = None,
    documents: Path | None = None,
    *,
    limit: int | None = None,
    answers_required: bool = True,
) -> Questions:
    """The questions of a file, of the files of a folder or of a pattern.

    columns: part (a key of `NAMES`) -> column; other columns are found by their usual names. documents: a folder whose
    files the column of documents names; without such a column it must hold one document. limit: only the first rows,
    and the documents they name. answers_required: False allows rows, and files, without answers. Errors: `TaskError`
    with the place, what was found and what to give; `InputError` for an unknown key of `columns`.
    """
    folder = None if documents is None else DocumentFolder(documents)
    files = files_of(data)
    rows = _filled(file_rows(files))
    first = next(rows, None)
    if first is None:
        raise TaskError(f"{data.name} holds no row with a value.")
    found = _columns(first, columns or {}, answers_required)
    if "document" not in found:
        _require_one_document(first, folder)
    schema = _schema(found, folder, answers_required)
    examples = tuple(islice(examples_of(chain([first], rows), (schema,), TASK), limit))
    whole = hashlib.sha256(json.dumps([digest(files), found]).encode())
    for name, text in sorted(folder.texts.items()) if folder else ():
        whole.update(json.dumps([name, text]).encode())
    source = data.name if len(files) == 1 else f"{data.parent.name}/{data.name}"
    return Questions(examples, source, f"sha256:{whole.hexdigest()[:16]}")


def named_columns(given: str) -> dict[str, str]:
    """`question=Q,answer=A,document=D` as part -> column; a column may contain commas. Errors: `InputError`."""
    pairs = [part.partition("=") for part in re.split(r",(?=\s*\w+\s*=)", given)]
    found = {part.strip(): column.strip() for part, _, column in pairs}
    if not all(equals and column.strip() for _, equals, column in pairs) or len(found) < len(pairs):
        raise InputError(
            f"columns is {shown(given)}: give question=NAME, answer=NAME and document=NAME, separated by commas, each "
            "at most once.",
            field="columns",
        )
    return found


def _filled(rows: Iterable[Row]) -> Iterator[Row]:
    """Without the empty rows that spreadsheets leave behind."""
    return (row for row in rows if any(value not in (None, "") for value in row.values.values()))


def _columns(row: Row, given: Mapping[str, str], answers_required: bool) -> dict[str, str]:
    """Part -> column, for the parts that the row has. Errors: `TaskError` that lists the columns of the file."""
    names, file = [str(name) for name in row.values], row.path.name if row.path else row.where
    all_names = f"its columns: {listed(names)}" if names else "it has no columns"
    found: dict[str, str] = {}
    for part, column in given.items():
        one_of(part, NAMES, "part of a row", field="columns")
        if column not in names:
            raise TaskError(f"{file} has no column {shown(column)} for the {part}; {all_names}.", field="columns")
        if column in found.values():
            raise TaskError(f"the column {column!r} is named for two parts: give each its own.", field="columns")
        found[part] = column
    for part, usual in NAMES.items():
        free = [name for name in names if name not in found.values()]
        matching = [name for name in free if name.strip().casefold() in usual]
        if part in found:
            continue
        if len(matching) > 1:
            raise TaskError(
                f"{file} has {len(matching)} columns that could hold the {part}: {', '.join(matching)}. "
                f"Name one of them, as in {part}={matching[0]}.",
                field="columns",
            )
        if matching:
            found[part] = matching[0]
        elif part == "question" or (part == "answer" and answers_required):
            delimiter = " Are columns separated by commas, semicolons or tabs?" if len(names) == 1 else ""
            raise TaskError(
                f"{file} has no column called {', '.join(usual[:-1])} or {usual[-1]}; {all_names}.{delimiter} Name "
                f"the one that holds the {part}, as in {part}={free[0] if free else 'NAME'}.",
                field="columns",
            )
    return found


def _require_one_document(row: Row, folder: DocumentFolder | None) -> None:
    """For a file without a column of documents. Errors: `TaskError`."""
    file = row.path.name if row.path else row.where
    names = folder.first() if folder else []
    if len(names) == 1:
        return
    reason = f"and {folder.path} has several documents ({listed(names)})" if folder else "and no documents are given"
    remedy = "with the name of a file" if folder else "with the text"
    raise TaskError(
        f"{file} has no column called {', '.join(NAMES['document'])}, {reason}. Its columns: "
        f"{listed(list(map(str, row.values)))}. Add a column 'document' {remedy} to every row, or name the one that "
        "has it, as in document=NAME" + ("." if folder else "; or give the one document of all rows."),
        field="columns",
        options=() if folder else ("documents",),
    )


def _schema(columns: Mapping[str, str], folder: DocumentFolder | None, answers_required: bool) -> Schema:
    """How a row becomes an example."""

    def parse(row: Row) -> Example:
        for name in ID_COLUMNS:
            if isinstance(row.values.get(name), str):
                _checked(row, name, row.values[name], _LONGEST_NAME)
        if late := [part for part in NAMES if part not in columns and set(NAMES[part]) & row.values.keys()]:
            raise TaskError(
                f"{row.where}: this row has a column for the {late[0]}, the first has none; give all of them one."
            )
        question = _text(row, columns["question"], MOST_QUESTION_CHARACTERS)
        answers = _answers(row, columns["answer"]) if "answer" in columns else ()
        if answers_required and not answers:
            column = columns["answer"]
            raise TaskError(f"{row.where}: {column!r} holds no answer; found {shown(row.values[column])}.")
        context = _document(row, columns.get("document"), folder)
        # Rows that ask the same of one document are one observation; the same question about another is not.
        group = hashlib.sha256(json.dumps([question, context]).encode()).hexdigest()[:16]
        return Example("", "question", context, question, answers, group=group)

    required = [column for part, column in columns.items() if part != "answer" or answers_required]
    return Schema("one's own", tuple(required), parse)


def _document(row: Row, column: str | None, folder: DocumentFolder | None) -> str:
    """The document of a row: of several lines or a long one, a text; else a file of the folder if there is one."""
    where = row.where
    if column is None:
        assert folder is not None  # see `_require_one_document`
        (value,) = folder.first()
    else:
        value = _text(row, column, MOST_CHARACTERS)
        name = value.strip()
        if folder is None:
            if "\n" not in name and name.lower().endswith(_DOCUMENT_SUFFIXES) and len(name) <= _LONGEST_NAME:
                raise TaskError(
                    f"{where}: {column!r} holds a file name, {name!r:.80}: give the folder of the documents.",
                    options=("documents",),
                )
            return name
        if "\n" in name or len(name) > _LONGEST_NAME:
            return name
        value = name
    try:
        text = folder.text(value)
    except TaskError as error:
        raise TaskError(f"{where}: {error.text}", field="documents") from error
    if not text.strip():
        raise TaskError(f"{where}: the document {value!r} contains no text.", field="documents")
    return _checked(row, f"document {value}", text.strip(), MOST_CHARACTERS)


def _answers(row: Row, column: str) -> tuple[str, ...]:
    """The different answers in a column: a text, a number, a list of them, or in CSV several separated by `|`."""
    value = row.values.get(column)
    if isinstance(value, str):
        _checked(row, column, value, MOST_QUESTION_CHARACTERS)
    items = [] if value is None else as_list(value)
    if items == [value] and isinstance(value, str) and row.path and row.path.suffix in (".csv", ".tsv"):
        items = list(value.split("|"))
    found: dict[str, None] = {}
    for item in items:
        if isinstance(item, float) and item.is_integer():
            item = int(item)  # a column of whole numbers with a gap is one of fractions in parquet
        if isinstance(item, int | float) and not isinstance(item, bool):
            item = str(item)
        if item is not None and not isinstance(item, str):
            raise TaskError(
                f"{row.where}: {column!r} must hold a text, a number or a list of them; found {shown(item)}."
            )
        if item and item.strip():
            found[_checked(row, column, item.strip(), MOST_QUESTION_CHARACTERS)] = None
    return tuple(found)


def _text(row: Row, column: str, most: int) -> str:
    """The text in a column. Errors: `TaskError`."""
    value = row.values[column]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{row.where}: {column!r} must be a text; found {shown(value)}.")
    return _checked(row, column, value, most)


def _checked(row: Row, name: str, text: str, most: int) -> str:
    """The text. Errors: `TaskError` if it is too long, or no file could hold it."""
    if len(text) > most:
        raise TaskError(f"{row.where}: {name!r} has {len(text):,} characters; accepted are at most {most:,}.")
    require_characters(row, name, text)
    if "\0" in text:
        raise TaskError(f"{row.where}: {name!r} is not text (it contains zero bytes).")
    return text
