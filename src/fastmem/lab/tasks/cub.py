"""CUB (arXiv 2505.16518): contexts that are right (gold), that contradict the facts, and that are irrelevant.

Metric: BCU of section 3.3, per kind of context. With a gold or a conflicting context, an answer is right if it is the
context's; with an irrelevant one, if it is what the model answers without a context (its memory).

Its data sets (`copenlu/cub-counterfact`, `-nq`, `-druid` on the hub) have one file per model: rows were chosen by
what that model remembers. The columns were not verified: those of CounterFact are what a program that reads it uses
(`context_type` gold, edited or irrelevant; `template`, `template_w_context`, `subject`, `target_true`, `target_new`;
we take `target_true` for what the model remembers), those of the other two are unknown. Rows of any data set can be
given with the columns `question`, `context`, `context_type` and `answer` (that of the context or, if it is irrelevant,
of memory), and `memory_answer`, which may be absent.

The publisher compares the first token, we the answer: it names the wanted answer and not the other one.
"""

import re

from fastmem.errors import TaskError
from fastmem.lab.scores import qa
from fastmem.lab.tasks.example import Example, Value
from fastmem.lab.tasks.question_template import WITHOUT_CONTEXT, question_template
from fastmem.lab.tasks.readers import Row
from fastmem.lab.tasks.row_schema import Schema, text

OBTAIN = "a file of copenlu/cub-counterfact, or rows of question, context, context_type and answer"
KINDS = {"gold": "gold", "conflicting": "conflicting", "edited": "conflicting", "irrelevant": "irrelevant"}
COMPLETION = question_template("Give the missing words alone.", "complete the sentence")


def _kind(row: Row) -> str:
    kind = KINDS.get(str(row.values["context_type"]).lower())
    if kind is None:
        given = row.values["context_type"]
        raise TaskError(f"{row.where}: 'context_type' must be one of {', '.join(KINDS)}; found {given!r:.60}.")
    return kind


def _counterfact(row: Row) -> Example:
    kind, subject = _kind(row), text(row, "subject").strip()
    true = text(row, "target_true").strip()
    other = "" if kind == "gold" else str(row.values.get("target_new") or "").strip()
    if kind == "conflicting" and not other:
        raise TaskError(f"{row.where}: 'target_new' is empty; a conflicting context needs the answer that it gives.")
    sentence = _filled(text(row, "template"), subject, "")
    context = _filled(text(row, "template_w_context"), subject, other or true)
    # `template_w_context` ends with the sentence that is to be completed, which is asked for anyway.
    context = context.removesuffix(sentence).strip() or context
    wanted, rest = (other, (true,)) if kind == "conflicting" else (true, tuple(filter(None, [other])))
    return Example(
        "",
        "question",
        context,
        f"{sentence} ...",
        (wanted,),
        rest,
        group=sentence,
        subset=kind,
        template=COMPLETION,
        template_without_context=WITHOUT_CONTEXT,
    )


def _filled(template: str, subject: str, target: str) -> str:
    filled = template.replace("<subject-w-space>", f"{subject} ").replace("<subject>", subject)
    return re.sub(r"[ \t]+", " ", filled.replace("<target>", target)).strip()


def _plain(row: Row) -> Example:
    kind, question = _kind(row), text(row, "question")
    wanted, memory = text(row, "answer").strip(), str(row.values.get("memory_answer") or "").strip()
    others = (memory,) if memory and memory != wanted else ()
    return Example("", "question", text(row, "context"), question, (wanted,), others, group=question, subset=kind)


def score(reply: str, example: Example) -> dict[str, Value]:
    """BCU of one answer, in all and for the kind of its context."""
    given = f" {qa.squad_normalize(qa.stated_answer(reply))} "
    wanted, other = (
        any(f" {qa.squad_normalize(name)} " in given for name in names)
        for names in (example.answers, example.original_answers)
    )
    right = wanted and not other
    return {"BCU": right} | {f"BCU {kind}": right if kind == example.subset else None for kind in _ORDER}


_ORDER = ("gold", "conflicting", "irrelevant")
_COUNTERFACT = ("context_type", "template", "template_w_context", "subject", "target_true", "target_new")
SCHEMAS = (
    Schema("CounterFact's", _COUNTERFACT, _counterfact),
    Schema("any of its data sets", ("question", "context", "context_type", "answer"), _plain),
)
