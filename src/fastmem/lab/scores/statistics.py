"""Means with intervals, and two methods compared on the same rows.

Rows of one group (the same question asked of several passages) are not independent, so groups are what is resampled; a
group of one row each gives the ordinary bootstrap. Resampling, exact intervals and the binomial test are scipy's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.errors import InputError

CONFIDENCE = 0.95
RESAMPLES = 5000
SEED = 0
_BATCH = 250  # resamples at a time: 4,746 rows make 9.5 MB of indices


@dataclass(frozen=True)
class Mean:
    """A mean over `n` rows in `groups` groups and its interval; `missing` rows had no value and are in none of these.

    how: "bootstrap" (percentile, over groups); "exact" (Clopper-Pearson, over groups) for right-or-wrong values that
        are all alike, where resampling would pretend to certainty; "none" for other values all alike and for no
        value at all, where low and high are None.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int
    missing: int
    how: str


@dataclass(frozen=True)
class Comparison:
    """Second method minus first, on the `n` rows where both have a value.

    difference: the mean difference with its paired bootstrap interval, over groups.
    p_value: two-sided; None where there is no row, or nothing to resample.
    test: "mcnemar" (exact) for right and wrong, "paired bootstrap" otherwise.
    only_first, only_second: rows right under one method alone (mcnemar), or higher under it.
    """

    difference: Mean
    p_value: float | None
    test: str
    n: int
    only_first: int
    only_second: int


def mean(values: Sequence[float | bool | None], groups: Sequence[str] | None = None) -> Mean:
    """The mean of the values that are there, with a 95 % interval. groups: one name per value; none: each its own."""
    sums, counts, missing = _by_group(values, groups)
    n = int(counts.sum())
    if n == 0:
        return Mean(None, None, None, 0, 0, missing, "none")
    value = float(sums.sum() / n)
    low, high, how = _interval(sums, counts, all(isinstance(v, (bool, np.bool_)) for v in values if v is not None))
    return Mean(value, low, high, n, len(counts), missing, how)


def compare(
    first: Sequence[float | bool | None], second: Sequence[float | bool | None], groups: Sequence[str] | None = None
) -> Comparison:
    """`second` against `first` on the same rows: McNemar's exact test for booleans, the paired bootstrap otherwise.

    McNemar's test takes rows as independent; the interval of the difference does not, so where rows repeat questions
    the interval is the safer of the two.
    """
    if len(first) != len(second):
        raise InputError(f"two methods are compared on the same rows; given {len(first)} and {len(second)}.")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    differences = [None if a is None or b is None else float(b) - float(a) for a, b in zip(first, second, strict=True)]
    difference = mean(differences, groups)
    only_first, only_second = sum(a > b for a, b in both), sum(b > a for a, b in both)
    binary = all(isinstance(value, (bool, np.bool_)) for pair in both for value in pair)
    test = "mcnemar" if binary else "paired bootstrap"
    if not both:
        return Comparison(difference, None, test, 0, 0, 0)
    p_value = _mcnemar(only_first, only_second) if binary else _paired_bootstrap(differences, groups)
    return Comparison(difference, p_value, test, len(both), only_first, only_second)


def _by_group(
    values: Sequence[float | bool | None], groups: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """(sum of each group [G], rows of each group [G], rows without a value)."""
    names = range(len(values)) if groups is None else groups
    if len(names) != len(values):
        raise InputError(f"one group per value is needed; given {len(names)} groups for {len(values)} values.")
    sums: dict[object, float] = {}
    counts: dict[object, int] = {}
    for name, value in zip(names, values, strict=True):
        if value is not None:
            sums[name] = sums.get(name, 0.0) + float(value)
            counts[name] = counts.get(name, 0) + 1
    missing = sum(value is None for value in values)
    return np.array(list(sums.values())), np.array(list(counts.values()), dtype=float), missing


def _interval(sums: np.ndarray, counts: np.ndarray, boolean: bool) -> tuple[float | None, float | None, str]:
    from scipy import stats

    shares = sums / counts
    if np.ptp(shares) == 0:
        if not boolean or shares[0] not in (0.0, 1.0):
            return None, None, "none"
        right = len(counts) if shares[0] else 0
        exact = stats.binomtest(right, len(counts)).proportion_ci(CONFIDENCE, method="exact")
        return float(exact.low), float(exact.high), "exact"
    low, high = _resampled(sums, counts).confidence_interval
    return float(low), float(high), "bootstrap"


def _resampled(sums: np.ndarray, counts: np.ndarray) -> Any:
    """scipy's bootstrap of the ratio of sums, groups resampled with their rows."""
    from scipy import stats

    return stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )


def _mcnemar(only_first: int, only_second: int) -> float:
    from scipy import stats

    discordant = only_first + only_second
    return float(stats.binomtest(only_second, discordant).pvalue) if discordant else 1.0


def _paired_bootstrap(differences: Sequence[float | None], groups: Sequence[str] | None) -> float | None:
    """Twice the smaller share of resampled differences on either side of 0; None where all groups differ alike."""
    sums, counts, _ = _by_group(differences, groups)
    if np.ptp(sums / counts) == 0:
        return None
    drawn = _resampled(sums, counts).bootstrap_distribution
    below, above = (drawn <= 0).sum() + 1, (drawn >= 0).sum() + 1
    return float(min(1.0, 2 * min(below, above) / (len(drawn) + 1)))
