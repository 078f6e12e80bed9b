"""An invented world: its facts, the texts that state them and the questions about them.

Everything is derived from a seed, without files other than `phrases.json`, network or torch. `facts()` is what the
embedded model was trained on; `examples(split, part)` is what it is measured on:

- `world_open`  a question alone: does the model know the fact?
- `world`       a context that agrees with the facts it was trained on.
- `world_swap`  the same contexts, with the answer replaced everywhere by another of its kind.
- `world_new`   contexts about subjects that no training text mentions.
- `world_turned`  as `world_swap`, but the answering sentence names the answer before the subject; in the other splits
  it begins with the subject. Next-token training on "Tarn is the home of Ada" does not teach what follows "Ada":
  FastMem gains nothing here (`model/README.md`), so these examples are a split of their own.

`part` is `dev` or `test`; no subject is in both. The wording of a measured example is never trained: training uses
the pairs of a frame and a core (`phrases.py`) for which `is_trained_pair` is true, and examples use the others.
`Writer` makes the texts for training and measuring, so that they differ in these pairs only.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Literal

from fastmem.errors import InputError, one_of
from fastmem.tiny.phrases import FILLERS, NAME_SHAPES, QUESTION_FRAMES, RELATIONS, STATEMENT_FRAMES, WORDS, Relation

SEED = 2406
SUBJECTS = {"person": 120, "town": 64, "firm": 44, "book": 44, "ship": 32}
POOLS = {"river": 32, "language": 20}
KINDS = (*SUBJECTS, *POOLS, *WORDS, "year")
SPLITS = ("world_open", "world", "world_swap", "world_new", "world_turned")
PARTS = ("dev", "test")
MAX_SENTENCES = 10

INSTRUCTION = (
    "Please extract from the context the span that best answers the question and provide the answer in the following "
    'format: "The answer is: ...".'
)

_ONSETS, _VOWELS, _CODAS = (
    letters.split()
    for letters in (
        "b br d dr f fl g gl h j k kl kr l m n p pl qu r s sk sn t th tr v vr w z zh zw",
        "a e i o u a e i o u ei oo ua",
        "b d k l m n p r s t v x z lb ld lk lm nd rk rn rv sk th",
    )
)


@dataclass(frozen=True)
class Fact:
    """`answer` is the `relation` of `subject`, as in the birthplace of a person."""

    subject: str
    relation: Relation
    answer: str


@dataclass(frozen=True)
class Example:
    """A measured example. context: empty in `world_open`. original_answers: the answers the model was trained on."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    original_answers: tuple[str, ...]


def invented_word(random: Random) -> str:
    """An invented word of two or three syllables and 6 to 9 letters."""
    while True:
        syllables = [random.choice(_ONSETS) + random.choice(_VOWELS) for _ in range(random.choice((2, 2, 3)))]
        word = "".join(syllables) + random.choice(_CODAS)
        if 6 <= len(word) <= 9:
            return word.capitalize()


def invent(kind: str, random: Random) -> str:
    """A value of `kind`: an invented name, an ordinary word for jobs, instruments and goods, or a year."""
    if kind == "year":
        return str(random.randrange(1100, 1900))
    if kind in WORDS:
        return random.choice(WORDS[kind])
    return random.choice(NAME_SHAPES[kind]).format(invented_word(random), invented_word(random))


