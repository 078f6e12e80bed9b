"""The wording of the invented world, from `phrases.json`: relations, how each is stated and asked, and their frames.

`{s}` is the subject, `{a}` the answer. A *core* is a clause or a question without its frame `{c}`; a *frame* is the
text around it. `world.py` decides which frames go with which cores in training, and which pairs are kept for
measuring. Jobs, instruments and goods are ordinary words; all names of persons, places, rivers, languages, firms,
books and ships are invented there.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Relation:
    """One kind of fact. subject, answer: their kinds, from `world.KINDS`."""

    name: str
    subject: str
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def _tuples(lists: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(texts) for name, texts in lists.items()}


_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

RELATIONS: tuple[Relation, ...] = tuple(
    Relation(one["name"], one["subject"], one["answer"], tuple(one["statements"]), tuple(one["questions"]))
    for one in _TABLES["relations"]
)
STATEMENT_FRAMES: tuple[str, ...] = tuple(_TABLES["statement_frames"])
QUESTION_FRAMES: tuple[str, ...] = tuple(_TABLES["question_frames"])
FILLERS: tuple[str, ...] = tuple(_TABLES["fillers"])
"""Sentences without a fact."""
WORDS: dict[str, tuple[str, ...]] = _tuples(_TABLES["words"])
"""The ordinary words of each kind that has them."""
NAME_SHAPES: dict[str, tuple[str, ...]] = _tuples(_TABLES["name_shapes"])
"""Templates that make a name of each kind from one or two invented words."""
