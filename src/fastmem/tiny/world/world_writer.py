"""Facts written as sentences, questions and documents. Training and measuring differ in the forms only."""

import re
from collections.abc import Callable, Sequence
from random import Random

from fastmem.tiny.world.world_facts import Fact
from fastmem.tiny.world.world_names import given_name, surname
from fastmem.tiny.world.world_relations import (
    FILLERS,
    Order,
    question_frame,
    questions,
    statement_frame,
    statements,
)
from fastmem.tiny.world.world_templates import choose, fill, sentence_start

SHORT_SHARE = 0.55
"""How often a subject that the sentence before was about is named by "It", "They" or a part of its name."""
FILLER_SHARE = 0.12
PARAGRAPH_SHARE = 0.12
"""How often a document of six sentences or more has two paragraphs."""

# Verbs after the subject, in the form for "They"; others are not used with it.
_PLURAL = {
    "was": "were", "has": "have", "is": "are", "lives": "live", "works": "work", "plays": "play", "likes": "like",
    "loves": "love", "comes": "come", "prefers": "prefer", "owns": "own", "earns": "earn", "makes": "make",
    "came": "came", "learned": "learned", "grew": "grew", "studied": "studied", "bought": "bought", "had": "had",
    "ate": "ate", "went": "went", "would": "would", "will": "will", "can": "can", "took": "took",
}  # fmt: skip
# What does not follow "They" plus verb: other verbs and pronouns that would have to agree, and "They are a baker".
_NOT_PLURAL = re.compile(r"\b(?:and|who|whose|is|was|has|does|himself|herself)\b|,|^ \{a:|^ an? ")
_SUBJECT_VERB = re.compile(r"\{s\} (\w+)\b(.*)")


class Writer:
    """Turns facts into text. trained: use the forms for training, otherwise those kept for measuring."""

    def __init__(self, random: Random, *, trained: bool) -> None:
        self.random, self.trained = random, trained

    def pick(self, options: Sequence[str]) -> str:
        """One of the options."""
        return options[int(self.random.random() * len(options))]

    def statement(self, fact: Fact, order: Order = None) -> str:
        """A sentence that states a fact. order: what it names first, if a form does so; None allows both."""
        return self._stated(fact, self._form(fact, order), fact.subject)

    def plain_statement(self, fact: Fact) -> str:
        """The plainest sentence that states a fact: the first form, without a frame."""
        form = choose(statements(fact.relation, self.trained)[0], self.random)
        return sentence_start(fill(form, {"s": fact.subject, "a": fact.answer})) + "."

    def _form(self, fact: Fact, order: Order) -> str:
        forms = statements(fact.relation, self.trained, order) or statements(fact.relation, self.trained)
        return choose(self.pick(forms), self.random)

    def _stated(self, fact: Fact, form: str, subject: str) -> str:
        before, after = statement_frame(self.random, self.trained)
        return sentence_start(before + fill(form, {"s": subject, "a": fact.answer}) + after)

    def question(self, fact: Fact, subject: str | None = None) -> str:
        """A question whose answer is that of the fact. subject: a description to use instead of its name."""
        forms = questions(fact.relation, self.trained)
        form = choose(self.pick(forms), self.random)
        while subject is not None and "{s}'s" in form and any("{s}'s" not in one for one in forms):
            form = choose(self.pick(forms), self.random)
        before, after = question_frame(self.random, self.trained)
        return sentence_start(before + fill(form, {"s": subject or fact.subject}) + after)

    def filler(self) -> str:
        """A sentence that states no fact."""
        return choose(self.pick(FILLERS), self.random)

    def document(self, facts: Sequence[Fact], asked: Sequence[Fact] = (), order: Order = None) -> str:
        """A text that states the facts in this order, with a few sentences between them that state none.

        asked: the facts whose sentences have the subject's full name and name first what `order` says.
        """
        words = _words_of_persons(facts)
        texts: list[str] = []
        before: Fact | None = None
        clear = False  # whether a pronoun would mean the subject of the sentence before
        for fact in facts:
            if self.random.random() < FILLER_SHARE:
                texts.append(self.filler())
                clear = False
            again = before is not None and before.subject == fact.subject and fact not in asked
            if again and self.random.random() < SHORT_SHARE:
                texts.append(self._shortly(fact, words, clear))
            else:
                texts.append(self.statement(fact, order if fact in asked else None))
                clear = texts[-1].lower().startswith(fact.subject.lower() + " ")
            clear = clear and fact.relation.answer not in ("person", "inn", "ship", "band", "company", "book")
            before = fact
        if len(texts) > 5 and self.random.random() < PARAGRAPH_SHARE:
            # Not before a sentence that leans on the one before it.
            places = [i for i in range(2, len(texts) - 1) if not texts[i].startswith(("It ", "They "))]
            if places:
                place = places[int(self.random.random() * len(places))]
                return " ".join(texts[:place]) + "\n\n" + " ".join(texts[place:])
        return " ".join(texts)

    def _shortly(self, fact: Fact, words: dict[str, int], clear: bool) -> str:
        """A sentence about the subject of the one before it, by a pronoun or a part of its name."""
        form = self._form(fact, "subject")
        kind, match = fact.relation.subject, _SUBJECT_VERB.match(form)
        alone = clear and match is not None and form.count("{s}") == 1
        if kind == "person":
            verb = _PLURAL.get(match[1]) if match and alone and not _NOT_PLURAL.search(match[2]) else None
            if verb and match and self.random.random() < 0.4:
                return self._stated(fact, f"{{s}} {verb}{match[2]}", "they")
            name = given_name(fact.subject) if self.random.random() < 0.6 else surname(fact.subject)
            return self._stated(fact, form, name if words.get(name) == 1 else fact.subject)
        pronoun = "they" if kind == "band" else "it"
        return self._stated(fact, form, pronoun if alone else fact.subject)


def _words_of_persons(facts: Sequence[Fact]) -> dict[str, int]:
    """How many persons of these facts have each given name and surname."""
    persons = {fact.subject for fact in facts if fact.relation.subject == "person"}
    persons |= {fact.answer for fact in facts if fact.relation.answer == "person"}
    counts: dict[str, int] = {}
    for person in persons:
        for word in person.split():
            counts[word] = counts.get(word, 0) + 1
    return counts


def arranged(facts: Sequence[Fact], random: Random) -> list[Fact]:
    """The facts in a new order; mostly, those about one subject stand together."""
    order = list(facts)
    random.shuffle(order)
    if random.random() < 0.85:
        places = {fact.subject: place for place, fact in reversed(list(enumerate(order)))}
        order.sort(key=lambda fact: places[fact.subject])
    return order


def with_others(fact: Fact, others: Callable[[], Fact], count: int, random: Random) -> list[Fact]:
    """`count` facts, `fact` among them, no two of one subject and relation. others: gives the next fact.

    Nobody has two companions: a companion's companion is the subject.
    """
    chosen, keys = [fact], _keys(fact)
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        other = others()
        if not _keys(other) & keys:
            keys |= _keys(other)
            chosen.append(other)
    return arranged(chosen, random)


def _keys(fact: Fact) -> set[tuple[str, str]]:
    """What a fact answers: (subject, relation), for companions from both sides."""
    subjects = (fact.subject, fact.answer) if fact.relation.name == "companion" else (fact.subject,)
    return {(subject, fact.relation.name) for subject in subjects}
