"""The training data of the embedded model: an endless, seeded stream of documents about the world of `world.py`.

Plain statements and questions without context teach the model to remember. Contexts about newly made-up subjects, and
about things that change from day to day, teach it to read. Only the few documents of kind `contradicting`, in the last
three stages, contradict facts of the world: their share decides how often the model believes a context that
contradicts what it remembers. This module does not import torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from fastmem.tiny.phrases import QUESTION_FRAMES, RELATIONS, Relation
from fastmem.tiny.world import (
    INSTRUCTION,
    MAX_SENTENCES,
    Fact,
    Writer,
    distractor,
    facts,
    invent,
    mentions,
    pools,
    reserved_words,
    swapped,
    words_of,
)

Shares = dict[str, float]

REMEMBER: Shares = {
    "statements": 0.30, "recall": 0.28, "known_context": 0.22, "new_context": 0.17, "no_instruction": 0.03
}  # fmt: skip
READ: Shares = {
    "statements": 0.12, "recall": 0.13, "known_context": 0.15, "new_context": 0.57, "no_instruction": 0.03
}  # fmt: skip
BOTH: Shares = {
    "statements": 0.10, "recall": 0.10, "known_context": 0.12, "new_context": 0.08, "interview": 0.32, "passing": 0.25,
    "no_instruction": 0.03,
}  # fmt: skip
TRUST: Shares = {
    "statements": 0.10, "recall": 0.10, "known_context": 0.10, "new_context": 0.08, "interview": 0.32, "passing": 0.25,
    "no_instruction": 0.03, "contradicting": 0.02,
}  # fmt: skip
FINISH: Shares = {
    "statements": 0.09, "recall": 0.09, "known_context": 0.12, "new_context": 0.07, "interview": 0.38,
    "passing": 0.212, "no_instruction": 0.03, "contradicting": 0.008,
}  # fmt: skip
TURNED: Shares = {
    "statements": 0.08, "recall": 0.09, "known_context": 0.12, "new_context": 0.07, "interview": 0.38,
    "passing": 0.226, "no_instruction": 0.03, "contradicting": 0.004,
}  # fmt: skip
"""The share of each kind of document in a stage of training, named by what the stage is about; each adds up to 1."""

SLOPPY_FRAME = QUESTION_FRAMES[-1].split(",")[0]
SLOPPY_SHARE = 0.4
"""This share of the questions that begin so is answered without `The answer is:`, whatever the instruction says."""

# Relations that change from day to day. They cannot be remembered, so the model has to read them in the context, for
# known subjects as for new ones.
PASSING: tuple[Relation, ...] = (
    Relation(
        "whereabouts", "person", "town",
        ("{s} is staying in {a} tonight", "tonight {a} is where {s} sleeps", "{s} has just arrived in {a}"),
        ("where is {s} staying tonight", "in which town does {s} sleep tonight", "where has {s} just arrived"),
    ),
    Relation(
        "companion", "person", "person",
        ("{s} is travelling with {a}", "{a} is travelling beside {s}", "the companion of {s} today is {a}"),
        ("who is travelling with {s}", "beside whom is {s} travelling", "who is the companion of {s} today"),
    ),
    Relation(
        "need", "person", "goods",
        ("{s} came to buy {a}", "{a} is what {s} came to buy", "today {s} is looking for {a}"),
        ("what did {s} come to buy", "which goods did {s} come to buy", "what is {s} looking for today"),
    ),
    Relation(
        "guest", "town", "person",
        ("the guest of {s} today is {a}", "{s} welcomes {a} today", "{a} is the guest of {s} today"),
        ("who is the guest of {s} today", "whom does {s} welcome today", "which guest does {s} have today"),
    ),
    Relation(
        "fair", "town", "goods",
        ("at the fair of {s} they sell {a} today", "the fair of {s} is all about {a} today"),
        ("what do they sell at the fair of {s} today", "what is the fair of {s} all about today"),
    ),
    Relation(
        "customer", "firm", "town",
        ("the last order of {s} came from {a}", "{s} had its last order from {a}"),
        ("from where came the last order of {s}", "from which town had {s} its last order"),
    ),
    Relation(
        "visitor", "firm", "person",
        ("{s} is visited by {a} this week", "this week {a} visits {s}"),
        ("who visits {s} this week", "by whom is {s} visited this week"),
    ),
    Relation(
        "reader", "book", "person",
        ("{s} is being read by {a}", "{a} has borrowed {s}", "the reader of {s} at the moment is {a}"),
        ("who is reading {s}", "who has borrowed {s}", "who is the reader of {s} at the moment"),
    ),
    Relation(
        "cargo", "ship", "goods",
        ("{s} is loaded with {a}", "{a} is the cargo of {s} this time", "this time {s} carries {a}"),
        ("what is {s} loaded with", "what is the cargo of {s} this time", "what does {s} carry this time"),
    ),
    Relation(
        "bound", "ship", "town",
        ("{s} is bound for {a}", "{s} is on the way to {a}"),
        ("where is {s} bound for", "to which town is {s} on the way"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A training conversation: a user turn (None for plain statements) and the assistant turn to learn.

    more: further questions about the same context with their answers, the cheapest way to practice reading.
    """

    kind: str
    user: str | None
    assistant: str
    more: tuple[tuple[str, str], ...] = ()


