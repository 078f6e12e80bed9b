"""The row schema that the three summary tasks share: an article and one reference."""

from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Row
from fastmem.lab.tasks.row_schema import Schema, text


def summary_schema(name: str, article: str, reference: str, instruction: str) -> Schema:
    """The schema of rows with an article and a reference in the columns of these names."""

    def parse(row: Row) -> Example:
        return Example("", "summary", text(row, article), instruction, (text(row, reference).strip(),))

    return Schema(name, (article, reference), parse)