def stable_hash(*parts: object) -> int:
    """A number that depends on the texts only; Python's `hash` of a str differs between processes."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:6], "big")


def _distinct(kind: str, count: int, random: Random, taken: set[str]) -> tuple[str, ...]:
    """`count` names of `kind` that share no invented word with each other or with `taken`, which is extended."""
    names: list[str] = []
    while len(names) < count:
        name = invent(kind, random)
        words = words_of(name)
        if not words & taken:
            taken |= words
            names.append(name)
    return tuple(names)


_ORDINARY = {word for shapes in NAME_SHAPES.values() for shape in shapes for word in shape.split()}


def words_of(name: str) -> set[str]:
    """The invented words of a name: `the Star of Zhanivor` -> `{"Zhanivor"}`."""
    return {word for word in name.split() if word[0].isupper() and word not in _ORDINARY}


@cache
def pools() -> dict[str, tuple[str, ...]]:
    """All names of the world by kind, subjects included."""
    random, taken = Random(SEED), set[str]()
    named = {kind: _distinct(kind, count, random, taken) for kind, count in (SUBJECTS | POOLS).items()}
    return named | WORDS | {"year": tuple(str(year) for year in range(1100, 1900))}


@cache
def new_subjects() -> dict[str, tuple[str, ...]]:
    """Names reserved for `world_new`, by kind. They share no word with the world, and training never uses them."""
    taken = {word for kind in SUBJECTS | POOLS for name in pools()[kind] for word in words_of(name)}
    random = Random(SEED + 1)
    return {kind: _distinct(kind, count, random, taken) for kind, count in SUBJECTS.items()}


@cache
def reserved_words() -> frozenset[str]:
    """Invented words that training must not use for subjects it makes up."""
    names = [name for kind in SUBJECTS | POOLS for name in pools()[kind]]
    names += [name for pool in new_subjects().values() for name in pool]
    return frozenset(word for name in names for word in words_of(name))


def _facts_of(subjects: dict[str, tuple[str, ...]], random: Random) -> tuple[Fact, ...]:
    """A fact for each subject and each relation of its kind; the answers are drawn from the world."""
    made = []
    for relation in RELATIONS:
        for subject in subjects[relation.subject]:
            answer = random.choice([value for value in pools()[relation.answer] if value != subject])
            made.append(Fact(subject, relation, answer))
    return tuple(made)


@cache
def facts() -> tuple[Fact, ...]:
    """What the embedded model was trained on: one answer per relation of each subject (1,064 facts)."""
    return _facts_of(pools(), Random(SEED + 2))


@cache
def new_facts() -> tuple[Fact, ...]:
    """Facts about the subjects of `world_new`, with answers from the world."""
    return _facts_of(new_subjects(), Random(SEED + 3))


def part_of(subject: str) -> str:
    """`dev` or `test`. Each subject is in one part, and each kind is split in halves."""
    return _part_of_subject()[subject]


@cache
def _part_of_subject() -> dict[str, str]:
    names = [pool[kind] for pool in (pools(), new_subjects()) for kind in SUBJECTS]
    return {name: PARTS[index % 2] for pool in names for index, name in enumerate(pool)}


_PLACE = {relation.name: place for place, relation in enumerate(RELATIONS)}


def is_trained_pair(relation: Relation, frame: int, core: int) -> bool:
    """Whether training uses this frame with this core; for each core, one frame in six is reserved for measuring."""
    return relation.name not in _PLACE or (_PLACE[relation.name] + frame + core) % 6 != 0


@cache
def _pairs(relation: Relation, frames: int, cores: int, trained: bool) -> tuple[tuple[int, int], ...]:
    pairs = [(frame, core) for frame in range(frames) for core in range(cores)]
    return tuple(pair for pair in pairs if is_trained_pair(relation, *pair) == trained)


def is_answer_first(core: str) -> bool:
    """Whether a statement names the answer before the subject, as one in five does."""
    return -1 < core.find("{a}") < core.find("{s}")


Order = Literal["subject", "answer"] | None


class Writer:
    """Turns facts into sentences, questions and contexts.

    trained: use the pairs of wording for training, otherwise those for measuring. answer_first: the share of the
    statements that is drawn from those that name the answer before the subject.
    """

    def __init__(self, random: Random, *, trained: bool, answer_first: float = 0.0) -> None:
        self.random, self.trained, self.answer_first = random, trained, answer_first

    def _worded(self, frames: tuple[str, ...], cores: tuple[str, ...], fact: Fact, order: Order = None) -> str:
        pairs = _pairs(fact.relation, len(frames), len(cores), self.trained)
        # Also drawn for questions, where it has no effect: the shipped weights were trained on this random stream.
        if order is None and self.answer_first and self.random.random() < self.answer_first:
            order = "answer"
        if order is not None:
            pairs = tuple(pair for pair in pairs if is_answer_first(cores[pair[1]]) == (order == "answer")) or pairs
        frame, core = self.random.choice(pairs)
        text = frames[frame].format(c=cores[core].format(s=fact.subject, a=fact.answer))
        return text[0].upper() + text[1:]

    def sentence(self, fact: Fact, order: Order = None) -> str:
        """A statement of a fact. order: what it names first; None allows both."""
        return self._worded(STATEMENT_FRAMES, fact.relation.statements, fact, order)

    def question(self, fact: Fact) -> str:
        """A question whose answer is that of the fact."""
        return self._worded(QUESTION_FRAMES, fact.relation.questions, fact)

    def context(
        self, fact: Fact, others: Callable[[], Fact], sentences: int, order: Order = None
    ) -> tuple[str, tuple[Fact, ...]]:
        """(a text of `sentences` sentences that states `fact` once or twice, all facts that it states).

        others: gives the next fact to state besides. order: as for `sentence`, for `fact` only.
        """
        texts, stated = [self.sentence(fact, order)], {(fact.subject, fact.relation): fact}
        if sentences > 2 and self.random.random() < 0.2:
            texts.append(self.sentence(fact, order))
        while len(texts) < sentences:
            other = others()
            if self.random.random() < 0.15:
                texts.append(self.random.choice(FILLERS))
            elif (other.subject, other.relation) not in stated:
                texts.append(self.sentence(other))
                stated[other.subject, other.relation] = other
        self.random.shuffle(texts)
        return " ".join(texts), tuple(stated.values())


def normalize(text: str) -> str:
    """Lower case, letters and digits only, words separated by single spaces."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def mentions(text: str, answer: str) -> bool:
    """Whether `text` contains `answer` as whole words, ignoring case."""
    return f" {normalize(answer)} " in f" {normalize(text)} "


