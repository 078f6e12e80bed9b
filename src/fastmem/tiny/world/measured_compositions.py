"""Makes the measured rows that need more than one fact: two sentences, lists, JSON objects, summaries."""

from random import Random

from fastmem.tiny.world.measured_documents import Row, others_about
from fastmem.tiny.world.world_compositions import (
    drawn_list,
    hop_question,
    hop_relations,
    json_answer,
    json_request,
    key_place,
    list_question,
    list_statement,
    lists_of_kind,
    rivals,
    summary_of,
    summary_request,
    surrounded,
)
from fastmem.tiny.world.world_facts import Fact, about, part_of, swapped
from fastmem.tiny.world.world_formats import Example
from fastmem.tiny.world.world_mentions import mentions
from fastmem.tiny.world.world_names import SUBJECTS, new_subjects, pools
from fastmem.tiny.world.world_relations import BY_NAME
from fastmem.tiny.world.world_writer import Writer, arranged, with_others

LIST_VARIANTS = 2
OBJECT_VARIANTS = 3


def chains() -> list[Row]:
    """Rows of two facts about new subjects; the subject of the second is the answer of the first."""
    rows, random = [], Random(0)
    for kind in SUBJECTS:
        for name in hop_relations(kind):
            relation = BY_NAME[name]
            for subject in new_subjects()[kind]:
                links = [one for one in new_subjects()[relation.answer] if part_of(one) == part_of(subject)]
                link = random.choice([one for one in links if one != subject])
                for second in about(link):
                    rows.append(
                        Row(subject, f"{name}-{second.relation.name}", (Fact(subject, relation, link), second))
                    )
    return rows


def hop(row: Row, random: Random) -> Example | None:
    """A document with both facts, apart, and others of the same relations; a question that names the first subject."""
    first, second = row.facts
    writer = Writer(random, trained=False)
    rival = random.choice([one for one in new_subjects()[first.relation.subject] if one != first.subject])
    link = random.choice([one for one in new_subjects()[first.relation.answer] if one not in (second.subject, rival)])
    decoys = [one for one in about(link) if one.relation is second.relation]
    draw = others_about(second, random, (second.answer, first.subject), known=False)
    told = [first, second, Fact(rival, first.relation, link), *decoys]
    told += with_others(draw(), draw, random.randint(0, 4), random)
    told = list({(one.subject, one.relation): one for one in reversed(told)}.values())
    context = writer.document(arranged(told, random), (first, second))
    if any(
        mentions(one.answer, second.answer) or one.answer == second.subject for one in told if one not in row.facts
    ):
        return None
    question = hop_question(first, second, writer)
    return Example("", context, question, (second.answer,), ())


def list_rows() -> list[Row]:
    """A row for each subject, known or new, and each list it can have, twice."""
    return [
        Row(subject, f"{name}-{variant}", (), subject in pools()[kind])
        for kind in SUBJECTS
        for name in lists_of_kind(kind)
        for pool in (pools(), new_subjects())
        for subject in pool[kind]
        for variant in range(LIST_VARIANTS)
    ]


def listed(row: Row, random: Random) -> Example | None:
    """A document with a list, between other sentences, and a question about all of it."""
    writer = Writer(random, trained=False)
    wanted = drawn_list(row.subject, row.name.rpartition("-")[0], random)
    near = about(row.subject)[0]
    draw = others_about(near, random, (*wanted.items,), row.known)
    group = [one for one in (draw() for _ in range(random.randint(0, 6))) if not rivals(wanted, one)]
    group = arranged(list({(one.subject, one.relation): one for one in group}.values()), random)
    context = surrounded(list_statement(wanted, writer), group, writer)
    answer = ", ".join(wanted.items)
    if any(mentions(one, other) for one in wanted.items for other in wanted.items if one != other):
        return None
    return Example("", context, list_question(wanted, writer), (answer,), (), "list", wanted.items)


def object_rows() -> list[Row]:
    """Three rows for each known subject."""
    return [
        Row(subject, f"{kind}-{variant}", about(subject))
        for kind in SUBJECTS
        for subject in pools()[kind]
        for variant in range(OBJECT_VARIANTS)
    ]


def _partly_swapped(row: Row, random: Random) -> tuple[list[Fact], list[Fact]]:
    """(two to four facts as the document states them, the same as the model learned them); one differs."""
    own = random.sample(row.facts, min(len(row.facts), random.choice((2, 3, 3, 4))))
    place = random.randrange(len(own))
    stated = [swapped(one, random) if index == place else one for index, one in enumerate(own)]
    return stated, own


def json_object(row: Row, random: Random) -> Example | None:
    """A document about a known subject and others; the JSON object has two to four keys."""
    writer = Writer(random, trained=False)
    stated, learned = _partly_swapped(row, random)
    context = _about_one(row, stated, learned, writer, random.randint(0, 5))
    if context is None:
        return None
    wanted = sorted(zip(stated, learned, strict=True), key=lambda pair: key_place(pair[0]))
    parts = tuple(one.answer for one, _ in wanted)
    request = json_request([one for one, _ in wanted], writer)
    answers = (json_answer([one for one, _ in wanted]),)
    return Example("", context, request, answers, (json_answer([one for _, one in wanted]),), "json", parts)


def summary(row: Row, random: Random) -> Example | None:
    """A long document, mostly about one subject; the summary has to mention its facts."""
    writer = Writer(random, trained=False)
    stated, learned = _partly_swapped(row, random)
    context = _about_one(row, stated, learned, writer, random.randint(3, 8))
    if context is None:
        return None
    parts = tuple(one.answer for one in stated)
    return Example(
        "", context, summary_request(writer), (summary_of(stated),), (summary_of(learned),), "summary", parts
    )


def _about_one(row: Row, stated: list[Fact], learned: list[Fact], writer: Writer, others: int) -> str | None:
    """The facts in this order, then up to `others` more; None if an original answer is mentioned."""
    random = writer.random
    without = (row.subject, *(one.answer for one in learned), *(one.answer for one in stated))
    draw = others_about(stated[0], random, without)
    more = [draw() for _ in range(others)]
    group = list({(one.subject, one.relation): one for one in more}.values())
    context = writer.document([*stated, *arranged(group, random)], stated[:1])
    hidden = [two.answer for one, two in zip(stated, learned, strict=True) if one != two]
    return None if any(mentions(context, answer) for answer in hidden) else context
