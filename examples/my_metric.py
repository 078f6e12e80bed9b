"""A metric of one's own, in one file:

    fastmem eval --task world_swap --limit 20 --metric examples/my_metric.py --output runs/mine
    fastmem report runs/mine --metric examples/my_metric.py

The second command needs no model: it adds the metric to a run that was made without it.
"""

import re

from fastmem.lab.tasks import Example


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def score(text: str, example: Example) -> dict[str, float | bool | None]:
    """Scores of a raw answer, by name. One number alone would take the name of the file, my_metric.

    True and False are compared by McNemar's test, numbers by the sign-flip test. None is a score that is missing.
    """
    given, known = words(text), {*words(example.context), *words(example.question), "the", "answer", "is"}
    share = sum(word in known for word in given) / len(given) if given else None
    return {"grounded words": share, "all grounded": share == 1}
