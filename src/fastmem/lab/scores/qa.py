"""Grading of one answer in two ways, both reported in every result.

`paper`: the authors' code (IAAR-Shanghai/FastMem `src/utils.py`, `src/train_and_inference.py`), quirks included, to
compare with the published figures. `strict`: SQuAD's exact match and F1 (arXiv 1606.05250) on the first line of the
answer; an answer without the required format is never right.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tasks with scores of their own import this file
    from fastmem.lab.tasks.example import Example

UNKNOWN = "Unknown"  # the paper's answer for a reply without the marker

_MARKER = re.compile(r"the answer is:\s*", re.IGNORECASE)
_PAPER_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_LATIN = r"[0-9A-Za-z_\u00c0-\u024f\u1e00-\u1eff]"  # what a letter or an article may be part of a word with
_PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True)
class Grade:
    """The grades of one answer.

    answer: the answer as strict grading reads it; empty after a format failure.
    paper_correct: the text after the last marker contains a normalized gold answer; see `contains_answer` for the one
        exception.
    paper_failure: that text is `Unknown`, or the marker is missing; the paper counts it on NQ and NQ-SWAP.
    exact_match, f1: against the nearest gold answer; 0 after a format failure.
    failure: the marker is missing, or nothing follows it.
    remembered: the answer equals one the model is expected to remember; None if no such answer is known.
    """

    answer: str
    paper_correct: bool
    paper_failure: bool
    exact_match: bool
    f1: float
    failure: bool
    remembered: bool | None


def grade(reply: str, example: "Example", whole_words: bool = False) -> Grade:
    """Both gradings of a model's raw reply to a question or a choice. whole_words: see `Task`."""
    answer = strict_answer(reply)
    if example.choices:
        exact = answer is not None and _chosen(answer, example.choices) == example.answers[0]
        f1 = float(exact)  # naming part of a candidate does not choose it
    else:
        exact = answer is not None and exact_match(answer, example.answers)
        f1 = token_f1(answer, example.answers) if answer is not None else 0.0
    remembered = answer is not None and not exact and exact_match(answer, example.original_answers)
    correct = contains_answer if whole_words else paper_correct
    return Grade(
        answer=answer or "",
        paper_correct=correct(reply, example.answers),
        paper_failure=paper_answer(reply).lower() == UNKNOWN.lower(),
        exact_match=exact,
        f1=f1,
        failure=answer is None,
        remembered=remembered if example.original_answers else None,
    )


def paper_answer(reply: str) -> str:
    """Everything after the last `The answer is:` (in any case), or `Unknown` if the reply has none."""
    return _MARKER.split(reply)[-1].strip() if _MARKER.search(reply) else UNKNOWN


def paper_normalize(text: str) -> str:
    """The authors' steps in their order: lower case, no articles, single blanks, no punctuation or symbols, strip.

    Blanks are collapsed before the punctuation between them is removed, so double ones survive (`3 , 000` ->
    `3  000`). The authors' fifth step, joining digits across a comma, never applies, since commas are gone by then.
    """
    text = _PAPER_ARTICLES.sub("", text.lower())
    text = re.sub(r"\s+", " ", text)
    return "".join(c for c in text if unicodedata.category(c)[0] not in "PS").strip()


def paper_correct(reply: str, answers: Iterable[str]) -> bool:
    """Whether the answer contains a gold answer, even inside a word ("it" in "superstition", "no" in `unknown`).

    A gold answer that is empty once normalized, such as "The", is in anything.
    """
    given = paper_normalize(paper_answer(reply))
    return any(paper_normalize(answer) in given for answer in answers)


def contains_answer(reply: str, answers: Iterable[str]) -> bool:
    """`paper_correct`, except for a gold answer that is empty once normalized, such as "A" or "%".

    The reply must contain that as a whole word in its letter case, since "a" may be an article, or equal it by
    `exact_match`. Punctuation around it, and letters of other scripts beside it, are no part of the word.
    """
    given, line = paper_answer(reply), strict_answer(reply) or ""

    def contains(answer: str) -> bool:
        if paper_normalize(answer):
            return paper_correct(reply, [answer])
        bare = re.escape(re.sub(r"^\W+|\W+$", "", answer) or answer)
        return exact_match(line, [answer]) or re.search(f"(?<!{_LATIN}){bare}(?!{_LATIN})", given) is not None

    return any(map(contains, answers))


def strict_answer(reply: str) -> str | None:
    """The first line after the last marker; None, a format failure, if there is no marker or nothing follows it."""
    if not _MARKER.search(reply):
        return None
    lines = _MARKER.split(reply)[-1].strip().splitlines()
    return lines[0].strip() if lines and lines[0].strip(string.punctuation + string.whitespace) else None


def stated_answer(reply: str) -> str:
    """`strict_answer`, empty where nothing follows the marker; a reply without a marker is the answer as a whole."""
    return strict_answer(reply) or "" if _MARKER.search(reply) else reply.strip()


def squad_normalize(text: str) -> str:
    """SQuAD's: lower case, no ASCII punctuation or articles, single blanks. If nothing remains, articles stay, and if
    there are none, punctuation."""
    bare = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()) or bare.strip() or text.lower().strip()


def exact_match(answer: str, answers: Iterable[str]) -> bool:
    """Whether the answer equals one of `answers` after SQuAD's normalization."""
    given = squad_normalize(answer)
    return any(squad_normalize(gold) == given for gold in answers)


def token_f1(answer: str, answers: Iterable[str]) -> float:
    """SQuAD's F1 over shared words, against the best matching of `answers`."""

    given = squad_normalize(answer).split()

    def f1(gold: str) -> float:
        expected = squad_normalize(gold).split()
        common = (Counter(given) & Counter(expected)).total()
        return 2 * common / (len(given) + len(expected)) if given or expected else 1.0

    return max(map(f1, answers), default=0.0)


def _chosen(answer: str, choices: tuple[str, ...]) -> str | None:
    """The candidate that the answer names; None if it names both or neither, or puts one in a sentence.

    Candidates that differ only in letter case (God, god) are compared case-sensitively.
    """
    if squad_normalize(choices[0]) == squad_normalize(choices[1]):
        bare = answer.strip(string.punctuation + string.whitespace)
        return next((choice for choice in choices if choice == bare), None)
    return next((choice for choice in choices if exact_match(answer, [choice])), None)
