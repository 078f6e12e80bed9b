"""HotpotQA (arXiv 1809.09600), with the passages of its distractor setting.

`hotpotqa` is the paper's form: the sentences of each paragraph joined by blanks, paragraphs by line breaks, titles
left out. `hotpotqa_titles` opens each paragraph with its title and a colon, which bridge questions rely on. Questions
lose their closing punctuation for one question mark (IAAR-Shanghai/FastMem `src/utils.py`, `data_format`).

Read from the hub's schema, from the publisher's own JSON (context as pairs of title and sentences) and from
CoConflictQA's rows (OpenBMB/ParamMute), whose context is one text of `Title  Sentence.  Sentence.` paragraphs.
"""

import string
from collections.abc import Sequence
from typing import Any

from fastmem.errors import TaskError
from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, text, texts

# The parquet commit that public projects pin; config distractor, 7,405 validation rows.
HUB = Hub(
    "hotpotqa/hotpot_qa",
    split="validation",
    revision="1908d6afbbead072334abe2965f91bd2709910ab",
    config="distractor",
)

Paragraph = tuple[str, Sequence[str]]  # title, sentences


def _paragraphs(row: Row) -> list[Paragraph]:
    context: Any = row.values["context"]
    try:
        if isinstance(context, dict):
            return list(zip(context["title"], context["sentences"], strict=True))
        if isinstance(context, str):
            blocks = [block.strip().split("  ") for block in context.split("\n") if block.strip()]
            return [(block[0], [sentence.strip() for sentence in block[1:]]) for block in blocks]
        return [(title, sentences) for title, sentences in context]
    except (KeyError, TypeError, ValueError) as error:
        raise TaskError(
            f"{row.where}: 'context' must hold titles and sentences, in the hub's, the publisher's or CoConflictQA's "
            f"form; found {context!r:.60}."
        ) from error


def _context(row: Row, titles: bool) -> str:
    paragraphs = _paragraphs(row)
    joined = [(title, " ".join(sentences)) for title, sentences in paragraphs]
    whole = "\n".join(f"{title}: {body}" if titles and body else body or title for title, body in joined)
    if not whole.strip():
        raise TaskError(f"{row.where}: 'context' is empty.")
    return whole


def _schemas(titles: bool) -> tuple[Schema, ...]:
    def example(row: Row, answers: tuple[str, ...], known: tuple[str, ...]) -> Example:
        question = text(row, "question").strip().rstrip(string.punctuation) + "?"
        return Example("", "question", _context(row, titles), question, answers, known)

    def published(row: Row) -> Example:
        return example(row, texts(row, "answer"), ())

    def conflicting(row: Row) -> Example:
        return example(row, texts(row, "answers"), texts(row, "parametric_answer"))

    return (
        Schema("the hub's and the paper's", ("question", "answer", "context"), published),
        Schema("CoConflictQA's", ("question", "answers", "context", "parametric_answer"), conflicting),
    )


HOTPOTQA = _schemas(titles=False)
HOTPOTQA_TITLES = _schemas(titles=True)
