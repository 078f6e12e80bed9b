"""From a row to an `Example`: which columns a source has, and what is refused of their values.

A task lists the schemas it accepts (the hub's, the paper's, ...); the first one whose columns are all there reads the
file.
"""

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastmem.errors import TaskError
from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Row

ID_COLUMNS = ("id", "_id", "input_index")


@dataclass(frozen=True)
class Schema:
    """name: whose shape it is, for error texts. columns: what must be there, besides which others may be.

    parse: a row -> its Example (its id is filled in later), or None for a row that the data set's own rules leave out.
    """

    name: str
    columns: tuple[str, ...]
    parse: Callable[[Row], Example | None]


def examples_of(rows: Iterable[Row], schemas: tuple[Schema, ...], task: str) -> Iterator[Example]:
    """The examples of `rows`, each with an id: the row's own if it has one, otherwise `row-N`, counted from 1.

    Errors: `TaskError` for columns that fit no schema, a row without a column or answer, an id that was there before.
    """
    schema: Schema | None = None
    places: dict[str, str] = {}
    for row in rows:
        if schema is None:
            schema = _fitting(row, schemas, task)
        elif missing := [column for column in schema.columns if column not in row.values]:
            raise TaskError(f"{row.where}: no column {missing[0]!r}; found {', '.join(row.values)}.")
        example = schema.parse(row)
        if example is None:
            continue
        own = next((str(row.values[c]) for c in ID_COLUMNS if row.values.get(c) not in (None, "")), None)
        name = own or f"row-{row.number}"
        if name in places:
            raise TaskError(
                f"{row.where}: the id {name!r} was used at {places[name]} already; ids are unique in a task."
            )
        places[name] = row.where
        yield replace(example, id=name, group=example.group or name)


def _fitting(row: Row, schemas: tuple[Schema, ...], task: str) -> Schema:
    for schema in schemas:
        if all(column in row.values for column in schema.columns):
            return schema
    nearest = max(schemas, key=lambda schema: sum(column in row.values for column in schema.columns))
    missing = [column for column in nearest.columns if column not in row.values]
    accepted = "; ".join(f"{', '.join(schema.columns)} ({schema.name})" for schema in schemas)
    raise TaskError(
        f"{row.where}: {task} finds no column {missing[0]!r}. Found: {', '.join(map(str, row.values))}. "
        f"Accepted: {accepted}."
    )


def text(row: Row, column: str) -> str:
    """The text in `column`. Errors: `TaskError` where it is empty or no text."""
    value = row.values[column]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{row.where}: {column!r} must be a text; found {value!r:.60}.")
    return value


def texts(row: Row, column: str) -> tuple[str, ...]:
    """The texts in `column`: a list, a string that holds a Python or JSON list, one text, or SQuAD's `{"text":
    [...]}`.

    Repetitions and empty ones are left out. Errors: `TaskError` where none is left.
    """
    value = as_list(row.values[column])
    found = tuple(dict.fromkeys(item.strip() for item in value if isinstance(item, str) and item.strip()))
    if not found:
        raise TaskError(f"{row.where}: {column!r} holds no answer; found {row.values[column]!r:.60}.")
    return found


def as_list(value: Any) -> list[Any]:
    """A list as it is, or out of the string or the SQuAD record that holds it; anything else as a list of one."""
    if isinstance(value, dict) and "text" in value:
        return list(value["text"])
    if isinstance(value, str) and value.strip()[:1] == "[":
        for read in (json.loads, ast.literal_eval):
            try:
                parsed = read(value)
            except (ValueError, SyntaxError):
                continue
            if isinstance(parsed, list):
                return parsed
    return list(value) if isinstance(value, (list, tuple)) else [value]
