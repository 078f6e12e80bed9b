"""CoConflictQA (OpenBMB/ParamMute, arXiv 2502.15543): real questions on which models contradict a real passage.

Any of its files (SQuAD, NQ, NewsQA, ...), and plain SQuAD rows; `parametric_answer`, where there is one, is what
models were found to remember. Not on the hub in a form we know: give the file.
"""

from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Row
from fastmem.lab.tasks.row_schema import Schema, text, texts


def parse(row: Row) -> Example:
    """Its own rows and SQuAD's."""
    known = texts(row, "parametric_answer") if row.values.get("parametric_answer") else ()
    question = text(row, "question")
    return Example("", "question", text(row, "context"), question, texts(row, "answers"), known, group=question)


SCHEMAS = (Schema("CoConflictQA's and SQuAD's", ("question", "context", "answers"), parse),)
