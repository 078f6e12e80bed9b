"""Grading one answer in two forms, which stand side by side in every result.

`paper`: what the authors' code counts (IAAR-Shanghai/FastMem `src/utils.py`, `src/train_and_inference.py`), quirks
included, so that figures can be compared with the published ones. `strict`: SQuAD's exact match and F1 (arXiv
1606.05250) on the answer's line, where an answer without the asked format is never right. Pure text; knows no task.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fastmem.lab.tasks.example import Example

UNKNOWN = "Unknown"  # the paper's stand-in for an answer without the marker

_MARKER = re.compile(r"the answer is:\s*", re.IGNORECASE)
_PAPER_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True)
class Grade:
    """How one answer did.

    answer: what strict grading read as the answer; empty where the format failed.
    paper_correct: a normalized gold answer is contained in what follows the last marker.
    paper_failure: what follows is `Unknown` (also because the marker is missing); the paper counts it on NQ, NQ-SWAP.
    exact_match, f1: against the nearest gold answer, 0 on a failure.
    failure: the marker is missing, or nothing follows it.
    remembered: the answer is exactly one the model was expected to remember; None where none is known.
    """

    answer: str
    paper_correct: bool
    paper_failure: bool
    exact_match: bool
    f1: float
    failure: bool
    remembered: bool | None


def grade(reply: str, example: Example) -> Grade:
    """Both forms for a model's raw reply to a question or a choice."""
    answer = strict_answer(reply)
    if example.choices:
        exact = answer is not None and _chosen(answer, example.choices) == example.answers[0]
        f1 = float(exact)  # a share of a candidate is no choice
    else:
        exact = answer is not None and exact_match(answer, example.answers)
        f1 = token_f1(answer, example.answers) if answer is not None else 0.0
    remembered = answer is not None and not exact and exact_match(answer, example.original_answers)
    return Grade(
        answer=answer or "",
        paper_correct=paper_correct(reply, example.answers),
        paper_failure=paper_answer(reply).lower() == UNKNOWN.lower(),
        exact_match=exact,
        f1=f1,
        failure=answer is None,
        remembered=remembered if example.original_answers else None,
    )


def paper_answer(reply: str) -> str:
    """Everything after the last `The answer is:` in whatever case, to the end of the reply; without one, `Unknown`."""
    return _MARKER.split(reply)[-1].strip() if _MARKER.search(reply) else UNKNOWN


def paper_normalize(text: str) -> str:
    """The authors' steps in their order: lower case, articles out, blanks to one, punctuation and symbols out, strip.

    Blanks are collapsed before the punctuation between them goes, so double ones survive (`3 , 000` -> `3  000`).
    Their fifth step, joining digits across a comma, comes after commas are gone and can never fire; it is left out
    here.
    """
    text = _PAPER_ARTICLES.sub("", text.lower())
    text = re.sub(r"\s+", " ", text)
    return "".join(c for c in text if unicodedata.category(c)[0] not in "PS").strip()


def paper_correct(reply: str, answers: Iterable[str]) -> bool:
    """Containment, with what follows: gold "no" is in `unknown`, "it" in "superstition", and "The" in anything."""
    said = paper_normalize(paper_answer(reply))
    return any(paper_normalize(answer) in said for answer in answers)


def strict_answer(reply: str) -> str | None:
    """The first line after the last marker; None where the marker is missing or nothing follows: a format failure."""
    if not _MARKER.search(reply):
        return None
    lines = _MARKER.split(reply)[-1].strip().splitlines()
    return lines[0].strip() if lines and lines[0].strip(string.punctuation + string.whitespace) else None


def squad_normalize(text: str) -> str:
    """SQuAD's: lower case, ASCII punctuation and articles out, blanks to one. A text of nothing else stays."""
    bare = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()) or text.lower().strip()


def exact_match(answer: str, answers: Iterable[str]) -> bool:
    """Equality with one of the answers after SQuAD's normalization."""
    said = squad_normalize(answer)
    return any(squad_normalize(gold) == said for gold in answers)


def token_f1(answer: str, answers: Iterable[str]) -> float:
    """SQuAD's F1 of the words in common, with the nearest of the answers."""

    def one(gold: str) -> float:
        said, asked = squad_normalize(answer).split(), squad_normalize(gold).split()
        common = sum((Counter(said) & Counter(asked)).values())
        return 2 * common / (len(said) + len(asked)) if said or asked else 1.0

    return max((one(gold) for gold in answers), default=0.0)


def _chosen(answer: str, choices: tuple[str, ...]) -> str | None:
    """The one candidate the answer is; None for both, for neither and for a sentence around one.

    Candidates that differ in letter case alone (God, god) are told apart by it.
    """
    if squad_normalize(choices[0]) == squad_normalize(choices[1]):
        bare = answer.strip(string.punctuation + string.whitespace)
        return next((choice for choice in choices if choice == bare), None)
    return next((choice for choice in choices if exact_match(answer, [choice])), None)
