"""CoConflictQA (OpenBMB/ParamMute, arXiv 2502.15543): real questions on which models contradict a real passage.

Reads any of its files (SQuAD, NQ, NewsQA, ...) and plain SQuAD rows. `parametric_answer`, if present, is the answer
that models gave from memory. The hub has no form of it that we can load, so it is read from a file.
"""

from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Row
from fastmem.lab.tasks.row_schema import Schema, text, texts


def parse(row: Row) -> Example:
    """The example of a CoConflictQA or SQuAD row."""
    original = texts(row, "parametric_answer") if row.values.get("parametric_answer") else ()
    question = text(row, "question")
    return Example("", "question", text(row, "context"), question, texts(row, "answers"), original, group=question)


SCHEMAS = (Schema("CoConflictQA's and SQuAD's", ("question", "context", "answers"), parse),)
