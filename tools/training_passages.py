"""Passages with slots (`tools/passages/*.jsonl`), filled with names made up anew each time.

One JSON object a line: `text`, `questions` as pairs of question and answer, and `unanswerable` questions that the text
does not answer. The template syntax is that of `world_templates.py`. A slot is a kind and a number: `{person1}`; the
same slot has the same value. `{first1}` and `{last1}` are the given name and the surname of `{person1}`; `{number1}`,
`{time1}` and `{price1}` are written out.
"""

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from fastmem.tiny.world.world_names import KINDS, given_name, invent, surname
from fastmem.tiny.world.world_templates import capitalized, choose, fill, sentence_start, slots

FOLDER = Path(__file__).with_name("passages")
_MINUTES = ("{h}", "half past {h}", "a quarter past {h}", "a quarter to {h}", "{n}:30", "{n}:15", "{n}:45", "{n}:10")
_HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


class Template(NamedTuple):
    """A passage with slots and alternatives. slots: all that occur in it."""

    text: str
    questions: tuple[tuple[str, str], ...]
    unanswerable: tuple[str, ...]
    slots: tuple[str, ...]


class Passage(NamedTuple):
    """A filled passage."""

    text: str
    questions: tuple[tuple[str, str], ...]
    unanswerable: tuple[str, ...]


@cache
def templates() -> tuple[Template, ...]:
    """All passages of the folder, in the order of the file names."""
    found = []
    for path in sorted(FOLDER.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                questions = tuple((question, answer) for question, answer in row["questions"])
                texts = [row["text"], *row["unanswerable"], *(text for pair in questions for text in pair)]
                found.append(Template(row["text"], questions, tuple(row["unanswerable"]), slots(" ".join(texts))))
    return tuple(found)


def filled(template: Template, random: Random) -> Passage:
    """The passage with new names; its questions in a new order."""
    values = values_of(template.slots, random)
    text = capitalized(fill(choose(template.text, random), values))
    questions = [
        (sentence_start(fill(choose(question, random), values)), fill(answer, values))
        for question, answer in template.questions
    ]
    random.shuffle(questions)
    unanswerable = (sentence_start(fill(choose(question, random), values)) for question in template.unanswerable)
    return Passage(text, tuple(questions), tuple(unanswerable))


def values_of(names: tuple[str, ...], random: Random) -> dict[str, str]:
    """A value for each slot. Values of one kind differ, and no two persons share a part of their names."""
    values: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        slot = f"person{number}" if kind in ("first", "last") else name
        if slot not in values:
            values[slot] = _unlike(slot.rstrip("0123456789"), taken, random)
        if kind in ("first", "last"):
            values[name] = (given_name if kind == "first" else surname)(values[slot])
    return values


def _unlike(kind: str, taken: set[str], random: Random) -> str:
    """A value that was not drawn before; `taken` is extended."""
    while True:
        value = _drawn(kind, random)
        parts = set(value.split()) if kind == "person" else {value}
        if not parts & taken:
            taken |= parts
            return value


def _drawn(kind: str, random: Random) -> str:
    if kind in KINDS:
        return invent(kind, random)
    if kind == "number":
        return str(random.randint(2, 90))
    if kind == "price":
        return f"{random.choice((random.randint(2, 20), random.randint(2, 20), random.randint(21, 400)))} dollars"
    hour = random.randrange(12)
    return random.choice(_MINUTES).format(h=_HOURS[hour], n=hour + 1)
