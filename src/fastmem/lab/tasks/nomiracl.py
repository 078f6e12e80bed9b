"""NoMIRACL (arXiv 2312.11361): passages of a search engine, of which one answers the question, or none.

Reads rows with the columns of project-miracl/nomiracl `nomiracl/dataset/data_loader.py` (the hub's, which we could not
load from here): `query`, `positive_passages` and `negative_passages`, each a list of `docid`, `title` and `text`. Rows
without a positive passage are the non-relevant subset. The passages are in an order that does not depend on which are
positive.

Metrics as in its `nomiracl/eval/metrics.py`, replies read as in its `nomiracl/prompts/template.py`: the hallucination
rate is the share of non-relevant rows for which an answer is claimed, FP / (FP + TN); the error rate the share of
relevant rows for which it is denied, FN / (FN + TP). As there, a reply that does neither or both is invalid, counted
on its own, and part of both denominators. The prompt is ours and asks for the same two phrases.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from fastmem.errors import TaskError
from fastmem.lab.tasks.example import Example, Value
from fastmem.lab.tasks.question_template import WITHOUT_CONTEXT, question_template
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, text

# The commit that held parquet files; the main branch went back to a script, which `datasets` no longer runs.
HUB = Hub(
    "miracl/nomiracl",
    split="test.relevant+test.non_relevant",
    revision="3264b524d273d088c0f2bf94c024851a1f77387c",
    config="english",
)
PRESENT, ABSENT = "Yes, answer is present", "I don't know"
TEMPLATE = question_template(
    f'The only answers are "{PRESENT}", if one of the passages answers the question, and "{ABSENT}", if none does.',
    "decide whether the passages of the context answer the question",
)


def parse(row: Row) -> Example:
    """The example of a row."""
    relevant = bool(_passages(row, "positive_passages"))
    passages = _passages(row, "positive_passages") + _passages(row, "negative_passages")
    if not passages:
        raise TaskError(f"{row.where}: there is no passage; give positive_passages, negative_passages or both.")
    passages.sort(key=lambda passage: hashlib.sha256(str(passage.get("docid", passage["text"])).encode()).digest())
    context = "\n\n".join(
        f"[{number}] " + ": ".join(" ".join(str(passage[k]).split()) for k in ("title", "text") if passage.get(k))
        for number, passage in enumerate(passages, 1)
    )
    return Example(
        "",
        "question",
        context,
        text(row, "query"),
        (PRESENT if relevant else ABSENT,),
        subset="relevant" if relevant else "non-relevant",
        template=TEMPLATE,
        template_without_context=WITHOUT_CONTEXT,
    )


def _passages(row: Row, column: str) -> list[Mapping[str, Any]]:
    found = row.values[column]
    found = [] if found is None else found
    if not isinstance(found, list) or not all(isinstance(each, dict) and each.get("text") for each in found):
        raise TaskError(f"{row.where}: {column!r} must be a list of passages with a 'text'; found {found!r:.60}.")
    return list(found)


def score(reply: str, example: Example) -> dict[str, Value]:
    """The scores of one answer; the two rates are None for rows of the other subset."""
    claims = _claims(reply)
    relevant = example.answers[0] == PRESENT
    return {
        "accuracy": claims is relevant,
        "hallucination rate": None if relevant else claims is True,
        "error rate": claims is False if relevant else None,
        "invalid": claims is None,
    }


def _claims(reply: str) -> bool | None:
    """Whether a reply claims that an answer is present, or denies it; None if it does neither or both."""
    said = " ".join(reply.lower().replace("\u2019", "'").split())
    present, absent = PRESENT.lower() in said, ABSENT.lower() in said
    if present or absent:
        return present if present != absent else None
    if "answer is present" in said:
        return True
    if "answer is not present" in said:
        return False
    return True if len(said) < 10 and re.search(r"\[\d+\]", said) else None  # the number of a passage alone


SCHEMAS = (Schema("the publisher's", ("query", "positive_passages", "negative_passages"), parse),)
