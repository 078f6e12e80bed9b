"""Means with intervals, and comparisons of two methods on the same rows.

Rows of one group (the same question about several passages) are not independent, so the bootstrap resamples groups;
with one row per group it is the ordinary bootstrap. Resampling, exact intervals and the binomial test are scipy's.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastmem.errors import InputError

CONFIDENCE = 0.95
RESAMPLES = 5000
SEED = 0
# Resampled intervals of fewer are too narrow: five differences of one sign have p = 2 / 2**5 = 0.06, so that no 95 %
# interval of five may leave out 0.
LEAST_GROUPS = 6
_BATCH = 250  # resamples at a time, a divisor of their number; for 4,746 rows their indices take 9.5 MB


@dataclass(frozen=True)
class Mean:
    """A mean over `n` rows in `groups` groups, and its interval. `missing` further rows had no value.

    how: "bootstrap" (percentile, over groups); "exact" (Clopper-Pearson, over groups) for booleans that are all
        equal, since resampling them would give an interval of width 0, and for those of fewer than `LEAST_GROUPS`
        groups of one size; "none" for other values that are all equal or of so few groups (also booleans, if one
        group has both, or more rows than another), and for no value at all: low and high are then None.
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
    """Second method minus first, on the `n` rows that have a value under both.

    difference: the mean difference with its paired bootstrap interval, over groups.
    p_value: two-sided; None if there are no rows.
    test: "mcnemar" (exact) for booleans, "sign flip" (over groups) for numbers, "none" without a row to compare.
    only_first, only_second: rows that are right under this method only (booleans), or higher under it.
    """

    difference: Mean
    p_value: float | None
    test: str
    n: int
    only_first: int
    only_second: int


def mean(values: Sequence[float | bool | None], groups: Sequence[str] | None = None) -> Mean:
    """The mean of all values but None, with a 95 % interval. groups: a name per value; by default all differ."""
    sums, counts, missing = _by_group(values, groups)
    n = int(counts.sum())
    if n == 0:
        return Mean(None, None, None, 0, 0, missing, "none")
    value = float(sums.sum() / n)
    low, high, how = _interval(sums, counts, _all_boolean(v for v in values if v is not None))
    return Mean(value, low, high, n, len(counts), missing, how)


def compare(
    first: Sequence[float | bool | None], second: Sequence[float | bool | None], groups: Sequence[str] | None = None
) -> Comparison:
    """`second` against `first` on the same rows: McNemar's exact test for booleans, the sign-flip test otherwise.

    McNemar's test assumes independent rows, the interval of the difference does not. If rows repeat questions, trust
    the interval. Errors: `InputError` if the methods do not have the same number of rows.
    """
    if len(first) != len(second):
        raise InputError(f"methods can only be compared on the same rows; given {len(first)} and {len(second)} rows.")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    differences = [None if a is None or b is None else float(b) - float(a) for a, b in zip(first, second, strict=True)]
    difference = mean(differences, groups)
    only_first, only_second = sum(a > b for a, b in both), sum(b > a for a, b in both)
    binary = _all_boolean(value for pair in both for value in pair)
    if not both:
        return Comparison(difference, None, "none", 0, 0, 0)
    p_value = _mcnemar(only_first, only_second) if binary else _sign_flip(_by_group(differences, groups)[0])
    test = "mcnemar" if binary else "sign flip"
    return Comparison(difference, p_value, test, len(both), only_first, only_second)


def paired_interval(won: float, lost: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a difference of booleans: right under the second method only, less under the first only.

    won, lost: so many of the n pairs, not necessarily whole numbers. If one of them is 0, the end on the side of the
    other is the exact limit of its share (Clopper and Pearson 1934). [-1, 1] for no pairs.
    """
    if not n:
        return -1.0, 1.0
    # The exact limits of both shares, combined as in MOVER (Zou and Donner, Statistics in Medicine 27, 2008); the
    # counts of a multinomial distribution are correlated, at -1 if all pairs differ.
    (less, more), (less_lost, more_lost) = _exact_margins(won, n), _exact_margins(lost, n)
    same = (n - won) * (n - lost)
    correlation = -math.sqrt(won * lost / same) if same else -1.0

    def together(a: float, b: float) -> float:
        return math.sqrt(a**2 + b**2 - 2 * correlation * a * b)

    difference = (won - lost) / n
    return max(-1.0, difference - together(less, more_lost)), min(1.0, difference + together(more, less_lost))


def _exact_margins(count: float, n: float) -> tuple[float, float]:
    """How far the exact interval of the share `count / n` reaches below and above it."""
    from scipy import stats

    tail, share = (1 - CONFIDENCE) / 2, count / n
    low = float(stats.beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return share - low, high - share


def _all_boolean(values: Iterable[float | bool]) -> bool:
    return all(isinstance(value, (bool, np.bool_)) for value in values)


def _by_group(
    values: Sequence[float | bool | None], groups: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """(sum per group [G], number of rows per group [G], number of rows without a value)."""
    names = range(len(values)) if groups is None else groups
    if len(names) != len(values):
        raise InputError(f"every value needs a group; given {len(names)} groups for {len(values)} values.")
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
    equal = np.ptp(shares) == 0
    if equal or len(shares) < LEAST_GROUPS:
        of_groups = equal or np.ptp(counts) == 0  # the mean over rows is that over groups, as the exact interval
        if not boolean or not of_groups or not np.isin(shares, (0.0, 1.0)).all():
            return None, None, "none"
        right = int(shares.sum())
        exact = stats.binomtest(right, len(counts)).proportion_ci(CONFIDENCE, method="exact")
        return float(exact.low), float(exact.high), "exact"
    resampled = stats.bootstrap(
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
    low, high = resampled.confidence_interval
    return float(low), float(high), "bootstrap"


def _mcnemar(only_first: int, only_second: int) -> float:
    from scipy import stats

    discordant = only_first + only_second
    return float(stats.binomtest(only_second, discordant).pvalue) if discordant else 1.0


def _sign_flip(sums: np.ndarray) -> float:
    """The share of ways to flip the signs of the groups' differences, summed per group [G], in which their sum is as
    far from 0 as it is: a permutation test (Fisher 1935). Of all ways if they are few, else of drawn ones."""
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # equal sums may be rounded differently
    if 2 ** len(sums) <= RESAMPLES:
        signs = np.array(list(itertools.product((1, -1), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= least).mean())
    random = np.random.default_rng(SEED)
    batches = (random.choice((1.0, -1.0), (_BATCH, len(sums))) @ sums for _ in range(RESAMPLES // _BATCH))
    extreme = sum(int((abs(flipped) >= least).sum()) for flipped in batches)
    return (extreme + 1) / (RESAMPLES + 1)
