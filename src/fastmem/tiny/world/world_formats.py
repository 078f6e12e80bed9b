"""The user turns of the invented world, and what counts as a right reply.

| format | user turn | reply |
|---|---|---|
| answer, without a document | `Question: Q` | `The answer is: A` |
| answer | the paper's instruction, `Context: C`, `Question: Q`, a line each | `The answer is: A` |
| list | as `answer` | `The answer is: A, B, C`, in any order, also with "and" |
| json | `Context: C`, an empty line, the request, which names the keys | the JSON object alone |
| summary | `Context: C`, an empty line, the request | one sentence |

What the document does not say is answered `The answer is: not in the document`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastmem.tiny.world.world_mentions import mentions, normalize

Format = Literal["answer", "list", "json", "summary"]
INSTRUCTION = (
    "Please extract from the context the span that best answers the question and provide the answer in the following "
    'format: "The answer is: ...".'
)
"""The paper's, as in `fastmem.prompts`, which imports torch."""
MARKER = "The answer is:"
UNANSWERABLE = "not in the document"


@dataclass(frozen=True)
class Example:
    """A measured example.

    context: empty in `world_open`. answers: the right one; the reference for a summary. original_answers: what the
    model learned by heart, where it did. parts: what a list, JSON object or summary has to contain. first, second: the
    answers stated first and second, where the context disagrees with itself.
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    original_answers: tuple[str, ...]
    format: Format = "answer"
    parts: tuple[str, ...] = ()
    first: str = ""
    second: str = ""


def question_turn(context: str, question: str) -> str:
    """The user turn of a question about a context, or of a question alone."""
    return f"{INSTRUCTION}\nContext: {context}\nQuestion: {question}" if context else f"Question: {question}"


def request_turn(context: str, request: str) -> str:
    """The user turn of a request for JSON or a summary; also that of a chat with documents in `fastmem serve`."""
    return f"Context: {context}\n\n{request}"


def prompt_of(example: Example) -> str:
    """The user turn of a measured example."""
    turn = request_turn if example.format in ("json", "summary") else question_turn
    return turn(example.context, example.question)


def answered(answer: str) -> str:
    """The reply with this answer."""
    return f"{MARKER} {answer}"


def is_right(reply: str, example: Example) -> bool:
    """Whether a reply is right: the exact words; all parts of a list and no other; the object; all parts mentioned."""
    if example.format == "summary":
        return all(mentions(reply, part) for part in example.parts)
    if example.format == "json":
        return object_of(reply) == object_of(example.answers[0])
    before, marker, answer = reply.partition(MARKER)
    if not marker or before.strip():
        return False
    if example.format == "list":
        return sorted(items_of(answer, example.parts)) == sorted(map(normalize, example.parts))
    return normalize(answer) in map(normalize, example.answers)


def items_of(answer: str, parts: Sequence[str]) -> list[str]:
    """The items of a list in an answer, compared without case and punctuation.

    parts: what is expected; an "and" inside one of these ends no item.
    """
    known = set(map(normalize, parts))
    pieces = (normalize(piece).removeprefix("and ") for piece in answer.split(","))
    return [item for piece in pieces for item in _joined(piece, known) if item]


def _joined(text: str, known: set[str]) -> list[str]:
    """The items that an "and" joins."""
    words = text.split()
    for place in (i for i, word in enumerate(words) if word == "and" and text not in known):
        before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
        if before in known or after in known:
            return _joined(before, known) + _joined(after, known)
    return [text] if text in known else text.split(" and ")


def object_of(reply: str) -> dict[str, str] | None:
    """The JSON object of a reply, compared without case and punctuation; None if it is none."""
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        return None
    return {str(key): normalize(str(value)) for key, value in found.items()} if isinstance(found, dict) else None
