"""What the embedded model is trained on: an endless, seeded stream of documents about the world of `world.py`.

No document contradicts a fact of the world. Contexts about subjects that are made up on the spot teach the model to
read, plain statements and questions without context teach it to remember; how much of each there is decides how
often the model trusts a context that contradicts its memory (`docs/tiny.md`). No torch here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from fastmem.tiny.phrases import QUESTION_FRAMES, RELATIONS
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
    words_of,
)

Shares = dict[str, float]

REMEMBER: Shares = {
    "statements": 0.30, "recall": 0.28, "known_context": 0.22, "new_context": 0.17, "no_instruction": 0.03
}  # fmt: skip
READ: Shares = {
    "statements": 0.12, "recall": 0.13, "known_context": 0.15, "new_context": 0.57, "no_instruction": 0.03
}  # fmt: skip
"""Share of the documents of each kind, in a stage of training that is mostly about one of the two; adds up to one."""

SLOPPY_FRAME = QUESTION_FRAMES[-1].split(",")[0]
SLOPPY_SHARE = 0.4
"""Questions that begin so are answered without `The answer is:` this often, whatever the instruction says."""


@dataclass(frozen=True)
class Document:
    """One training conversation: a user turn (absent for plain statements) and the assistant turn that is learned."""

    kind: str
    user: str | None
    assistant: str


class Mixture:
    """The stream. Equal seeds give equal documents."""

    def __init__(self, seed: int, shares: Shares = REMEMBER) -> None:
        self.random = Random(seed)
        self.writer = Writer(self.random, trained=True)
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
        """One to eight sentences of true facts, as somebody would write them down: all of the world, often related."""
        first = self.random.choice(facts())
        count = self.random.randint(1, 8)
        return self.writer.context(first, lambda: distractor(first, self.random), count)

    def _reading(self, kind: str) -> Document:
        """A question with a context that answers it: about the world, or about a subject nobody has heard of."""
        known = kind == "known_context" or (kind == "no_instruction" and self.random.random() < 0.5)
        fact = self.random.choice(facts()) if known else self._new_fact()
        siblings = [] if known else [self._new_fact(fact) for _ in range(4)]

        def others() -> Fact:
            while True:
                if known or self.random.random() < 0.3:
                    other = distractor(fact, self.random)
                else:
                    other = self.random.choice(siblings) if self.random.random() < 0.5 else self._new_fact(fact)
                if not mentions(f"{other.subject} {other.answer}", fact.answer):
                    return other

        context = self.writer.context(fact, others, self._length())
        question = self.writer.question(fact)
        plain = kind == "no_instruction"
        if question.startswith(SLOPPY_FRAME) and self.random.random() < SLOPPY_SHARE:
            plain = True
        user = f"Context: {context}\nQuestion: {question}"
        if kind != "no_instruction":
            user = f"{INSTRUCTION}\n{user}"
        return Document(kind, user, self.writer.sentence(fact) if plain else f"The answer is: {fact.answer}")

    def _length(self) -> int:
        """Sentences of a context: 1 to 10, short ones more often, since they are cheap and teach as much."""
        return min(self.random.randint(1, MAX_SENTENCES), self.random.randint(1, MAX_SENTENCES))

    def _new_name(self, kind: str) -> str:
        while True:
            name = invent(kind, self.random)
            if not words_of(name) & reserved_words():
                return name

    def _new_fact(self, near: Fact | None = None) -> Fact:
        """A fact that is in no world: of the same subject as `near`, of its relation, or any; answers new or known."""
        relations = [r for r in RELATIONS if near is None or r.subject == near.relation.subject]
        relation = self.random.choice(relations)
        subject = self._new_name(relation.subject)
        if near is not None and self.random.random() < 0.5:
            if self.random.random() < 0.5:
                relation = near.relation
            else:
                subject = near.subject
        known_answer = self.random.random() < 0.5
        answer = self.random.choice(pools()[relation.answer]) if known_answer else self._new_name(relation.answer)
        return Fact(subject, relation, answer)
