"""The names of the invented world, and new ones in the same shapes, from `names.json`.

A name is made of a shape and words; its *main words* tell it from others: the surname of a person, the first part of a
town ("Fern" of Fernbridge), the noun of an inn. Every fourth main word is reserved for the subjects that no training
text mentions (`new_subjects`), so they share no main word with the world or with any name made up for training.
"""

import json
import re
from functools import cache
from pathlib import Path
from random import Random

SEED = 2611
SUBJECTS = {"person": 100, "town": 60, "inn": 40, "ship": 40, "band": 30, "company": 30, "book": 40}
NEW_SUBJECTS = {"person": 40, "town": 40, "inn": 36, "ship": 36, "band": 36, "company": 30, "book": 36}
RESERVED_EVERY = 4
COMPOSED_SHARE = 0.4
"""This share of the persons made up for training has a surname put together from two parts, such as Hathcombe."""

_TABLES = json.loads(Path(__file__).with_name("names.json").read_text(encoding="utf-8"))
_NAMES: dict[str, dict[str, list[str]]] = _TABLES["names"]
WORDS: dict[str, tuple[str, ...]] = {kind: tuple(words) for kind, words in _TABLES["words"].items()}
"""The kinds whose values are ordinary words, and the rivers."""
_YEARS: dict[str, list[int]] = _TABLES["years"]
_AVOIDED = {kind: frozenset(names) for kind, names in _TABLES["avoid"].items()}
KINDS = (*SUBJECTS, *WORDS, "year")
_PART = re.compile(r"\{(\w+)\}")
_AN = re.compile(r"^A(?= [AEIOU])")
_THRICE = re.compile(r"(\w)\1\1")


@cache
def main_words(kind: str, reserved: bool) -> tuple[str, ...]:
    """The main words of a kind: those reserved for new subjects, or all others."""
    words = _NAMES[kind]["main"]
    return tuple(word for i, word in enumerate(words) if (i % RESERVED_EVERY == RESERVED_EVERY - 1) == reserved)


def _pick(options: tuple[str, ...] | list[str], random: Random) -> str:
    return options[int(random.random() * len(options))]


def _drawn(kind: str, random: Random, reserved: bool) -> str:
    """A name of a kind of subject. reserved: its main words are reserved ones."""
    table = _NAMES[kind]

    def word(match: re.Match[str]) -> str:
        part = match[1]
        return _pick(main_words(kind, reserved) if part == "main" else table[part], random)

    while True:
        name = _AN.sub("An", _PART.sub(word, _pick(table["shapes"], random)))
        halves = name.split(" & ")
        if name not in _AVOIDED.get(kind, ()) and len(set(halves)) == len(halves) and not _THRICE.search(name):
            return name


def year(relation: str, random: Random) -> str:
    """A year that suits a relation, such as 1050 to 1750 for the founding of a town."""
    first, last = _YEARS.get(relation, _YEARS[""])
    return str(first + int(random.random() * (last - first + 1)))


def invent(kind: str, random: Random) -> str:
    """A value of `kind` for training: a made-up name of no known or new subject, an ordinary word, or a year."""
    if kind == "year":
        return year("", random)
    if kind in WORDS:
        return _pick(WORDS[kind], random)
    while True:
        name = _drawn(kind, random, reserved=False)
        if kind == "person" and random.random() < COMPOSED_SHARE:
            name = f"{name.split()[0]} {_composed_surname(random)}"
        if name not in _known():
            return name


def _composed_surname(random: Random) -> str:
    while True:
        surname = _pick(_NAMES["person"]["front"], random) + _pick(_NAMES["person"]["back"], random)
        if surname not in _NAMES["person"]["main"]:
            return surname


@cache
def _known() -> frozenset[str]:
    return frozenset(name for kind in SUBJECTS for name in pools()[kind])


def _distinct(kind: str, count: int, random: Random, reserved: bool) -> tuple[str, ...]:
    """Different names; no two persons share a surname, no two towns their first part, while there are enough."""
    unused = list(main_words(kind, reserved))
    names: list[str] = []
    while len(names) < count:
        name = _drawn(kind, random, reserved)
        own = [word for word in unused if word in name]
        if name not in names and (own or len(unused) < 2):
            names.append(name)
            unused = [word for word in unused if word not in own]
    return tuple(names)


@cache
def pools() -> dict[str, tuple[str, ...]]:
    """All values of the world by kind, subjects included; of years, those of no particular relation."""
    random = Random(SEED)
    named = {kind: _distinct(kind, count, random, reserved=False) for kind, count in SUBJECTS.items()}
    first, last = _YEARS[""]
    return named | WORDS | {"year": tuple(map(str, range(first, last + 1)))}


@cache
def new_subjects() -> dict[str, tuple[str, ...]]:
    """Names that no training text mentions, by kind."""
    random = Random(SEED + 1)
    return {kind: _distinct(kind, count, random, reserved=True) for kind, count in NEW_SUBJECTS.items()}


def given_name(person: str) -> str:
    """`Clara` of Clara Whitfield."""
    return person.split()[0]


def surname(person: str) -> str:
    """`Whitfield` of Clara Whitfield."""
    return person.split()[-1]
