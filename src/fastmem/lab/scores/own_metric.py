"""Scores of one's own: the function `score` of a Python file.

def score(text, example):               # the answer, and the `Example` it answers
    return {"words": len(text.split())}  # or one number, which takes the name of the file
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastmem.errors import FastMemError, InputError
from fastmem.lab.python_file import PythonFile, load_file
from fastmem.lab.scores.grading import STANDARD, Record
from fastmem.lab.tasks.example import Example, Value
from fastmem.ranges import plain

USE = "def score(text, example): return 1.0"
_NAME = re.compile(r"[^\s|][^\n|]{0,79}")  # a name is a cell of a Markdown table


@dataclass(frozen=True)
class OwnMetric:
    """The scores that a file computes."""

    file: PythonFile

    @property
    def name(self) -> str:
        """The name of its score if it gives one number."""
        return self.file.path.stem

    def scores(self, text: str, example: Example) -> dict[str, Value]:
        """Name -> score of an answer; None for a score that is missing. Errors: `InputError`."""
        function = self.file.function("score", USE)
        try:
            given = function(text, example)
            found: dict[Any, Any] = given if isinstance(given, dict) else {self.name: given}
            found = {name: plain(value) for name, value in found.items()}
        except (Exception, SystemExit) as error:
            raise self.file.failure(error) from error
        for name, value in found.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise self.file.error(f"the score is called {name!r:.90}; give a short text on one line, without '|'")
            if name in STANDARD:
                raise self.file.error(f"the score {name!r} exists already; give yours another name")
            if value is not None and not isinstance(value, int | float):
                raise self.file.error(f"the score {name!r} is {value!r:.60}; give a number, True, False or None")
            if value is not None and not math.isfinite(value):
                raise self.file.error(f"the score {name!r} is {value}; give a finite number, or None if it is missing")
        return found


def own_metric(path: str) -> OwnMetric:
    """The metric of a file. Errors: `InputError` if it cannot be executed or has no function `score`."""
    file = load_file(path, "metric")
    file.function("score", USE)
    return OwnMetric(file)


def try_out(metrics: Iterable[OwnMetric], example: Example, taken: Iterable[str] = ()) -> dict[str, str]:
    """Name of each score -> its file, from scoring an empty answer and the example's own, before any answer is made.

    taken: the scores that the task has already. Errors: `InputError` if that fails, or if a score has the name of
    another.
    """
    names: dict[str, str] = {}
    of_task = frozenset(taken)
    for metric in metrics:
        for text in ("", *example.answers[:1]):
            try:
                found = metric.scores(text, example)
            except FastMemError as error:
                tried = f"Tried with the answer {text!r:.60} to the example {example.id!r}."
                raise InputError(f"{error.text} {tried}", field=metric.file.what) from error
        if not found:
            raise metric.file.error("it gave no score")
        if twice := [name for name in found if name in of_task]:
            raise metric.file.error(f"the score {twice[0]!r} exists already; give yours another name")
        if twice := [name for name in found if name in names]:
            raise metric.file.error(f"another file has a score {twice[0]!r}, too; give one of them another name")
        names |= dict.fromkeys(found, metric.file.label)
    return names


def with_scores(row: Record, metrics: Iterable[OwnMetric], example: Example) -> Record:
    """The row with the scores of these metrics, or with the reason why those of one are missing."""
    for metric in metrics:
        scores, missing = row["scores"], {k: v for k, v in (row.get("missing") or {}).items() if k != metric.name}
        try:
            scores = scores | metric.scores(row["text"], example)
        except FastMemError as error:
            missing[metric.name] = f"{metric.name} is missing: {error.text.removesuffix('.')}"
        row = row | {"scores": scores, "missing": missing}
    return row
