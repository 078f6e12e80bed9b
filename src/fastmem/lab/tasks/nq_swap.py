"""NQ and NQ-SWAP (arXiv 2109.05052): a question of Natural Questions, its passage, and the passage with its answer
swapped.

Both tasks read the same rows: `nq` with the original passage and answer, `nq_swap` with the substituted ones. The rows
repeat questions (4,746 rows ask 1,667), so they are grouped by question. Passages keep their `<P>`-style markup, as in
the paper; `without_markup` takes it out on demand.
"""

import re

from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, text, texts

# The head of the hub's main branch (its commit page: three commits, the last of 2024-03-01).
HUB = Hub("pminervini/NQ-Swap", split="dev", revision="3801dbf037c6f58b0e79246f2a8073ebe5656dad")

# The tags that occur in the 4,746 rows; the swap went through their attributes as well (`<Th colspan="eighth">`).
_TAG = re.compile(r'</?(?:P|Table|Tr|Td|Th|Ul|Ol|Li|Dl|Dt|Dd)(?: colspan="[^">]*"+)?>')


def without_markup(context: str) -> str:
    """The passage without its tags, blanks made single where one stood."""
    return re.sub(r" {2,}", " ", _TAG.sub(" ", context)).strip() if _TAG.search(context) else context


def _schema(name: str, question: str, context: str, answer: str, original: str | None = None) -> Schema:
    def parse(row: Row) -> Example:
        asked = text(row, question)
        known = texts(row, original) if original else ()
        return Example("", "question", text(row, context), asked, texts(row, answer), known, group=asked)

    return Schema(name, (question, context, answer, *([original] if original else [])), parse)


NQ = (
    _schema("the hub's", "question", "org_context", "org_answer"),
    _schema("the paper's", "input", "context", "answer"),
)
NQ_SWAP = (
    _schema("the hub's", "question", "sub_context", "sub_answer", original="org_answer"),
    _schema("the paper's", "input", "sub_context", "sub_answer", original="answer"),
)
