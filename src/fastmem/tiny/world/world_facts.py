"""The facts of the invented world: one answer for each subject and relation, and which part measures them."""

from functools import cache
from random import Random
from typing import Literal, NamedTuple

from fastmem.tiny.world.world_mentions import mentions
from fastmem.tiny.world.world_names import SEED, SUBJECTS, new_subjects, pools, year
from fastmem.tiny.world.world_relations import PASSING, RELATIONS, Relation

Part = Literal["dev", "test"]
PARTS: tuple[Part, ...] = ("dev", "test")


class Fact(NamedTuple):
    """`answer` is the `relation` of `subject`, as in the birthplace of a person."""

    subject: str
    relation: Relation
    answer: str


def answer_of(relation: Relation, subject: str, random: Random) -> str:
    """An answer from the world, drawn by `random`; none that stands in the subject's name."""
    if relation.answer == "year":
        return year(relation.name, random)
    pool = pools()[relation.answer]
    while True:
        answer = pool[int(random.random() * len(pool))]
        if answer.lower() not in subject.lower():
            return answer


def _facts_of(subjects: dict[str, tuple[str, ...]], relations: tuple[Relation, ...], seed: int) -> tuple[Fact, ...]:
    random = Random(seed)
    return tuple(
        Fact(subject, relation, answer_of(relation, subject, random))
        for relation in relations
        for subject in subjects[relation.subject]
    )


@cache
def facts() -> tuple[Fact, ...]:
    """What the model learns by heart: one answer per lasting relation of each subject (1,530 facts)."""
    return _facts_of(pools(), RELATIONS, SEED + 2)


@cache
def new_facts() -> tuple[Fact, ...]:
    """Facts about subjects that no training text mentions, with answers from the world."""
    return _facts_of(new_subjects(), RELATIONS, SEED + 3)


@cache
def passing_facts() -> tuple[Fact, ...]:
    """What documents of one day could say about known subjects; measured only."""
    return _facts_of(pools(), PASSING, SEED + 4)


@cache
def about(subject: str) -> tuple[Fact, ...]:
    """All lasting facts about a known or a new subject."""
    return _by_subject().get(subject, ())


@cache
def _by_subject() -> dict[str, tuple[Fact, ...]]:
    found: dict[str, list[Fact]] = {}
    for fact in facts() + new_facts():
        found.setdefault(fact.subject, []).append(fact)
    return {subject: tuple(group) for subject, group in found.items()}


@cache
def passing_about(subject: str) -> tuple[Fact, ...]:
    """What a document of the day could say about a known subject; measured only."""
    return tuple(fact for fact in passing_facts() if fact.subject == subject)


@cache
def _part_of_subject() -> dict[str, Part]:
    names = [pool[kind] for pool in (pools(), new_subjects()) for kind in SUBJECTS]
    return {name: PARTS[index % 2] for pool in names for index, name in enumerate(pool)}


def part_of(subject: str) -> Part:
    """`dev` or `test`. Each subject is in one part, and each kind is split in halves."""
    return _part_of_subject()[subject]


def swapped(fact: Fact, random: Random) -> Fact:
    """`fact` with another answer of the same kind; neither answer contains the other."""
    while True:
        answer = answer_of(fact.relation, fact.subject, random)
        if not mentions(answer, fact.answer) and not mentions(fact.answer, answer):
            return fact._replace(answer=answer)
