"""Convert rows to `Example`s, and check their columns and values.

A task lists the schemas it accepts (the hub's, the paper's, ...). A file is read with the first one whose columns are
all present.
"""

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from fastmem.encoding import half_character
from fastmem.errors import TaskError
from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Row

ID_COLUMNS = ("id", "_id", "input_index")


@dataclass(frozen=True)
class Schema:
    """name: whose schema it is, for error messages. columns: the required ones; others may be present.

    parse: a row -> its Example (the id is set later), or None for a row that the data set's own rules leave out.
    """

    name: str
    columns: tuple[str, ...]
    parse: Callable[[Row], Example | None]

    def missing(self, row: Row) -> list[str]:
        """The required columns that a row lacks."""
        return [column for column in self.columns if column not in row.values]


def examples_of(rows: Iterable[Row], schemas: tuple[Schema, ...], task: str) -> Iterator[Example]:
    """The examples of `rows`, each with an id: the row's own if it has one, otherwise `row-N`, counted from 1.

    Errors: `TaskError` if the columns fit no schema, a row lacks a column or an answer, an id is used twice, or half
    of a character is in a text.
    """
    schema: Schema | None = None
    places: dict[str, str] = {}
    for row in rows:
        if schema is None:
            schema = _fitting(row, schemas, task)
        elif missing := schema.missing(row):
            raise TaskError(f"{row.where}: no column {missing[0]!r}; found {', '.join(row.values)}.")
        example = schema.parse(row)
        if example is None:
            continue
        own = next((str(row.values[c]) for c in ID_COLUMNS if row.values.get(c) not in (None, "")), None)
        name = own or f"row-{row.number}"
        if name in places:
            raise TaskError(
                f"{row.where}: the id {name!r} was used at {places[name]} already; ids must be unique in a task."
            )
        places[name] = row.where
        named = replace(example, id=name, group=example.group or name)
        for part, value in named.record.items():  # of which a task may have read some in its own way
            require_characters(row, part, *([value] if isinstance(value, str) else value))
        yield named


def _fitting(row: Row, schemas: tuple[Schema, ...], task: str) -> Schema:
    for schema in schemas:
        if not schema.missing(row):
            return schema
    nearest = max(schemas, key=lambda schema: len(schema.columns) - len(schema.missing(row)))
    accepted = "; ".join(f"{', '.join(schema.columns)} ({schema.name})" for schema in schemas)
    raise TaskError(
        f"{row.where}: no column {nearest.missing(row)[0]!r}, which {task} needs. "
        f"Found: {', '.join(map(str, row.values))}. "
        f"Accepted: {accepted}."
    )


def text(row: Row, column: str) -> str:
    """The text in `column`. Errors: `TaskError` if it is empty or not a text."""
    value = row.values[column]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{row.where}: {column!r} must be a text; found {value!r:.60}.")
    require_characters(row, column, value)
    return value


def texts(row: Row, column: str) -> tuple[str, ...]:
    """The different, non-empty texts in `column`: a list, a string that contains a Python or JSON list, one text, or
    SQuAD's `{"text": [...]}`. Errors: `TaskError` if there is none.
    """
    items = as_list(row.values[column])
    found = tuple(dict.fromkeys(item.strip() for item in items if isinstance(item, str) and item.strip()))
    if not found:
        raise TaskError(f"{row.where}: {column!r} holds no answer; found {row.values[column]!r:.60}.")
    require_characters(row, column, *found)
    return found


def require_characters(row: Row, name: str, *texts: str) -> None:
    """Errors: `TaskError` for half of a character, which no tokenizer reads. name: of the column or the part."""
    for each in texts:
        if half := half_character(each):
            raise TaskError(f"{row.where}: {name!r} is not text ({half}).")


def as_list(value: object) -> list[object]:
    """A list as it is, or the list in a string or in a SQuAD record; any other value as a list of one."""
    if isinstance(value, dict) and "text" in value:
        return as_list(value["text"])
    if isinstance(value, str) and value.strip()[:1] == "[":
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: thousands of brackets
                continue
            if isinstance(parsed, list):
                return parsed
    return list(value) if isinstance(value, (list, tuple)) else [value]
