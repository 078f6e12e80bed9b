"""ConFiQA (arXiv 2412.15280): questions whose passage names another entity than the facts do.

Reads the three JSON lists of byronBBL/Context-DPO (`ConFiQA/ConFiQA-QA.json`, `-MR`, `-MC`), one or a folder of them;
columns as in its README.md. Metrics as in its evaluation.py: Pc, the share of answers that name the passage's entity,
without a negation and without naming the original one (there "ps"); Po, the share that name the original one; MR =
Po / (Po + Pc), over the answers that name one of the two; EM, the share that equal the passage's.

Two things differ: the prompt is the paper's, and what is graded is the answer that it asks for, up to a line break.
"""

from collections.abc import Iterable

from fastmem.lab.scores import qa
from fastmem.lab.tasks.example import Example, Value
from fastmem.lab.tasks.readers import Row
from fastmem.lab.tasks.row_schema import Schema, as_list, text

OBTAIN = "ConFiQA-QA.json, ConFiQA-MR.json or ConFiQA-MC.json of byronBBL/Context-DPO, or their folder"
_NEGATIONS = frozenset(
    ("no", "not", "never", "none", "cannot", "nobody", "nothing", "nowhere", "neither", "nor", "without", "hardly")
)


def parse(row: Row) -> Example:
    """The example of a row; its subset is the end of the file's name, such as `QA`."""
    question = text(row, "question")
    subset = row.path.stem.rpartition("-")[2] if row.path and "-" in row.path.stem else ""
    answers, original = _names(row, "cf_answer", "cf_alias"), _names(row, "orig_answer", "orig_alias")
    return Example("", "question", text(row, "cf_context"), question, answers, original, group=question, subset=subset)


def _names(row: Row, answer: str, alias: str) -> tuple[str, ...]:
    further = (item.strip() for item in as_list(row.values.get(alias) or []) if isinstance(item, str) and item.strip())
    return tuple(dict.fromkeys([text(row, answer).strip(), *further]))


def score(reply: str, example: Example) -> dict[str, Value]:
    """Pc, Po, MR and EM of one answer; MR is None where it names neither entity."""
    answer = qa.stated_answer(reply)
    given = qa.squad_normalize(answer)
    denied = not _NEGATIONS.isdisjoint(given.split())
    original = _named(given, example.original_answers)
    followed = _named(given, example.answers) and not denied and not original
    exact = qa.exact_match(answer, example.answers) and _NEGATIONS.isdisjoint(answer.split())
    return {"Pc": followed, "Po": original, "MR": original if original or followed else None, "EM": exact}


def _named(given: str, names: Iterable[str]) -> bool:
    """Whether the text contains a name, even inside a word."""
    return bool(given) and any(qa.squad_normalize(name) in given for name in names)


SCHEMAS = (Schema("the publisher's", ("question", "cf_context", "cf_answer", "orig_answer"), parse),)
