"""The worked examples of the one-shot method (the paper's Table 2), one per kind of task; their texts are in
`one_shot.toml`."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmem.lab.tasks import cnndm, embedded_world, faitheval, wikihow, xsum
from fastmem.lab.tasks.example import Example, Kind, Shot
from fastmem.lab.tasks.question_template import WITHOUT_CONTEXT

_TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _shot(kind: Kind, name: str, **fields: str) -> Shot:
    """The example `name` of the file, with these fields of `Example` added or replaced."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in _TEXTS[name].items()}
    example = Example("one-shot", kind, **(values | fields))
    return Shot(example, example.reference if kind == "summary" else f"The answer is: {example.answers[0]}")


QUESTION = _shot("question", "question")
OPTIONS = _shot(
    "question",
    "options",
    context=QUESTION.example.context,
    template=faitheval.COUNTERFACTUAL_TEMPLATE,
    template_without_context=WITHOUT_CONTEXT,
)
CHOICE = _shot("choice", "choice")
CNNDM = _shot("summary", "cnndm", question=cnndm.INSTRUCTION)
XSUM = _shot("summary", "xsum", question=xsum.INSTRUCTION, context=CNNDM.example.context)
WIKIHOW = _shot("summary", "wikihow", question=wikihow.INSTRUCTION)


def question_shot(template: str, answer: str | None = None) -> Shot:
    """The worked example for questions in the words of this template. answer: if not that of the example."""
    answers = QUESTION.example.answers if answer is None else (answer,)
    example = replace(QUESTION.example, answers=answers, template=template, template_without_context=WITHOUT_CONTEXT)
    return Shot(example, f"The answer is: {answers[0]}")


def of_world(task: str) -> Shot | None:
    """The worked example for a task of the embedded world; none for JSON objects and summaries."""
    if task == "world_open":  # which asks without a document
        return _shot("question", "question", context="")
    return None if task in embedded_world.REQUESTS else QUESTION
