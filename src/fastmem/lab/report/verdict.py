"""Does memorizing help on these questions? One half of them chooses the method, the other half judges it."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastmem.lab.report.content import interval_text
from fastmem.lab.report.results import BASE, Results
from fastmem.lab.scores import grading, statistics
from fastmem.lab.scores.grading import Record
from fastmem.lab.search.search import is_searched
from fastmem.memory.effect import hardly, is_measured

Word = Literal["helps", "no difference", "harms", "too few questions"]
# A difference of less than this, either way, counts as none.
MARGIN = 0.05
P_VALUE = 0.05
SCORES = ("paper_correct", "exact_match")


@dataclass(frozen=True)
class Verdict:
    """What the judging half of the questions says of `method`, which was the best on the other half.

    difference: of the share of right answers by the paper's rule, with its 95 % interval [low, high]. exact: the same
    by exact match. needed: how many questions in all would probably decide, for "too few questions". means: method ->
    score -> mean over the judging half. seconds: what a question takes more than without a memory.
    """

    word: Word
    method: str
    questions: int
    choosing: int
    difference: statistics.Comparison
    low: float
    high: float
    exact: statistics.Comparison
    needed: int | None
    means: dict[str, dict[str, statistics.Mean]]
    seconds: float

    @property
    def gained(self) -> int:
        """Answers that became right, less those that became wrong."""
        return self.difference.only_second - self.difference.only_first

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        value = self.difference.difference.value or 0.0
        figures = interval_text(value, self.low, self.high, "+")
        seconds = f"{abs(self.seconds):.2g} s {'more' if self.seconds >= 0 else 'less'} per question"
        if self.word in ("helps", "harms"):
            change = "more" if self.gained > 0 else "fewer"
            counted = f"{abs(self.gained)} {change} of {self.questions} answers agree with the document"
            return f"{self.method} {self.word}: {counted}, {figures}, {seconds}"
        if self.word == "no difference":
            none = f"{self.method} makes no difference of {MARGIN} or more"
            return f"{none}: {figures} on {self.questions} questions, {seconds}"
        total = self.questions + self.choosing
        return (
            f"too few questions to judge {self.method}: {figures} on {self.questions} of {total} questions, "
            f"{seconds}; about {self.needed} in all are enough (half of them choose the method)"
        )


def judged(r: Results, methods: Sequence[str]) -> Verdict | None:
    """The verdict on a run of the base and these methods; None if no row has an answer to compare with.

    Rows without an answer are left out, and questions that failed with the base or one of the methods.
    """
    with_answers = {example.id for example in r.examples if example.answers}
    if not with_answers:
        return None
    failed = {row["id"] for method in (BASE, *methods) for row in r.rows[method] if row["error"]}
    choosing, judging = (_part(r, with_answers - failed, searched) for searched in (True, False))
    method = max(methods, key=lambda name: _right(choosing.rows[name]))
    difference, exact = (judging.against_base(method, score) for score in SCORES)
    assert difference is not None
    assert exact is not None
    low, high = interval(difference)
    word = word_for(difference, low, high)
    needed = needed_questions(difference) if word == "too few questions" else None
    means = {name: {score: judging.mean(name, score) for score in SCORES} for name in r.methods}
    return Verdict(
        word=word,
        method=method,
        questions=len(judging.rows[BASE]),
        choosing=len(choosing.rows[BASE]),
        difference=difference,
        low=low,
        high=high,
        exact=exact,
        needed=needed,
        means=means,
        seconds=seconds_of(r, method) - seconds_of(r, BASE),
    )


def word_for(difference: statistics.Comparison, low: float, high: float) -> Word:
    """The verdict: an interval on one side of 0 and McNemar's test, or an interval within the margin."""
    significant = difference.p_value is not None and difference.p_value < P_VALUE
    if significant and (low > 0 or high < 0):
        return "helps" if low > 0 else "harms"
    return "no difference" if _within_margin(low, high) else "too few questions"


def interval(difference: statistics.Comparison) -> tuple[float, float]:
    """The 95 % interval of a difference: `paired_interval`, since a resampled one is too narrow where few answers
    changed; the resampled one where that is wider, as it may be if rows repeat questions."""
    mean, (low, high) = difference.difference, _paired_interval(difference, difference.n)
    return (low, high) if mean.low is None or mean.high is None else (min(low, mean.low), max(high, mean.high))


def needed_questions(difference: statistics.Comparison) -> int:
    """How many questions in all would probably decide, if further ones are like these.

    Either the interval comes to lie within the margin, or McNemar's test, whose statistic grows with their number,
    tells the two apart.
    """
    n, lost, won = max(difference.n, 1), difference.only_first, difference.only_second
    edge, changed = abs(won - lost), won + lost
    ways = list[float]()
    if edge / n < MARGIN:
        enough = n + 1
        while not _within_margin(*_paired_interval(difference, enough)):
            enough = max(enough + 1, int(1.01 * enough))
        ways.append(enough)
    if edge:
        # 6 to 0 is the least with p < 0.05
        ways.append(n * max(3.84 * changed / edge**2, 6 / changed) / _questions_per_row(difference))
    return 2 * math.ceil(max(min(ways), n + 1))


def _paired_interval(difference: statistics.Comparison, rows: int) -> tuple[float, float]:
    """That of so many rows like these."""
    questions = rows * _questions_per_row(difference)
    each = questions / max(difference.n, 1)
    return statistics.paired_interval(difference.only_second * each, difference.only_first * each, questions)


def _questions_per_row(difference: statistics.Comparison) -> float:
    """Less than 1 where rows repeat a question; those of one question count as one."""
    return difference.difference.groups / difference.n if difference.n else 1.0


def _within_margin(low: float, high: float) -> bool:
    return max(-low, high) <= MARGIN


def seconds_of(r: Results, method: str) -> float:
    """What a question takes with a method: reading the document, the steps, its share of a batch's decoding."""
    return sum(grading.seconds(r.rows[method]).values())


def hardly_memorized(r: Results, method: str) -> tuple[float, float] | None:
    """(mean loss before, after memorizing) if it hardly fell; otherwise None, also if no row measured its effect."""
    traces = [row["trace"] for row in r.rows[method] if is_measured(row.get("trace") or ())]
    if not traces:
        return None
    before, after = (sum(trace[place][1] for trace in traces) / len(traces) for place in (0, -1))
    return (before, after) if hardly(before, after) else None


def _part(r: Results, ids: Collection[str], searched: bool) -> Results:
    """The rows of these examples that are in the half that search uses, or in the other half."""
    rows = {
        method: [row for row in of_method if row["id"] in ids and is_searched(row["group"]) is searched]
        for method, of_method in r.rows.items()
    }
    return replace(r, rows=rows, _means={})


def _right(rows: Sequence[Record]) -> float:
    """How many answers are right, by both rules together."""
    return sum(float(row["scores"][score]) for row in rows for score in SCORES)
