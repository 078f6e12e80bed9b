"""The relations of the invented world and how they are worded, from `phrases.json`.

`{s}` is the subject, `{a}` the answer, `{a:a}` the answer with its article. A *form* is a clause or a question without
its frame; a *frame* is the text around it, with the form at `{c}`. Every sixth form of each relation is kept for
measuring, separately for statements that name the subject first, for those that name the answer first, and for
questions; of fewer than six, the last one is kept. So is every sixth frame. Training uses the others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

Order = Literal["subject", "answer"] | None
HELD_OUT_EVERY = 6
PLAIN_SHARE = 0.85
"""This share of the sentences and questions has the plain frame, which training and measuring have in common."""


@dataclass(frozen=True, eq=False)
class Relation:
    """One kind of fact. subject, answer: their kinds. passing: it changes from day to day, so no model can know it."""

    name: str
    subject: str
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    passing: bool


_TABLES = json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))


def _relations(table: str) -> tuple[Relation, ...]:
    return tuple(
        Relation(
            name, one["subject"], one["answer"], tuple(one["statements"]), tuple(one["questions"]), table == "passing"
        )
        for name, one in _TABLES[table].items()
    )


RELATIONS = _relations("relations")
PASSING = _relations("passing")
BY_NAME = {relation.name: relation for relation in RELATIONS + PASSING}
STATEMENT_FRAMES: tuple[str, ...] = tuple(_TABLES["statement_frames"])
QUESTION_FRAMES: tuple[str, ...] = tuple(_TABLES["question_frames"])
FILLERS: tuple[str, ...] = tuple(_TABLES["fillers"])
"""Sentences without a fact."""


@cache
def of_kind(kind: str) -> tuple[Relation, ...]:
    """The lasting relations whose subject is of this kind."""
    return tuple(relation for relation in RELATIONS if relation.subject == kind)


@cache
def passing_of_kind(kind: str) -> tuple[Relation, ...]:
    """The passing relations whose subject is of this kind."""
    return tuple(relation for relation in PASSING if relation.subject == kind)


def is_answer_first(form: str) -> bool:
    """Whether a statement names the answer before the subject."""
    return min(_places(form, "{a}", "{a:a}")) < min(_places(form, "{s}"))


def _places(form: str, *slots: str) -> list[int]:
    return [form.find(slot) for slot in slots if slot in form] or [len(form)]


def kept(forms: Sequence[str], trained: bool) -> tuple[str, ...]:
    """The forms for training, or those for measuring: every sixth, or the last of fewer than six."""
    if len(forms) < 2:
        return tuple(forms) if trained else ()
    measured = set(forms[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or forms[-1:])
    return tuple(form for form in forms if (form not in measured) == trained)


@cache
def statements(relation: Relation, trained: bool, order: Order = None) -> tuple[str, ...]:
    """The statement forms for training or measuring; order: what they name first, None for both."""
    if order is None:
        return statements(relation, trained, "subject") + statements(relation, trained, "answer")
    return kept([form for form in relation.statements if is_answer_first(form) == (order == "answer")], trained)


@cache
def questions(relation: Relation, trained: bool) -> tuple[str, ...]:
    """The question forms for training or measuring."""
    return kept(relation.questions, trained)


@cache
def _framed(frames: tuple[str, ...], trained: bool) -> tuple[tuple[str, str], ...]:
    """The text before and after the form, for each frame but the plain one, which is the first."""
    pairs = [frame.partition("{c}") for frame in kept(frames[1:], trained)]
    return tuple((before, after) for before, _, after in pairs)


def statement_frame(random: Random, trained: bool) -> tuple[str, str]:
    """What stands before and after a statement form."""
    return _frame(STATEMENT_FRAMES, random, trained)


def question_frame(random: Random, trained: bool) -> tuple[str, str]:
    """What stands before and after a question form."""
    return _frame(QUESTION_FRAMES, random, trained)


def _frame(frames: tuple[str, ...], random: Random, trained: bool) -> tuple[str, str]:
    if random.random() < PLAIN_SHARE:
        return "", frames[0].removeprefix("{c}")
    return random.choice(_framed(frames, trained))
