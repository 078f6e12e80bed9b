"""HotpotQA (arXiv 1809.09600), with the passages of its distractor setting.

`hotpotqa` is the paper's form: sentences joined by spaces, paragraphs by line breaks, without titles.
`hotpotqa_titles` starts each paragraph with its title and a colon, which bridge questions rely on. The punctuation at
the end of a question is replaced by one question mark (IAAR-Shanghai/FastMem `src/utils.py`, `data_format`).

Reads the hub's rows, the publisher's own JSON (context as pairs of title and sentences) and CoConflictQA's rows
(OpenBMB/ParamMute), whose context is one text of `Title  Sentence.  Sentence.` paragraphs.
"""

import string
from collections.abc import Sequence
from typing import Any

from fastmem.errors import TaskError
from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, text, texts

# The parquet commit that public projects pin; 7,405 validation rows.
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
    paragraphs = [(title, " ".join(sentences)) for title, sentences in _paragraphs(row)]
    context = "\n".join(f"{title}: {body}" if titles and body else body or title for title, body in paragraphs)
    if not context.strip():
        raise TaskError(f"{row.where}: 'context' is empty.")
    return context


def _schemas(titles: bool) -> tuple[Schema, ...]:
    def schema(name: str, answer: str, original: str | None = None) -> Schema:
        def parse(row: Row) -> Example:
            question = text(row, "question").strip().rstrip(string.punctuation) + "?"
            original_answers = texts(row, original) if original else ()
            return Example("", "question", _context(row, titles), question, texts(row, answer), original_answers)

        return Schema(name, ("question", answer, "context", *([original] if original else [])), parse)

    return (
        schema("the hub's and the paper's", "answer"),
        schema("CoConflictQA's", "answers", original="parametric_answer"),
    )


HOTPOTQA = _schemas(titles=False)
HOTPOTQA_TITLES = _schemas(titles=True)
