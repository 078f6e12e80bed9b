"""FaithEval (arXiv 2410.03727): contexts without the answer, with two answers, and against common knowledge.

Reads the hub's rows. SalesforceAIResearch/FaithEval README.md names the data sets, the columns `context` and
`question`, and the phrases that count as right for the first two parts, loose and strict; they are looked for in the
answer, in which punctuation is replaced by blanks. Its script for the third part was never released; there the option
that the answer names, by its letter or its text, is right or wrong. `choices` and `answerKey` are the columns of
ARC-Challenge, from which the part was made, and were read from programs that use it, not from its card.

The prompts are ours: the paper's, with a sentence on when to answer "unknown" or "conflict".
"""

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import replace

from fastmem.errors import TaskError
from fastmem.lab.scores import qa
from fastmem.lab.tasks.example import Example, Value
from fastmem.lab.tasks.question_template import WITHOUT_CONTEXT, question_template
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, text

# The commit that uploaded the 2,492 rows; later ones changed the card only.
UNANSWERABLE_HUB = Hub(
    "Salesforce/FaithEval-unanswerable-v1.0", split="test", revision="001f1672f4a21cffcc8054da8fe839b225ccc683"
)
# Branches: we could not read the full name of their commits. Every run records the commit that was loaded.
INCONSISTENT_HUB = Hub("Salesforce/FaithEval-inconsistent-v1.0", split="test", revision="main")  # 1,500 rows
COUNTERFACTUAL_HUB = Hub("Salesforce/FaithEval-counterfactual-v1.0", split="test", revision="main")  # 1,000 rows

# The accepted phrases; the first is the strict one.
UNKNOWN = ("unknown", "no answer", "no information", "not", "unclear")
CONFLICT = (
    "conflict",
    "multiple answers",
    "disagreement",
    "inconsistent",
    "contradictory",
    "contradiction",
    "inconsistency",
    "two answers",
    "2 answers",
    "conflicting",
)
UNANSWERABLE_TEMPLATE = question_template(
    f'If the context holds no information that answers the question, the answer is "{UNKNOWN[0]}".'
)
INCONSISTENT_TEMPLATE = question_template(
    f'If the context holds several answers that disagree, the answer is "{CONFLICT[0]}".'
)
COUNTERFACTUAL_TEMPLATE = question_template(
    "Give the letter of the option.", "choose the option that the context supports"
)

_BLANKED = str.maketrans(dict.fromkeys(string.punctuation + "\u2018\u2019\u00b4`", " "))
_LETTER = re.compile(r"(?:option\s+)?\(?(\w)\)?(?=$|[).:,]|\s+-)", re.IGNORECASE)


def _with_phrase(phrases: tuple[str, ...], template: str) -> Callable[[Row], Example]:
    def parse(row: Row) -> Example:
        made = Example("", "question", text(row, "context"), text(row, "question"), phrases[:1])
        return replace(made, template=template, template_without_context=WITHOUT_CONTEXT)

    return parse


def _with_options(row: Row) -> Example:
    choices, key = row.values["choices"], str(row.values["answerKey"])
    try:
        options = dict(zip(map(str, choices["label"]), map(str, choices["text"]), strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise TaskError(
            f"{row.where}: 'choices' must hold the lists 'label' and 'text', of one length; found {choices!r:.60}."
        ) from error
    if key not in options:
        raise TaskError(f"{row.where}: 'answerKey' must be one of {', '.join(options)}; found {key!r:.60}.")
    listed = tuple(f"{label}. {option}" for label, option in options.items())
    return Example(
        "",
        "question",
        text(row, "context"),
        "\n".join([text(row, "question"), *listed]),
        (key, options[key]),
        choices=listed,
        template=COUNTERFACTUAL_TEMPLATE,
        template_without_context=WITHOUT_CONTEXT,
    )


def _phrase_score(phrases: tuple[str, ...]) -> Callable[[str, Example], dict[str, Value]]:
    def score(reply: str, example: Example) -> dict[str, Value]:
        given = _normalized(qa.stated_answer(reply))
        return {"accuracy": any(phrase in given for phrase in phrases), "accuracy (strict)": phrases[0] in given}

    return score


def _normalized(answer: str) -> str:
    """Lower case, blanks for punctuation, no articles, single blanks."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_BLANKED)).split())


unanswerable_score = _phrase_score(UNKNOWN)
inconsistent_score = _phrase_score(CONFLICT)


def counterfactual_score(reply: str, example: Example) -> dict[str, Value]:
    """Whether the answer names the right option, and whether it names any."""
    options = dict(line.split(". ", 1) for line in example.choices)
    named = _option(qa.stated_answer(reply), options)
    return {"accuracy": named == example.answers[0], "names an option": named is not None}


def _option(answer: str, options: Mapping[str, str]) -> str | None:
    """The label of the option that is named by its text, or by a letter at the start; None if none is."""
    if same := [label for label, option in options.items() if qa.exact_match(answer, [option])]:
        return same[0]
    letter = _LETTER.match(answer.strip())
    return letter[1].upper() if letter and letter[1].upper() in options else None


UNANSWERABLE = (Schema("the hub's", ("context", "question"), _with_phrase(UNKNOWN, UNANSWERABLE_TEMPLATE)),)
INCONSISTENT = (Schema("the hub's", ("context", "question"), _with_phrase(CONFLICT, INCONSISTENT_TEMPLATE)),)
COUNTERFACTUAL = (Schema("the hub's", ("context", "question", "choices", "answerKey"), _with_options),)
