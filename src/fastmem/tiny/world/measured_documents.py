"""Makes the measured rows about one fact: documents that agree with it, contradict it, or are about something else.

A maker returns None when its draws do not have the promised property, such as a swapped document that mentions the
original answer in another sentence; `world_splits.py` then draws again.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from fastmem.tiny.world.world_cast import Cast
from fastmem.tiny.world.world_facts import Fact, about, facts, passing_about, swapped
from fastmem.tiny.world.world_formats import UNANSWERABLE, Example
from fastmem.tiny.world.world_mentions import mentions
from fastmem.tiny.world.world_names import new_subjects, pools
from fastmem.tiny.world.world_relations import Order
from fastmem.tiny.world.world_writer import Writer, with_others

MAX_SENTENCES = 12
LONG_WORDS = 380


class Row(NamedTuple):
    """What an example is made from. name: tells rows of one subject apart, the relation where there is one."""

    subject: str
    name: str
    facts: tuple[Fact, ...]
    known: bool = True


Maker = Callable[[Row, Random], Example | None]
Told = Callable[[Fact, Fact], Fact]  # (the fact, the same with another answer) -> what a document tells


def others_about(
    fact: Fact, random: Random, without: tuple[str, ...], known: bool = True, passing: bool = False
) -> Callable[[], Fact]:
    """Draws other facts that mention none of the texts in `without`.

    known: about subjects that the model learned about, otherwise about new ones. passing: also what changes daily.
    """
    pool = pools() if known else new_subjects()
    cast = Cast(
        fact.subject,
        fact.relation.subject,
        random,
        lambda subject, kind: (*about(subject), *passing_about(subject)) if passing else about(subject),
        lambda kind: random.choice(pool[kind]),
    )
    unwanted = tuple(text.lower() for text in without)

    def others() -> Fact:
        while True:
            other = cast.other(fact)
            text = f"{other.subject} {other.answer}".lower()
            if not any(each in text for each in unwanted):
                return other

    return others


def sentence_count(random: Random) -> int:
    """1 to 12 sentences, evenly."""
    return random.randint(1, MAX_SENTENCES)


def example(row: Row, context: str, question: str, answer: str, original: str = "", **more: str) -> Example:
    """An example without its id."""
    return Example("", context, question, (answer,), (original,) if original else (), **more)  # type: ignore[arg-type]


def _telling(row: Row, random: Random, order: Order, told: Told) -> Example | None:
    """A document that tells what `told` chooses of the fact and the fact with another answer; it mentions one only."""
    fact = row.facts[0]
    other = swapped(fact, random)
    writer = Writer(random, trained=False)
    question = writer.question(fact)
    stated = told(fact, other)
    draw = others_about(fact, random, (fact.answer, other.answer), row.known)
    group = with_others(stated, draw, sentence_count(random), random)
    context = writer.document(group, (stated,), order)
    hidden = other if stated is fact else fact
    if not mentions(context, stated.answer) or mentions(context, hidden.answer):
        return None
    return example(row, context, question, stated.answer, fact.answer if row.known else "")


def alone(row: Row, random: Random) -> Example | None:
    """The question alone."""
    fact = row.facts[0]
    return example(row, "", Writer(random, trained=False).question(fact), fact.answer, fact.answer)


def agreeing(row: Row, random: Random) -> Example | None:
    """A document that states the fact. The draws are those of `swap`, which must be possible as well."""
    return _one_of_two(row, random, lambda fact, other: fact, lambda fact, other: other)


def swap(row: Row, random: Random) -> Example | None:
    """The document of `agreeing` with another answer."""
    return _one_of_two(row, random, lambda fact, other: other, lambda fact, other: fact)


def _one_of_two(row: Row, random: Random, told: Told, otherwise: Told) -> Example | None:
    """What tells `told`, if the same draws also give a document that tells `otherwise`."""
    state = random.getstate()
    if _telling(row, random, "subject", otherwise) is None:
        return None
    random.setstate(state)
    return _telling(row, random, "subject", told)


def turned(row: Row, random: Random) -> Example | None:
    """A document that contradicts the fact in a sentence that names the answer before the subject."""
    return _telling(row, random, "answer", lambda fact, other: other)


def new(row: Row, random: Random) -> Example | None:
    """A document about a subject that no training text mentions."""
    return _telling(row, random, "subject", lambda fact, other: fact)


def irrelevant(row: Row, random: Random) -> Example | None:
    """A document that mentions neither the subject nor the answer, which the model learned."""
    fact = row.facts[0]
    writer = Writer(random, trained=False)
    draw = others_about(fact, random, (fact.subject, fact.subject.split()[-1], fact.answer))
    context = writer.document(with_others(draw(), draw, sentence_count(random), random))
    if mentions(context, fact.subject) or mentions(context, fact.answer):
        return None
    return example(row, context, writer.question(fact), fact.answer, fact.answer)


def unanswerable(row: Row, random: Random) -> Example | None:
    """A document that lacks the fact; in half of the cases, it says something else about the subject."""
    fact = row.facts[0]
    writer = Writer(random, trained=False)
    named = random.random() < 0.5
    without = (fact.answer,) if named else (fact.answer, fact.subject)
    any_other = others_about(fact, random, without, row.known, passing=fact.relation.passing)

    def draw() -> Fact:
        while (other := any_other()).relation is fact.relation and fact.subject in (other.subject, other.answer):
            pass
        return other

    first = (
        random.choice([one for one in about(fact.subject) if one.relation is not fact.relation]) if named else draw()
    )
    context = writer.document(with_others(first, draw, sentence_count(random), random))
    return example(row, context, writer.question(fact), UNANSWERABLE)


def disagreeing(row: Row, random: Random) -> Example | None:
    """Two documents, one of which contradicts the fact; the answer is that of the second."""
    fact = row.facts[0]
    other = swapped(fact, random)
    writer = Writer(random, trained=False)
    question = writer.question(fact)
    pair = [fact, other] if random.random() < 0.5 else [other, fact]
    draw = others_about(fact, random, (fact.answer, other.answer))
    documents = [
        writer.document(with_others(stated, draw, random.randint(1, 5), random), (stated,), "subject")
        for stated in pair
    ]
    if any(mentions(text, wrong.answer) for text, wrong in zip(documents, reversed(pair), strict=True)):
        return None
    first, second = (stated.answer for stated in pair)
    return example(row, "\n\n".join(documents), question, second, fact.answer, first=first, second=second)


def contradicting_itself(row: Row, random: Random) -> Example | None:
    """A document that states two answers, neither of which the model learned; the answer is the last."""
    fact = row.facts[0]
    first, second = swapped(fact, random), swapped(fact, random)
    if mentions(first.answer, second.answer) or mentions(second.answer, first.answer):
        return None
    writer = Writer(random, trained=False)
    question = writer.question(fact)
    draw = others_about(fact, random, (fact.answer, first.answer, second.answer))
    groups = [[draw() for _ in range(random.randint(0, 3))] for _ in range(3)]
    told = [*groups[0], first, *groups[1], second, *groups[2]]
    keys = [(one.subject, one.relation) for one in told if one not in (first, second)]
    if len(set(keys)) < len(keys) or (fact.subject, fact.relation) in keys:
        return None
    context = writer.document(told, (first, second), "subject")
    if mentions(context, fact.answer):
        return None
    return example(row, context, question, second.answer, fact.answer, first=first.answer, second=second.answer)


def long(row: Row, random: Random, words: int = LONG_WORDS) -> Example | None:
    """A document of about `words` words that contradicts the fact in one sentence."""
    fact = row.facts[0]
    other = swapped(fact, random)
    writer = Writer(random, trained=False)
    question = writer.question(fact)
    texts = [writer.document([other], (other,), "subject")]
    told, length = {(fact.subject, fact.relation)}, 0
    while length < words:
        draw = others_about(random.choice(facts()), random, (fact.answer, other.answer))
        group = [one for one in with_others(draw(), draw, 5, random) if (one.subject, one.relation) not in told]
        if not group:
            continue
        told |= {(one.subject, one.relation) for one in group}
        texts.append(writer.document(group))
        length += len(texts[-1].split())
    place = random.randrange(len(texts))
    context = " ".join([*texts[1 : place + 1], texts[0], *texts[place + 1 :]])
    if mentions(context, fact.answer):
        return None
    return example(row, context, question, other.answer, fact.answer)
