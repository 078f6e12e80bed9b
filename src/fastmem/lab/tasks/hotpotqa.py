"""HotpotQA (arXiv 1809.09600), with the passages of its distractor setting.

`hotpotqa` is the paper's form: sentences joined by spaces, paragraphs by line breaks, without titles.
`hotpotqa_titles` starts each paragraph with its title and a colon, which bridge questions rely on. The punctuation at
the end of a question is replaced by one question mark (IAAR-Shanghai/FastMem `src/utils.py`, `data_format`).

Reads the hub's rows, the publisher's own JSON (context as pairs of title and sentences) and CoConflictQA's rows
(OpenBMB/ParamMute), whose context is one text of `Title  Sentence.  Sentence.` paragraphs.
"""

import string
from collections.abc import Callable, Sequence
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

Paragraph = tuple[str, str]  # title, sentences

_REMEDY = "For plain passages use the task coconflictqa, with the columns question, context and answers."


def _paragraphs(row: Row) -> list[Paragraph]:
    """The paragraphs of the hub's rows (a record of two lists) and of the publisher's (a list of pairs)."""
    context: Any = row.values["context"]
    try:
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        found = [(title, sentences) for title, sentences in pairs]
        if all(isinstance(sentences, list | tuple) for _, sentences in found):
            return [(title, " ".join(sentences)) for title, sentences in found]
    except (KeyError, TypeError, ValueError):
        pass  # refused below, like sentences that are one text
    raise TaskError(
        f"{row.where}: 'context' must hold titles and lists of sentences, as in HotpotQA's rows on the hub or its "
        f"publisher's JSON; found {context!r:.60}. {_REMEDY}"
    )


def _paragraphs_of_text(row: Row) -> list[Paragraph]:
    """The paragraphs of CoConflictQA's rows: one a line, its title and sentences separated by two spaces."""
    blocks = [block.strip().split("  ") for block in text(row, "context").split("\n") if block.strip()]
    if plain := next((block[0] for block in blocks if len(block) == 1), None):
        raise TaskError(
            f"{row.where}: every line of 'context' must be a title and sentences, separated by two spaces, as in "
            f"CoConflictQA's HotpotQA rows; found {plain!r:.60}. {_REMEDY}"
        )
    return [(block[0], " ".join(sentence.strip() for sentence in block[1:])) for block in blocks]


def _context(row: Row, paragraphs: Sequence[Paragraph], titles: bool) -> str:
    context = "\n".join(f"{title}: {body}" if titles and body else body or title for title, body in paragraphs)
    if not context.strip():
        raise TaskError(f"{row.where}: 'context' is empty.")
    return context


def _schemas(titles: bool) -> tuple[Schema, ...]:
    def schema(
        name: str, paragraphs: Callable[[Row], list[Paragraph]], answer: str, original: str | None = None
    ) -> Schema:
        def parse(row: Row) -> Example:
            question = text(row, "question").strip().rstrip(string.punctuation) + "?"
            original_answers = texts(row, original) if original else ()
            context = _context(row, paragraphs(row), titles)
            return Example("", "question", context, question, texts(row, answer), original_answers)

        return Schema(name, ("question", answer, "context", *([original] if original else [])), parse)

    return (
        schema("the hub's and the paper's", _paragraphs, "answer"),
        schema("CoConflictQA's", _paragraphs_of_text, "answers", original="parametric_answer"),
    )


HOTPOTQA = _schemas(titles=False)
HOTPOTQA_TITLES = _schemas(titles=True)
