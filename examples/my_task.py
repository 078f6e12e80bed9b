"""A task of one's own, in one file:

    fastmem eval --task examples/my_task.py --model Qwen/Qwen3-0.6B --methods base,fastmem --output runs/mine

Without --model it runs too, but the embedded model is small and was trained on other prompts. `examples` is all
that a task needs; the rest of this file is optional.
"""

from collections.abc import Iterator

from fastmem.lab.tasks import Example, Shot

OFFICES = {"Craneworth": "nine", "Alderhurst": "six", "Hollowford": "half past four"}

# The user turn. Without a template it is the paper's, which asks for "The answer is: ...".
TEMPLATE = "Read this notice.\n\n{context}\n\n{question} Answer with the time alone."

MAX_NEW_TOKENS = 12


def example(office: str, time: str) -> Example:
    notice = f"The office of {office} is closed on Mondays. On other days it closes at {time}."
    question = f"When does the office of {office} close?"
    # An empty id becomes row-1, row-2, ... `answers` are the accepted ones; what a model would remember instead, if
    # that is known, goes into `original_answers`.
    return Example("", "question", context=notice, question=question, answers=(time,), template=TEMPLATE)


def examples() -> Iterator[Example]:
    """The examples, in any order; rows of one document share its memory."""
    for office, time in OFFICES.items():
        yield example(office, time)


# For the method one-shot: a worked example, and the reply to it.
SHOT = Shot(example("Maplewick", "eight"), "eight")


def score(text: str, example: Example) -> dict[str, bool | float]:
    """The scores of a raw answer, in place of those of all question tasks, which look for "The answer is: ...".

    The first is the main one: the larger, the better, so `fastmem search` maximizes it.
    """
    time = example.answers[0]
    return {"names the time": time in text.lower(), "words beside it": float(len(text.split()) - len(time.split()))}
