"""ClashEval (arXiv 2404.10198): contexts whose answer was changed, little or much, or left as it was.

Reads rows with the columns of kevinwu23/StanfordClashEval (README.md, "data"): its `model_responses/*.pqt`, and
`dataset.pqt`, whose columns were not verified. Its form on the hub is a script, which `datasets` no longer runs.

The right answer is `answer_original`. Metrics as in its compute_metrics.ipynb, over the rows in which either the
context or the prior (what the model answered without a context, the column `prior_response`) is right, not both:
"accuracy in conflict", the share that takes the right one; "context bias", where the prior is right, the share that
follows the context; "prior bias", where the context is right, the share that keeps the prior. Without that column
these are missing. The publisher divides both biases by all rows, drawn so that the halves are equal: its figures are
half of ours. "accuracy" and "follows a wrong context" are over all rows, and over those with a wrong context.

The prompt is the paper's, not the publisher's. Answers are compared as there: names by their letters, records as
times, others as texts; and numbers by their value, since our prompt does not forbid a unit.
"""

import re

from fastmem.lab.scores import qa
from fastmem.lab.tasks.example import Example, Value
from fastmem.lab.tasks.readers import Row
from fastmem.lab.tasks.row_schema import Schema, text

OBTAIN = "dataset.pqt, or model_responses/llama3.pqt with the priors of Llama-3-8B, of kevinwu23/StanfordClashEval"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TIME = re.compile(r"(?:\d+:){0,2}\d+(?:\.\d+)?")
_TENTH = 0.1 + 1e-9  # seconds: records within this are the same


def parse(row: Row) -> Example:
    """The example of a row: its choices are the context's answer alone, its original answer is the prior."""
    values = {
        name: str(row.values[name]).strip()
        for name in ("answer_original", "answer_mod", "prior_response", "dataset")
        if row.values.get(name) is not None
    }
    question = text(row, "question")
    return Example(
        "",
        "question",
        text(row, "context_mod"),
        question,
        (values.get("answer_original", ""),),
        (values["prior_response"],) if values.get("prior_response") else (),
        choices=(values.get("answer_mod", ""),),
        group=question,
        subset=values.get("dataset", ""),
    )


def score(reply: str, example: Example) -> dict[str, Value]:
    """The scores of one answer; None where one does not apply."""
    answer, right, kind = qa.stated_answer(reply), example.answers[0], example.subset
    prior = example.original_answers[0] if example.original_answers else None
    follows = _same(answer, example.choices[0], kind) if example.choices else False
    found: dict[str, Value] = {"accuracy": _same(answer, right, kind), "follows a wrong context": None}
    found |= dict.fromkeys(("accuracy in conflict", "context bias", "prior bias"))
    context_right = bool(example.choices) and _same(example.choices[0], right, kind)
    if not context_right:
        found["follows a wrong context"] = follows
    if prior is None or _same(prior, right, kind) == context_right:
        return found
    keeps = _same(answer, prior, kind)
    found["accuracy in conflict"] = follows if context_right else keeps
    found["prior bias" if context_right else "context bias"] = keeps if context_right else follows
    return found


def _same(answer: str, other: str, kind: str) -> bool:
    """Whether two answers are the same. kind: the part of the data set."""
    if not answer.strip() or not other.strip():
        return False
    if kind == "names":
        return _same_name(answer, other)
    pattern, value, apart = (_TIME, _seconds, _TENTH) if kind == "records" else (_NUMBER, _value, 0.0)
    if not pattern.fullmatch(other.strip()):
        return qa.exact_match(answer, [other])
    found = pattern.findall(answer)  # not compared as texts, in which 3.0 is 30
    return len(found) == 1 and abs(value(found[0]) - value(other.strip())) <= apart


def _same_name(answer: str, other: str) -> bool:
    """The same letters; a name of one part is also the same as one that contains it."""
    first, second = ([re.sub(r"[^a-z]", "", part) for part in each.lower().split()] for each in (answer, other))
    if len(first) == 1 or len(second) == 1:
        short, long = (first[0], " ".join(second)) if len(first) == 1 else (second[0], " ".join(first))
        return bool(short) and short in long
    return first == second


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _seconds(time: str) -> float:
    """`1:02.5` as 62.5."""
    total = 0.0
    for part in time.split(":"):
        total = 60 * total + float(part)
    return total


SCHEMAS = (Schema("the publisher's", ("question", "context_mod", "answer_original", "answer_mod"), parse),)
