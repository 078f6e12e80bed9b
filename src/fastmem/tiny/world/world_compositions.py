"""What needs more than one fact: questions over two sentences, lists, JSON and summaries (`compositions.json`)."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from fastmem.tiny.world.world_facts import Fact
from fastmem.tiny.world.world_names import pools
from fastmem.tiny.world.world_relations import kept, of_kind, question_frame, statement_frame
from fastmem.tiny.world.world_templates import choose, fill, sentence_start
from fastmem.tiny.world.world_writer import Writer

_TABLES = json.loads(Path(__file__).with_name("compositions.json").read_text(encoding="utf-8"))
HOPS: dict[str, list[str]] = _TABLES["hops"]
"""Relations whose answer can be described by the subject, as in "the captain of {s}"."""
LISTS: dict[str, dict[str, str | list[str]]] = _TABLES["lists"]
CLAUSES: dict[str, str] = _TABLES["clauses"]
NUMBERS = {2: "two", 3: "three", 4: "four"}


class Listed(NamedTuple):
    """Several values that belong to a subject; `name` is a key of `LISTS`."""

    subject: str
    name: str
    items: tuple[str, ...]


@cache
def _kept(table: str, key: str, trained: bool) -> tuple[str, ...]:
    forms = LISTS[key][table] if table in ("statements", "further", "questions") else _TABLES[table]
    return kept(tuple(forms), trained)


@cache
def lists_of_kind(kind: str) -> tuple[str, ...]:
    """The names of the lists that a subject of this kind can have."""
    return tuple(name for name, one in LISTS.items() if one["subject"] == kind)


def enumeration(items: Sequence[str]) -> str:
    """`wool, clay pipes and honey`."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def drawn_list(subject: str, name: str, random: Random) -> Listed:
    """Two to four values for a subject, drawn from the world."""
    pool = [value for value in pools()[str(LISTS[name]["item"])] if value != subject]
    return Listed(subject, name, tuple(random.sample(pool, random.choice((2, 3, 3, 4)))))


def rivals(listed: Listed, fact: Fact) -> bool:
    """Whether a fact could be taken for one more value of the list, as a dish for one on the menu."""
    return fact.subject == listed.subject and fact.relation.answer == LISTS[listed.name]["item"]


def list_statement(listed: Listed, writer: Writer) -> str:
    """One or two sentences that name all values."""
    apart = len(listed.items) > 2 and writer.random.random() < 0.4
    together = listed.items[:-1] if apart else listed.items
    form = choose(writer.pick(_kept("statements", listed.name, writer.trained)), writer.random)
    before, after = statement_frame(writer.random, writer.trained)
    text = sentence_start(before + fill(form, {"s": listed.subject, "l": enumeration(together)}) + after)
    if apart:
        more = choose(writer.pick(_kept("further", listed.name, writer.trained)), writer.random)
        text += " " + sentence_start(fill(more, {"s": listed.subject, "a": listed.items[-1]})) + "."
    return text


def list_question(listed: Listed, writer: Writer) -> str:
    """A question that is answered by all values."""
    form = choose(writer.pick(_kept("questions", listed.name, writer.trained)), writer.random)
    before, after = question_frame(writer.random, writer.trained)
    number = NUMBERS[len(listed.items)]
    return sentence_start(before + fill(form, {"s": listed.subject, "n": number}) + after)


def hop_question(first: Fact, second: Fact, writer: Writer) -> str:
    """A question about `second` that calls its subject by `first`: "Where does the captain of the Gull live?"."""
    return writer.question(second, fill(writer.pick(HOPS[first.relation.name]), {"s": first.subject}))


def surrounded(block: str, facts: Sequence[Fact], writer: Writer) -> str:
    """`block` between sentences that state the facts."""
    place = writer.random.randint(0, len(facts))
    parts = [writer.document(facts[:place]), block, writer.document(facts[place:])]
    return " ".join(part for part in parts if part)


def key_of(fact: Fact) -> str:
    """The JSON key of a fact: `home port` for the relation `home_port`."""
    return _TABLES["keys"].get(fact.relation.name, fact.relation.name)


def key_place(fact: Fact) -> int:
    """Where its key stands in a JSON object: the place of the relation among those of its kind."""
    return of_kind(fact.relation.subject).index(fact.relation)


def json_request(facts: Sequence[Fact], writer: Writer) -> str:
    """A wish for the facts, all about one subject, as a JSON object."""
    keys = enumeration([f'"{key_of(fact)}"' for fact in facts])
    form = choose(writer.pick(_kept("json", "", writer.trained)), writer.random)
    return sentence_start(fill(form, {"s": facts[0].subject, "k": keys}))


def json_answer(facts: Sequence[Fact]) -> str:
    """`{"birthplace": "Oakmere", "profession": "baker"}`."""
    return json.dumps({key_of(fact): fact.answer for fact in facts}, ensure_ascii=False)


def summary_request(writer: Writer) -> str:
    """A wish for a summary of one sentence."""
    return choose(writer.pick(_kept("summary", "", writer.trained)), writer.random)


def summary_of(facts: Sequence[Fact]) -> str:
    """One sentence with all facts, which are about one subject."""
    return sentence_start(f"{facts[0].subject} {enumeration([clause_of(fact) for fact in facts])}.")


def clause_of(fact: Fact) -> str:
    """What a summary says of a fact: `was born in Oakmere`."""
    return fill(CLAUSES[fact.relation.name], {"a": fact.answer})


@cache
def hop_relations(kind: str) -> tuple[str, ...]:
    """The lasting relations of a kind that lead to a person or a town about which more is known."""
    return tuple(relation.name for relation in of_kind(kind) if relation.name in HOPS)