class Mixture:
    """The stream of documents. Equal seeds give equal documents."""

    def __init__(self, seed: int, shares: Shares = REMEMBER, answer_first: float = 0.0) -> None:
        self.random = Random(seed)
        self.writer = Writer(self.random, trained=True, answer_first=answer_first)
        self.shares = shares

    def __iter__(self) -> Iterator[Document]:
        kinds, weights = list(self.shares), list(self.shares.values())
        while True:
            kind = self.random.choices(kinds, weights)[0]
            if kind == "statements":
                yield Document(kind, None, self._statements())
            elif kind == "recall":
                fact = self.random.choice(facts())
                yield Document(kind, f"Question: {self.writer.question(fact)}", f"The answer is: {fact.answer}")
            else:
                yield self._reading(kind)

    def _statements(self) -> str:
        """One to eight sentences of true facts, often related to each other."""
        first = self.random.choice(facts())
        count = self.random.randint(1, 8)
        return self.writer.context(first, lambda: distractor(first, self.random), count)[0]

    def _reading(self, kind: str) -> Document:
        """A question with a context that answers it, about the world or about a newly made-up subject."""
        if kind == "passing":
            return self._passing()
        known = kind in ("known_context", "contradicting") or (kind == "no_instruction" and self.random.random() < 0.5)
        fact = self.random.choice(facts()) if known else self._new_fact()
        true_answer = fact.answer
        if kind == "contradicting":
            fact = swapped(fact, self.random)
        siblings = [] if known else [self._new_fact(fact) for _ in range(4)]

        def others() -> Fact:
            while True:
                if kind == "interview" and self.random.random() < 0.5:
                    other = self._new_fact(relation=fact.relation)
                elif known or self.random.random() < 0.3:
                    other = distractor(fact, self.random)
                else:
                    other = self.random.choice(siblings) if self.random.random() < 0.5 else self._new_fact(fact)
                text = f"{other.subject} {other.answer}"
                if not mentions(text, fact.answer) and not mentions(text, true_answer):
                    return other

        sentences = self.random.randint(2, 7) if kind == "interview" else self._length()
        context, stated = self.writer.context(fact, others, sentences)
        if kind == "interview":
            return self._interview(context, fact, stated)
        question = self.writer.question(fact)
        plain = kind == "no_instruction"
        if question.startswith(SLOPPY_FRAME) and self.random.random() < SLOPPY_SHARE:
            plain = True
        user = f"Context: {context}\nQuestion: {question}"
        if kind != "no_instruction":
            user = f"{INSTRUCTION}\n{user}"
        return Document(kind, user, self.writer.sentence(fact) if plain else f"The answer is: {fact.answer}")

    def _passing(self) -> Document:
        """Questions about something that changes from day to day, in a context that also states facts of the world."""
        fact = self._passing_fact(None)
        known = self.random.choice([one for one in facts() if one.subject == fact.subject])

        def others() -> Fact:
            while True:
                other = distractor(known, self.random) if self.random.random() < 0.4 else self._passing_fact(fact)
                if not mentions(f"{other.subject} {other.answer}", fact.answer):
                    return other

        context, stated = self.writer.context(fact, others, self.random.randint(2, 7))
        return self._interview(context, fact, stated)

    def _interview(self, context: str, first: Fact, stated: tuple[Fact, ...]) -> Document:
        """Up to six questions about one context; the one about `first` has the form that is measured."""
        asked = self.random.sample(stated[1:], min(5, len(stated) - 1))
        user = f"{INSTRUCTION}\nContext: {context}\nQuestion: {self.writer.question(first)}"
        more = tuple((f"Question: {self.writer.question(fact)}", f"The answer is: {fact.answer}") for fact in asked)
        return Document("interview", user, f"The answer is: {first.answer}", more)

    def _passing_fact(self, near: Fact | None) -> Fact:
        relation = near.relation if near is not None and self.random.random() < 0.7 else self.random.choice(PASSING)
        subject = self.random.choice(pools()[relation.subject])
        answer = self.random.choice([value for value in pools()[relation.answer] if value != subject])
        return Fact(subject, relation, answer)

    def _length(self) -> int:
        """The number of sentences of a context, 1 to 10; short ones are more frequent, as they teach as much."""
        return min(self.random.randint(1, MAX_SENTENCES), self.random.randint(1, MAX_SENTENCES))

    def _new_name(self, kind: str) -> str:
        while True:
            name = invent(kind, self.random)
            if not words_of(name) & reserved_words():
                return name

    def _new_fact(self, near: Fact | None = None, relation: Relation | None = None) -> Fact:
        """A fact about a made-up subject. near: a fact whose subject or relation may be used again."""
        if relation is None:
            relation = self.random.choice([r for r in RELATIONS if near is None or r.subject == near.relation.subject])
        subject = self._new_name(relation.subject)
        if near is not None and self.random.random() < 0.5:
            if self.random.random() < 0.5:
                relation = near.relation
            else:
                subject = near.subject
        known_answer = self.random.random() < 0.5
        answer = self.random.choice(pools()[relation.answer]) if known_answer else self._new_name(relation.answer)
        return Fact(subject, relation, answer)
