"""Tasks about the facts that the embedded model was trained on. The rows come from `fastmem.tiny.world`.

Most are graded as all questions. Documents that disagree, lists, JSON objects and summaries have scores of their own;
"remembered answer" is in each the share of answers with what the model was trained on.
"""

import re
from collections import Counter
from collections.abc import Iterator

from fastmem.errors import one_of
from fastmem.lab.scores import qa
from fastmem.lab.tasks.example import Example, Score, Value
from fastmem.tiny import world

TASKS = {
    "world_open": "the embedded world's questions without a document: what the embedded model knows by heart",
    "world": "the embedded world's questions with a document that agrees",
    "world_swap": "the embedded world's questions with a document whose answer was swapped",
    "world_new": "questions with a document about subjects the embedded model never met",
    "world_turned": "as world_swap, with the answer named before the subject",
    "world_long": "as world_swap, with a document of about 400 words",
    "world_irrelevant": "questions that the embedded model knows, with a document about others",
    "world_unanswerable": "questions that neither the document nor the embedded model can answer",
    "world_disagree": "two documents, one of which contradicts what the embedded model knows",
    "world_self": "a document that contradicts itself",
    "world_hop": "questions that need two sentences of the document",
    "world_list": "questions that are answered by all of several things",
    "world_json": "facts of the document as a JSON object",
    "world_summary": "one sentence about the document, checked fact by fact",
    "world_free": "questions about texts written by hand",
}
# As `world.prompt_of` asks for a JSON object or a summary; other questions have the paper's prompt.
REQUEST, REQUEST_ALONE = "Context: {context}\n\n{question}", "{question}"
REQUESTS = ("world_json", "world_summary")
_NEXT_SENTENCE = re.compile(r"""[.!?]["')]*\s|\n""")


def examples(split: str, part: str, limit: int | None = None) -> Iterator[Example]:
    """The rows of `split`, a key of `TASKS`; `part` is "dev" or "test". A fact has one id and group in all splits.

    The choices are the answers that are said first and second, or the facts of a summary. limit: only the first rows.
    """
    known: world.Part = one_of(part, world.PARTS, "part of the embedded world")  # type: ignore[assignment]
    for row in world.examples(split, known, limit):
        yield _example(split, row)


def _example(split: str, row: world.Example) -> Example:
    fact = row.id.split("/", 1)[1]
    original = row.original_answers
    if split == "world_summary":
        original = (world.contradicted(row),)
    elif split != "world_disagree":  # in which the right answer can be the one that the model knows
        original = tuple(answer for answer in original if answer not in row.answers)
    return Example(
        fact,
        "question",
        row.context,
        row.question,
        row.answers,
        original,
        choices=(row.first, row.second) if row.first else row.parts if split == "world_summary" else (),
        group=fact,
        template=REQUEST if split in REQUESTS else "",
        template_without_context=REQUEST_ALONE if split in REQUESTS else "",
    )


def disagreeing_score(reply: str, example: Example) -> dict[str, Value]:
    """Whether the answer is what is said second, which is right; what is said first; what the model knows."""
    answer = qa.strict_answer(reply)
    second, first, original = (
        answer is not None and qa.exact_match(answer, names)
        for names in (example.choices[1:], example.choices[:1], example.original_answers)
    )
    return {"second": second, "first": first, "remembered answer": original}


def list_score(reply: str, example: Example) -> dict[str, Value]:
    """Whether the answer names all things and no other; precision, recall and F1 of the things that it names."""
    wanted = example.answers[0].split(", ")
    given = world.items_of(qa.strict_answer(reply) or "", wanted)
    right = (Counter(given) & Counter(map(world.normalize, wanted))).total()
    return {
        "exact list": right == len(given) == len(wanted),
        "precision": right / max(1, len(given)),
        "recall": right / len(wanted),
        "F1": 2 * right / (len(given) + len(wanted)),
    }


def json_score(reply: str, example: Example) -> dict[str, Value]:
    """Whether the reply is the right object; the share of its values that are right; whether it is any object."""
    given, wanted = world.object_of(reply), world.object_of(example.answers[0]) or {}
    learned = (world.object_of(example.original_answers[0]) or {}).items() - wanted.items()
    values = given or {}
    return {
        "right object": given == wanted,
        "right values": sum(values.get(key) == value for key, value in wanted.items()) / len(wanted),
        "valid object": given is not None,
        "remembered answer": any(values.get(key) == value for key, value in learned),
    }


def summary_score(reply: str, example: Example) -> dict[str, Value]:
    """Whether the reply mentions all facts; the share of them that it mentions; whether it is one sentence."""
    stated = [world.mentions(reply, fact) for fact in example.choices]
    text = reply.strip()
    return {
        "all facts": all(stated),
        "facts": sum(stated) / len(stated),
        "one sentence": bool(text) and not _NEXT_SENTENCE.search(text),
        "remembered answer": world.mentions(reply, example.original_answers[0]),
    }


SCORES: dict[str, Score] = {
    "world_disagree": disagreeing_score,
    "world_self": disagreeing_score,
    "world_list": list_score,
    "world_json": json_score,
    "world_summary": summary_score,
}
