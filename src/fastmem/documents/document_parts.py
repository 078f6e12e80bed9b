"""A document in parts, cut where a paragraph ends, else where a sentence or a word does."""

import re
from collections.abc import Callable, Sequence

from fastmem.documents.word_ranking import word_scores
from fastmem.errors import InputError

# Each matches a paragraph, sentence or word with the blanks after it, so all that it finds, joined, is the text again.
PARAGRAPH = re.compile(r".+?(?:\n\s*\n\s*|\Z)", re.DOTALL)
# A sentence ends with its marks and closing quotes before a blank, with a Chinese or Japanese full stop, or its line.
SENTENCE = re.compile(r".+?(?:[.!?…]{1,9}[\"'”’»)\]]{0,9}\s+|[。！？]{1,9}[」』”]{0,9}\s*|\n\s*|\Z)", re.DOTALL)
WORD = re.compile(r"\s*\S{1,100}\s*|\s+\Z")
LEVELS = (PARAGRAPH, SENTENCE, WORD)


def sentences(text: str) -> list[str]:
    """The sentences with the blanks after them; joined, they are the text. An abbreviation ends one, too."""
    return SENTENCE.findall(text)


def document_parts(text: str, most: int, count: Callable[[str], int]) -> list[str]:
    """The parts of a document, in order, each with at most `most` tokens as far as words allow; stripped.

    count: the tokens of a text. A paragraph is cut only if it is longer than a part, a sentence likewise. Errors:
    `InputError` for less than 1 token or an empty text.
    """
    if most < 1:
        raise InputError(f"a part has at least 1 token; given {most}.", field="part_tokens")
    if not text.strip():
        raise InputError("the document is empty: give a text to cut into parts.", field="context")
    return [part for piece in _packed(text, most, count, 0) if (part := piece.strip())]


def fitting_part(question: str, parts: Sequence[str]) -> int:
    """The number of the part that shares most with the question in words (BM25), from 0; the first of equals.

    The only part needs no shared word. Errors: `InputError` if there are no parts, if none of several shares a word
    with the question, or if the question is no text.
    """
    if not isinstance(question, str):
        raise InputError(f"the question must be one text; given {type(question).__name__}.", field="question")
    if not parts:
        raise InputError("there are no parts to choose from: give at least one.", field="parts")
    scores = word_scores(question, parts)
    best = max(range(len(scores)), key=scores.__getitem__)
    if scores[best] == 0 and len(parts) > 1:
        text = f"none of the {len(parts)} parts shares a word with the question"
        raise InputError(f"{text}: ask in words of the document, or cut it into larger parts.", field="part_tokens")
    return best


def _packed(text: str, most: int, count: Callable[[str], int], level: int) -> list[str]:
    """As many neighbours as fit together; one that is too long alone is cut at the next level."""
    packed: list[str] = []
    room = 0
    for unit in LEVELS[level].findall(text):
        size = count(unit)
        if size > most and level + 1 < len(LEVELS):
            packed += _packed(unit, most, count, level + 1)
            room = 0
        elif packed and size <= room:
            packed[-1] += unit
            room -= size
        else:
            packed.append(unit)
            room = most - size
    return packed