@cache
def _grouped(known: bool) -> dict[str, tuple[Fact, ...]]:
    """The facts of each subject and of each kind of subject. known: facts of the world, else of `world_new`."""
    grouped: dict[str, list[Fact]] = {}
    for fact in facts() if known else new_facts():
        grouped.setdefault(fact.subject, []).append(fact)
        grouped.setdefault(fact.relation.subject, []).append(fact)
    return {key: tuple(group) for key, group in grouped.items()}


def distractor(fact: Fact, random: Random, *, known: bool = True) -> Fact:
    """A true fact to state besides `fact`: of the same subject, the same relation, the same kind, or any."""
    dice = random.random()
    if dice < 0.35 and fact.subject in _grouped(known):
        return random.choice(_grouped(known)[fact.subject])
    same_kind = _grouped(known)[fact.relation.subject]
    if dice < 0.65:
        return random.choice([other for other in same_kind if other.relation is fact.relation])
    return random.choice(same_kind if dice < 0.85 else facts())


def swapped(fact: Fact, random: Random) -> Fact:
    """`fact` with another answer of the same kind; neither answer contains the other."""
    while True:
        answer = random.choice(pools()[fact.relation.answer])
        if answer != fact.subject and not mentions(answer, fact.answer) and not mentions(fact.answer, answer):
            return replace(fact, answer=answer)


def _example(split: str, fact: Fact) -> Example:
    """The example for a fact. `world` and `world_swap` differ in the answer only."""
    random = Random(stable_hash(SEED, fact.subject, fact.relation.name))
    writer = Writer(random, trained=False)
    example_id = f"{split}/{fact.relation.name}/{fact.subject.lower().replace(' ', '-')}"
    question = writer.question(fact)
    if split == "world_open":
        return Example(example_id, "", question, (fact.answer,), (fact.answer,))
    other_answer = swapped(fact, random)
    in_context = other_answer if split in ("world_swap", "world_turned") else fact

    def others() -> Fact:
        while True:
            other = distractor(fact, random, known=split != "world_new")
            text = f"{other.subject} {other.answer}"
            if not mentions(text, fact.answer) and not mentions(text, other_answer.answer):
                return other

    order: Order = "answer" if split == "world_turned" else "subject"
    context, _ = writer.context(in_context, others, random.randint(1, MAX_SENTENCES), order)
    known = () if split == "world_new" else (fact.answer,)
    return Example(example_id, context, question, (in_context.answer,), known)


Part = Literal["dev", "test"]


def examples(split: str, part: Part = "dev", limit: int | None = None) -> tuple[Example, ...]:
    """The examples of a split in a fixed, mixed order: 532 in each part, 472 in `world_turned`.

    limit: only the first ones. Errors: `InputError` for an unknown split or part, or a limit below 1.
    """
    one_of(split, SPLITS, "split of the embedded world")
    one_of(part, PARTS, "part")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}: give a whole number, 1 or more, or omit it.", field="limit")
    source = new_facts() if split == "world_new" else facts()
    chosen = [fact for fact in source if part_of(fact.subject) == part]
    if split == "world_turned":  # no statement of a profession names the answer first
        chosen = [fact for fact in chosen if any(map(is_answer_first, fact.relation.statements))]
    chosen.sort(key=lambda fact: stable_hash(fact.subject, fact.relation.name))
    return tuple(_example(split, fact) for fact in chosen[:limit])


@cache
def shown_examples(part: Part, count: int) -> tuple[Example, ...]:
    """Rows of `world_swap` to show to people: the first ones with documents of two to four lines."""
    rows = examples("world_swap", part, 20 * count)
    return tuple(row for row in rows if 100 <= len(row.context) <= 300)[:count]
