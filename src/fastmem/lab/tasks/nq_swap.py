"""NQ and NQ-SWAP (arXiv 2109.05052): a question of Natural Questions with its passage, or with the passage's answer
replaced.

Both tasks read the same rows: `nq` the original passage and answer, `nq_swap` the substituted ones. Questions repeat
(4,746 rows, 1,667 questions), so rows are grouped by question. Passages keep their `<P>`-style markup, as in the
paper; `without_markup` removes it.
"""

import re

from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, text, texts

# The head of the hub's main branch (its commit page: three commits, the last of 2024-03-01).
HUB = Hub("pminervini/NQ-Swap", split="dev", revision="3801dbf037c6f58b0e79246f2a8073ebe5656dad")

# The tags in the 4,746 rows. The substitution also changed attributes (`<Th colspan="eighth">`).
_TAG = re.compile(r'</?(?:P|Table|Tr|Td|Th|Ul|Ol|Li|Dl|Dt|Dd)(?: colspan="[^">]*"+)?>')


def without_markup(context: str) -> str:
    """The passage without its tags; if it has any, runs of spaces become one space."""
    return re.sub(r" {2,}", " ", _TAG.sub(" ", context)).strip() if _TAG.search(context) else context


def _schema(name: str, question: str, context: str, answer: str, original: str | None = None) -> Schema:
    def parse(row: Row) -> Example:
        asked = text(row, question)
        original_answers = texts(row, original) if original else ()
        return Example("", "question", text(row, context), asked, texts(row, answer), original_answers, group=asked)

    return Schema(name, (question, context, answer, *([original] if original else [])), parse)


NQ = (
    _schema("the hub's", "question", "org_context", "org_answer"),
    _schema("the paper's", "input", "context", "answer"),
)
NQ_SWAP = (
    _schema("the hub's", "question", "sub_context", "sub_answer", original="org_answer"),
    _schema("the paper's", "input", "sub_context", "sub_answer", original="answer"),
)
