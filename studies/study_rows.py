"""The rows of the studies: of the embedded world, or of NQ-SWAP and NQ from one file with the paper's columns.

A *kind* is what the document does: it contradicts what the model knows or agrees with it, it is irrelevant to the
question, it says two things, and so on. `WORLD` and `NQ` have the task of every kind; `tiny/world/world_splits.py`
says what the splits of the world are. A row is right by the main score of its task. Of NQ, development rows are the
half that `fastmem search` may use. `texts` gives documents and questions without labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from fastmem.calibrate import Neutral
from fastmem.lab.search.search import is_searched, score_of
from fastmem.lab.tasks import TASKS, Example, embedded_world, load
from fastmem.tiny import world

WORLD = {
    "contradicts": "world_swap",
    "agrees": "world",
    "irrelevant": "world_irrelevant",
    "turned": "world_turned",
    "hop": "world_hop",
    "list": "world_list",
    "json": "world_json",
    "summary": "world_summary",
    "new": "world_new",
    "long": "world_long",
    "unanswerable": "world_unanswerable",
    "disagree": "world_disagree",
    "self": "world_self",
    "recalled": "world_open",
}
NQ = {"contradicts": "nq_swap", "agrees": "nq", "irrelevant": "nq"}
NEW_TOKENS = 32  # of an answer that is a name; lists, objects and summaries get what their task allows
LONG_ANSWERS = ("list", "json", "summary")
NQ_LEARNING_RATE = 1e-3  # of nq-mini: docs/results/effect.md, with the default of ten steps
DOCUMENTS, QUESTIONS = 16, 20  # without labels
DOCUMENT_WORDS = 20  # more than these


@dataclass(frozen=True)
class Row:
    """A question about a document. task: the key of `TASKS` that grades the answer."""

    kind: str
    task: str
    example: Example

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.example.id}"

    @property
    def max_new_tokens(self) -> int:
        return TASKS[self.task].max_new_tokens if self.kind in LONG_ANSWERS else NEW_TOKENS

    def right(self, text: str) -> bool:
        """Whether an answer is right by the main score of the task."""
        return bool(score_of(text, self.example, TASKS[self.task]))


def rows(
    data: Path | None, part: world.Part, kinds: Sequence[str], limit: int | None = None
) -> Mapping[str, list[Row]]:
    """The first rows of these kinds; kinds that NQ does not have are left out.

    data: the file of NQ; None for the embedded world.
    """
    if data is None:
        found = {kind: list(embedded_world.examples(WORLD[kind], part, limit)) for kind in kinds}
        return {kind: [Row(kind, WORLD[kind], e) for e in examples] for kind, examples in found.items()}
    made = {}
    for kind in (kind for kind in kinds if kind in NQ):
        examples = [e for e in load(NQ[kind], data=data).examples if is_searched(e.group) == (part == "dev")]
        if part == "dev":
            examples = examples[: -DOCUMENTS - QUESTIONS]  # what follows are the texts without labels
        examples = with_other_passages(examples) if kind == "irrelevant" else examples
        made[kind] = [Row(kind, NQ[kind], e) for e in examples[:limit]]
    return made


def with_other_passages(examples: Sequence[Example]) -> list[Example]:
    """The examples with the passage of another question, which does not mention their answers."""
    found = []
    for row in examples:
        random = Random(row.id)
        while True:
            other = random.choice(examples)
            if other.group != row.group and not any(world.mentions(other.context, answer) for answer in row.answers):
                found.append(replace(row, context=other.context))
                break
    return found


def texts(data: Path | None) -> Neutral:
    """Documents and questions without labels. No row of NQ has them. Of the world, the documents are about subjects
    that no training text mentions, as in development rows of the kind `new`, the questions those of `recalled`."""
    if data is None:
        contexts = [e.context for e in embedded_world.examples("world_new", "dev", 8 * DOCUMENTS)]
        documents = [text for text in contexts if len(text.split()) > DOCUMENT_WORDS][:DOCUMENTS]
        asked = [e.question for e in embedded_world.examples("world_open", "dev")][-QUESTIONS:]
    else:
        searched = [e for e in load("nq_swap", data=data).examples if is_searched(e.group)][-DOCUMENTS - QUESTIONS :]
        documents, asked = [e.context for e in searched[-DOCUMENTS:]], [e.question for e in searched[:QUESTIONS]]
    return Neutral(tuple(documents), tuple(f"Question: {question}" for question in asked))


def in_turns(found: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """The rows of all kinds, the kinds in turn, so that a run that was stopped early has some of each."""
    for number in range(max((len(each) for each in found.values()), default=0)):
        for each in found.values():
            yield from each[number : number + 1]
