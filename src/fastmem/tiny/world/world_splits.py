"""What a model of the invented world is measured on: the rows of each split, from the seed alone.

- `world_open`  a question alone: does the model know the fact?
- `world`       a document that agrees with what the model learned.
- `world_swap`  the same documents, with the answer replaced by another of its kind.
- `world_turned`  as `world_swap`, but the answering sentence names the answer before the subject.
- `world_long`  as `world_swap`, among many other sentences.
- `world_new`   documents about subjects that no training text mentions.
- `world_irrelevant`  documents about others; the answer is what the model learned.
- `world_unanswerable`  the document does not say it and the model cannot know it.
- `world_disagree`  two documents, one of which contradicts what the model learned; right is what is said last.
- `world_self`  one document that says two different things, none of which the model learned; right is the last.
- `world_hop`   an answer that needs two sentences.
- `world_list`  all values of a list.
- `world_json`, `world_summary`  a JSON object, or one sentence about the document; one fact in each contradicts what
  the model learned.
- `world_free`  questions about 200 texts written by hand (`free.jsonl`).

`part` is `dev` or `test`; no subject is in both. No form that a measured row uses is used in training.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from random import Random

from fastmem.errors import InputError, one_of
from fastmem.tiny.world.measured_compositions import (
    chains,
    hop,
    json_object,
    list_rows,
    listed,
    object_rows,
    summary,
)
from fastmem.tiny.world.measured_documents import (
    LONG_WORDS,
    Maker,
    Row,
    agreeing,
    alone,
    contradicting_itself,
    disagreeing,
    irrelevant,
    long,
    new,
    swap,
    turned,
    unanswerable,
)
from fastmem.tiny.world.world_compositions import clause_of
from fastmem.tiny.world.world_facts import PARTS, Fact, Part, about, facts, new_facts, part_of, passing_facts
from fastmem.tiny.world.world_formats import Example
from fastmem.tiny.world.world_names import SEED, SUBJECTS, new_subjects, pools
from fastmem.tiny.world.world_relations import statements
from fastmem.tiny.world.written_by_hand import written_by_hand

MAX_DRAWS = 500
SHOWN: dict[Part, tuple[str, ...]] = {
    "dev": ("captain/the-compass-of-promise",),
    "test": (
        "instrument/harold-prescott",
        "inn_town/the-hedgehog-and-thimble",
        "setting/an-education-of-small-mercies",
    ),
}


def stable_hash(*parts: object) -> int:
    """A number that depends on the texts only; Python's `hash` of a str differs between processes."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:6], "big")


def _rows_of(some: Sequence[Fact], known: bool = True) -> list[Row]:
    return [Row(fact.subject, fact.relation.name, (fact,), known) for fact in some]


def _known() -> list[Row]:
    return _rows_of(facts())


def _new() -> list[Row]:
    return _rows_of(new_facts(), known=False)


def _turned() -> list[Row]:
    return _rows_of([fact for fact in facts() if statements(fact.relation, False, "answer")])


def _unanswerable() -> list[Row]:
    return _rows_of(passing_facts()) + _new()


_SPLITS: dict[str, tuple[Callable[[], list[Row]], Maker]] = {
    "world": (_known, agreeing),
    "world_swap": (_known, swap),
    "world_open": (_known, alone),
    "world_new": (_new, new),
    "world_turned": (_turned, turned),
    "world_irrelevant": (_known, irrelevant),
    "world_unanswerable": (_unanswerable, unanswerable),
    "world_disagree": (_known, disagreeing),
    "world_self": (_known, contradicting_itself),
    "world_hop": (chains, hop),
    "world_list": (list_rows, listed),
    "world_json": (object_rows, json_object),
    "world_summary": (object_rows, summary),
    "world_long": (_known, long),
}
SPLITS = (*_SPLITS, "world_free")


@cache
def _rows(split: str, part: Part) -> tuple[Row, ...]:
    chosen = [row for row in _SPLITS[split][0]() if part_of(row.subject) == part]
    return tuple(sorted(chosen, key=lambda row: stable_hash(row.subject, row.name)))


def _slug(subject: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in subject.lower())


def _id(row: Row) -> str:
    return f"{row.name}/{_slug(row.subject)}"


@cache
def _by_slug() -> dict[str, str]:
    return {_slug(name): name for pool in (pools(), new_subjects()) for kind in SUBJECTS for name in pool[kind]}


def subject_of(example: Example) -> str:
    """Whom or what a row is about; empty for `world_free`."""
    return _by_slug().get(example.id.rpartition("/")[2], "")


def contradicted(example: Example) -> str:
    """Of a summary: what the model learned of the fact of which its document says something else."""
    (reference,), (learned,) = example.answers, example.original_answers
    told = [(clause_of(fact), fact.answer) for fact in about(subject_of(example))]
    (value,) = (answer for clause, answer in told if clause in learned and clause not in reference)
    return value


def _made(split: str, row: Row, make: Maker) -> Example:
    """The first example of a row that has the promised property. Each draw has a seed of its own."""
    for draw in range(MAX_DRAWS):
        found = make(row, Random(stable_hash(SEED, row.subject, row.name, draw)))
        if found is not None:
            return replace(found, id=f"{split}/{_id(row)}")
    raise AssertionError(f"no sound example in {MAX_DRAWS} draws: {split}, {row.subject}, {row.name}")


def examples(
    split: str, part: Part = "dev", limit: int | None = None, *, words: int = LONG_WORDS
) -> tuple[Example, ...]:
    """The examples of a split in a fixed, mixed order: 500 or more in each part, 100 in `world_free`.

    limit: only the first ones. words: about how many each document of `world_long` has.
    Errors: `InputError` for an unknown split or part, or a number below 1.
    """
    one_of(split, SPLITS, "split of the embedded world")
    one_of(part, PARTS, "part")
    for name, number in (("limit", limit), ("words", words)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}: give a whole number, 1 or more, or omit it.", field=name)
    if split == "world_free":
        rows = written_by_hand()
        half = len(rows) // 2
        return (rows[:half] if part == "dev" else rows[half:])[:limit]
    make = partial(long, words=words) if split == "world_long" else _SPLITS[split][1]
    return tuple(_made(split, row, make) for row in _rows(split, part)[:limit])


@cache
def shown_examples(part: Part) -> tuple[Example, ...]:
    """Rows of `world_swap` to show to people: short ones that the shipped model alone answers from what it learned."""
    return tuple(_made("world_swap", row, swap) for row in _rows("world_swap", part) if _id(row) in SHOWN[part])
