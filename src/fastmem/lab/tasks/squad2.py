"""SQuAD 2.0 (arXiv 1806.03822): questions that the passage answers, and questions that it does not.

Reads the hub's rows, JSONL rows of those columns, and the publisher's nested JSON (`dev-v2.0.json`). Exact match and
F1 as in the publisher's evaluate-v2.0.py, over all questions, over the answerable ones, and over the unanswerable ones
(where both are the share of abstentions). The publisher's empty answer is here one of `ABSTENTIONS`, which the prompt
asks for; an empty reply is none.
"""

from fastmem.lab.scores import qa
from fastmem.lab.tasks.example import Example, Value
from fastmem.lab.tasks.question_template import WITHOUT_CONTEXT, question_template
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, as_list, text

# The parquet commit that public projects pin; 11,873 validation rows, of which 5,945 have no answer.
HUB = Hub("rajpurkar/squad_v2", split="validation", revision="3ffb306f725f7d2ce8394bc1873b24868140c412")

ABSTENTIONS = ("unanswerable", "no answer", "unknown")
TEMPLATE = question_template(f'If the context does not answer the question, the answer is "{ABSTENTIONS[0]}".')


def parse(row: Row) -> Example:
    """The example of a row, without answers if the question is unanswerable."""
    given = (item.get("text") if isinstance(item, dict) else item for item in as_list(row.values["answers"] or []))
    answers = tuple(dict.fromkeys(item.strip() for item in given if isinstance(item, str) and item.strip()))
    question = text(row, "question")
    return Example(
        "",
        "question",
        text(row, "context"),
        question,
        answers,
        group=question,
        subset="answerable" if answers else "unanswerable",
        template=TEMPLATE,
        template_without_context=WITHOUT_CONTEXT,
    )


def score(reply: str, example: Example) -> dict[str, Value]:
    """Exact match and F1 of one answer, and the same for its kind of question."""
    answer = qa.stated_answer(reply)
    abstains = qa.squad_normalize(answer) in ABSTENTIONS
    if not example.answers:
        return {
            "EM": abstains,
            "F1": float(abstains),
            "EM answerable": None,
            "F1 answerable": None,
            "EM unanswerable": abstains,
        }
    exact = not abstains and qa.exact_match(answer, example.answers)
    f1 = 0.0 if abstains or not answer else qa.token_f1(answer, example.answers)
    return {"EM": exact, "F1": f1, "EM answerable": exact, "F1 answerable": f1, "EM unanswerable": None}


SCHEMAS = (Schema("SQuAD's", ("question", "context", "answers"), parse),)
