"""Tasks about the facts that the embedded model was trained on. The rows come from `fastmem.tiny.world`."""

from collections.abc import Iterator

from fastmem.errors import one_of
from fastmem.lab.tasks.example import Example

TASKS = {
    "world_open": "the embedded world's questions without a context: what the embedded model knows by heart",
    "world": "the embedded world's questions with a context that agrees",
    "world_swap": "the embedded world's questions with a context whose answer was swapped",
    "world_new": "questions with a context about subjects the embedded model never met",
    "world_turned": "as world_swap, with the answer named before the subject",
}


def examples(split: str, part: str) -> Iterator[Example]:
    """The rows of `split`, a key of `TASKS`; `part` is "dev" or "test". A fact has one id and group in all splits."""
    from fastmem.tiny import world

    for row in world.examples(split, one_of(part, world.PARTS, "part of the embedded world")):  # type: ignore[arg-type]
        fact = row.id.split("/", 1)[1]
        original = tuple(answer for answer in row.original_answers if answer not in row.answers)
        yield Example(fact, "question", row.context, row.question, row.answers, original, group=fact)
