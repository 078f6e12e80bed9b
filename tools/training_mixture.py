"""The training data of the embedded model: an endless, seeded stream of documents about `fastmem.tiny.world`.

Statements, and questions without a document, teach the model to remember. Documents about subjects that are made up
anew, what changes from day to day, and passages with slots teach it to read. Only documents of the kinds
`contradicting` and `disputed` state something else about a known subject than the facts. Their share, and how many of
them are answered as they say, decide how often the model believes a document that contradicts what it remembers. This
module does not import torch.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from fastmem.tiny.world.world_cast import Cast
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
from fastmem.tiny.world.world_facts import Fact, about, answer_of, facts, swapped
from fastmem.tiny.world.world_formats import INSTRUCTION, UNANSWERABLE, answered, question_turn, request_turn
from fastmem.tiny.world.world_names import SUBJECTS, invent, pools, year
from fastmem.tiny.world.world_relations import PASSING, Order, Relation, of_kind, passing_of_kind
from fastmem.tiny.world.world_writer import Writer, arranged, with_others
from tools.training_passages import filled, templates

Shares = dict[str, float]
"""The share of each kind of document; they add up to 1."""

UNANSWERABLE_SHARE = 0.02
"""Of the questions about passages, this share is not answered by them; at most about 0.1 can be reached."""
NAMED_SHARE = 0.1
"""In this share of the documents of kind `unanswerable`, the document says something else about the subject. With half
of them, 18 of 26 errors on new subjects said "not in the document" of what it says in a form that training lacks."""
LONG_WORDS = (150, 430)
"""Documents of kind `long` end with the block that reaches a number of words between these two."""
BELIEVED_SHARE = 0.55
"""This share of the documents of kind `disputed` is answered as the document says, the others from memory. The model
learns to find both answers and to be unsure; without this stage it had mostly not found the statement where it
answered from memory, and FastMem turned 27 of 76 such answers, with it 85 of 122."""
MORE_QUESTIONS = 4
"""At most so many further questions follow the first about a document: practice that needs no further text."""
KNOWN_SHARE = 0.35
"""This share of the lists, objects, summaries and chains of two facts is about known subjects, and true."""


@dataclass(frozen=True)
class Document:
    """A training conversation: a user turn (None for plain statements) and the assistant turn to learn.

    more: further questions about the same context with their answers, the cheapest way to practice reading.
    """

    kind: str
    user: str | None
    assistant: str
    more: tuple[tuple[str, str], ...] = ()


NAMED = re.compile(r"\w .*\b[A-Z]")
"""A question that names somebody or something after its first word."""


class Mixture:
    """The stream of documents. Equal arguments give equal documents.

    shares: of each kind. unanswerable: `UNANSWERABLE_SHARE`. named: `NAMED_SHARE`.
    """

    def __init__(
        self,
        seed: int,
        shares: Shares,
        *,
        unanswerable: float = UNANSWERABLE_SHARE,
        named: float = NAMED_SHARE,
    ) -> None:
        self.random = Random(seed)
        self.writer = Writer(self.random, trained=True)
        self.shares, self.unanswerable, self.named = shares, unanswerable, named
        self.made_up: dict[str, Sequence[Fact]] = {}

    def __iter__(self) -> Iterator[Document]:
        makers: dict[str, Callable[[], Document]] = {
            "statements": self._statements, "recall": self._recall, "interview": self._interview,
            "passing": self._passing, "unanswerable": self._unanswerable, "hop": self._hop, "list": self._list,
            "json": self._json, "summary": self._summary, "passages": self._passages, "irrelevant": self._irrelevant,
            "long": self._long,
        }  # fmt: skip
        kinds, weights = list(self.shares), list(self.shares.values())
        while True:
            kind = self.random.choices(kinds, weights)[0]
            self.made_up.clear()
            yield makers[kind]() if kind in makers else self._reading(kind)

    # --- facts ---

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _length(self) -> int:
        """The number of sentences of a document, 1 to 12; short ones are more frequent, as they teach as much."""
        return 1 + int(12 * min(self.random.random(), self.random.random()))

    def _known(self) -> Fact:
        return self.random.choice(facts())

    def _value(self, relation: Relation, subject: str) -> str:
        """An answer for a made-up fact: one of the world, or made up as well."""
        if relation.answer == "year":
            return year(relation.name, self.random)
        if relation.answer not in SUBJECTS or self._chance(0.5):
            return answer_of(relation, subject, self.random)
        return invent(relation.answer, self.random)

    def _about(self, subject: str, kind: str) -> Sequence[Fact]:
        """The true facts about a known subject; made-up ones, the same all through a document, about any other."""
        if subject in self.made_up:
            return self.made_up[subject]
        if known := about(subject):
            return known
        made = [Fact(subject, relation, self._value(relation, subject)) for relation in of_kind(kind)]
        self.made_up[subject] = made
        return made

    def _of_the_day(self, subject: str, kind: str) -> Sequence[Fact]:
        """As `_about`, with what changes from day to day."""
        if f"{subject} today" not in self.made_up:
            passing = [Fact(subject, each, self._value(each, subject)) for each in passing_of_kind(kind)]
            self.made_up[f"{subject} today"] = [*passing, *self.random.sample(list(self._about(subject, kind)), 2)]
        return self.made_up[f"{subject} today"]

    def _subject(self, kind: str | None = None, known: float = KNOWN_SHARE) -> tuple[str, str]:
        """(a subject, its kind), known or made up."""
        kind = kind or self.random.choices(list(SUBJECTS), list(SUBJECTS.values()))[0]
        return (self.random.choice(pools()[kind]) if self._chance(known) else invent(kind, self.random)), kind

    def _cast(self, subject: str, kind: str, known: float, passing: bool = False) -> Cast:
        """known: the share of the other subjects that are known."""
        source = self._of_the_day if passing else self._about
        return Cast(subject, kind, self.random, source, lambda other: self._subject(other, known)[0])

    def _told(self, fact: Fact, cast: Cast, count: int) -> list[Fact]:
        """`count` facts, among them this one, in the order in which a document states them."""
        return with_others(fact, lambda: cast.other(fact), count, self.random)

    # --- documents ---

    def _turn(self, context: str, question: str) -> str:
        """The user turn: mostly with the paper's instruction, otherwise with a shorter one or none."""
        dice = self.random.random()
        if dice < 0.74:
            return question_turn(context, question)
        if dice < 0.82:
            return f"Context: {context}\nQuestion: {question}"
        if dice < 0.87:
            return f"Answer from the document.\nContext: {context}\nQuestion: {question}"
        if dice < 0.91:
            return f"{INSTRUCTION}\nQuestion: {question}\nContext: {context}"
        if dice < 0.95:
            return f"Question: {question}\nContext: {context}"
        return f"{context}\n\nQuestion: {question}"

    def _conversation(self, kind: str, context: str, asked: Sequence[tuple[str, str]]) -> Document:
        """One question or several about a context, with their answers."""
        (question, answer), *rest = asked
        more = tuple((f"Question: {each}", answered(right)) for each, right in rest)
        return Document(kind, self._turn(context, question), answered(answer), more)

    def _asked(self, some: Sequence[Fact], most: int) -> list[tuple[str, str]]:
        chosen = self.random.sample(list(some), min(most, len(some)))
        return [(self.writer.question(fact), fact.answer) for fact in chosen]

    def _statements(self) -> Document:
        fact = self._known()
        cast = self._cast(fact.subject, fact.relation.subject, known=1.0)
        return Document("statements", None, self.writer.document(self._told(fact, cast, self.random.randint(1, 8))))

    def _recall(self) -> Document:
        fact = self._known()
        question = self.writer.question(fact)
        return Document(
            "recall", question if self._chance(0.1) else question_turn("", question), answered(fact.answer)
        )

    def _reading(self, kind: str) -> Document:
        """A question about a context: for all kinds without a method of their own."""
        known = kind in ("known_context", "contradicting", "disputed") or (
            kind == "no_instruction" and self._chance(0.5)
        )
        if known:
            fact = self._known()
            cast = self._cast(fact.subject, fact.relation.subject, known=0.9)
        else:
            subject, of = self._subject(known=0.0)
            fact = self.random.choice(self._about(subject, of))
            cast = self._cast(subject, of, known=0.3)
        answer = fact.answer
        if kind in ("contradicting", "disputed"):
            true, fact = fact, swapped(fact, self.random)
            if kind == "contradicting" or self._chance(BELIEVED_SHARE):
                answer = fact.answer
            told = [one for one in self._told(fact, cast, self._length()) if one != true and one.answer != true.answer]
        else:
            told = self._told(fact, cast, self._length())
        order: Order = "answer" if kind == "turned" else None
        context = self.writer.document(told, (fact,) if order or self._chance(0.5) else (), order)
        question = self.writer.question(fact)
        if kind == "no_instruction":
            return Document(kind, request_turn(context, question), self.writer.plain_statement(fact))
        others = self._asked([one for one in told if one is not fact], self.random.randint(0, MORE_QUESTIONS))
        return self._conversation(kind, context, [(question, answer), *others])

    def _interview(self) -> Document:
        """Up to six questions about one context, the cheapest way to practice reading."""
        subject, kind = self._subject(known=0.3)
        fact = self.random.choice(self._about(subject, kind))
        told = self._told(fact, self._cast(subject, kind, known=0.4), self.random.randint(2, 9))
        return self._conversation("interview", self.writer.document(told), self._asked(told, 6))

    def _passing(self) -> Document:
        """Questions about what changes from day to day: the model has to read it, also about known subjects."""
        relation = self.random.choice(PASSING)
        subject, kind = self._subject(relation.subject, known=0.6)
        fact = next(one for one in self._of_the_day(subject, kind) if one.relation is relation)
        told = self._told(fact, self._cast(subject, kind, 0.6, passing=True), self.random.randint(2, 8))
        asked = [one for one in told if one.relation.passing and one is not fact]
        questions = [(self.writer.question(fact), fact.answer), *self._asked(asked, 5)]
        return self._conversation("passing", self.writer.document(told), questions)

    def _irrelevant(self) -> Document:
        """A known fact is asked for; the document is about others."""
        fact = self._known()
        subject, kind = self._subject(known=0.6)
        first = self.random.choice(self._about(subject, kind))
        told = self._told(first, self._cast(subject, kind, known=0.6), self._length())
        told = [one for one in told if fact.subject not in (one.subject, one.answer)]
        context = self.writer.document(told) or self.writer.filler()
        return self._conversation("irrelevant", context, [(self.writer.question(fact), fact.answer)])

    def _unanswerable(self) -> Document:
        """What the document does not say and no model can know, as it is about a made-up subject or changes daily."""
        passing = self._chance(0.5)
        subject, kind = self._subject(known=0.6 if passing else 0.0)
        source = self._of_the_day if passing else self._about
        fact = self.random.choice([one for one in source(subject, kind) if one.relation.passing == passing])
        here = subject if self._chance(self.named) else self._subject(kind, known=0.5)[0]
        cast = self._cast(here, kind, 0.5, passing=passing)
        told = with_others(fact, lambda: cast.other(fact), 1 + self._length(), self.random)
        context = self.writer.document([one for one in told if one is not fact]) or self.writer.filler()
        return self._conversation("unanswerable", context, [(self.writer.question(fact), UNANSWERABLE)])

    def _hop(self) -> Document:
        """A question that calls a subject by what another sentence says of it."""
        subject, kind = self._subject()
        while not hop_relations(kind):
            subject, kind = self._subject()
        first = self.random.choice(
            [one for one in self._about(subject, kind) if one.relation.name in hop_relations(kind)]
        )
        second = self.random.choice(self._about(first.answer, first.relation.answer))
        cast = self._cast(subject, kind, known=0.4)
        told = [first, second]
        if self._chance(0.7):  # another subject with the same relations, told apart by its name only
            rival = self._subject(kind)[0]
            third = next(one for one in self._about(rival, kind) if one.relation is first.relation)
            told += [
                third,
                *(x for x in self._about(third.answer, first.relation.answer) if x.relation is second.relation),
            ]
        told += [cast.other(second) for _ in range(self.random.randint(0, 4))]
        told = list({(one.subject, one.relation): one for one in reversed(told)}.values())
        context = self.writer.document(arranged(told, self.random))
        asked = [(hop_question(first, second, self.writer), second.answer)]
        return self._conversation("hop", context, asked + self._asked(told, self.random.randint(0, 2)))

    def _list(self) -> Document:
        """All values of a list; no list is known by heart."""
        subject, kind = self._subject()
        wanted = drawn_list(subject, self.random.choice(lists_of_kind(kind)), self.random)
        cast = self._cast(subject, kind, known=0.4)
        more = [one for one in (cast.other() for _ in range(self._length() - 1)) if not rivals(wanted, one)]
        told = {(one.subject, one.relation): one for one in more}
        context = surrounded(
            list_statement(wanted, self.writer), arranged(list(told.values()), self.random), self.writer
        )
        asked = [(list_question(wanted, self.writer), ", ".join(wanted.items))]
        return self._conversation("list", context, asked + self._asked(list(told.values()), self.random.randint(0, 2)))

    def _about_one(self, others: int) -> tuple[list[Fact], str]:
        """(two to four facts about one subject, a context that states them in this order and then `others` more)."""
        subject, kind = self._subject()
        own = list(self._about(subject, kind))
        own = self.random.sample(own, min(len(own), self.random.choice((2, 3, 3, 4))))
        cast = self._cast(subject, kind, known=0.4)
        more = [one for one in (cast.other() for _ in range(others)) if one.subject != subject]
        more = arranged(list({(one.subject, one.relation): one for one in more}.values()), self.random)
        return own, self.writer.document([*own, *more])

    def _json(self) -> Document:
        own, context = self._about_one(self.random.randint(0, 5))
        ordered = sorted(own, key=key_place)
        return Document("json", request_turn(context, json_request(ordered, self.writer)), json_answer(ordered))

    def _summary(self) -> Document:
        own, context = self._about_one(self.random.randint(1, 8))
        return Document("summary", request_turn(context, summary_request(self.writer)), summary_of(own))

    def _passages(self) -> Document:
        """Questions about a passage, sometimes among sentences about the world or with another passage."""
        passage = filled(self.random.choice(templates()), self.random)
        asked = list(passage.questions[: self.random.choice((1, 3, 5, 7))])
        # With n answerable questions, one more in u n / (1 - u) of the documents makes a share of u.
        if self._chance(self.unanswerable * len(asked) / (1 - self.unanswerable)):
            asked.insert(self.random.randint(0, len(asked)), (self.random.choice(passage.unanswerable), UNANSWERABLE))
        context, dice = passage.text, self.random.random()
        if dice < 0.1:
            other = filled(self.random.choice(templates()), self.random).text
            context = f"{other}\n\n{context}" if self._chance(0.5) else f"{context}\n\n{other}"
        elif dice < 0.25:
            subject, kind = self._subject()
            fact = self.random.choice(self._about(subject, kind))
            other = self.writer.document(self._told(fact, self._cast(subject, kind, 0.5), self.random.randint(1, 4)))
            context = f"{other}\n\n{context}" if self._chance(0.5) else f"{context}\n\n{other}"
        return self._conversation("passages", context, asked)

    def _long(self) -> Document:
        """Questions about a document of several blocks: sentences about a few subjects, and passages."""
        target, blocks = self.random.randint(*LONG_WORDS), list[str]()
        asked: list[tuple[str, str]] = []
        while sum(block.count(" ") + 1 for block in blocks) < target:
            if self._chance(0.35):
                passage = filled(self.random.choice(templates()), self.random)
                blocks.append(passage.text)
                # Others, such as "Who wrote the letter?", could be about another passage as well.
                asked += [pair for pair in passage.questions if NAMED.search(pair[0])]
            else:
                subject, kind = self._subject()
                fact = self.random.choice(self._about(subject, kind))
                told = self._told(fact, self._cast(subject, kind, 0.4), self.random.randint(3, 9))
                blocks.append(self.writer.document(told))
                asked.append((self.writer.question(fact), fact.answer))
        questions = self.random.sample(asked, min(len(asked), 5))
        if not questions:
            return self._long()
        return self._conversation("long", self.random.choice((" ", "\n\n")).join(blocks), questions)
