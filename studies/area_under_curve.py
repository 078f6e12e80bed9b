"""The area under the ROC curve, with a bootstrap over questions: one is drawn with all its rows."""

import numpy as np

from fastmem.lab.report.content import interval_text

RESAMPLES, SEED = 2000, 0


def resampled(groups: np.ndarray) -> np.ndarray:
    """[1 + R, N]: how often every row is drawn: once each, then in every resample of the groups [N]."""
    random, (_, group) = np.random.default_rng(SEED), np.unique(groups, return_inverse=True)
    count = group.max() + 1
    drawn = random.multinomial(count, np.full(count, 1 / count), RESAMPLES)[:, group]
    return np.concatenate([np.ones((1, len(group))), drawn])


def auroc(values: np.ndarray, label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R]: for every row of weights [R, N], the share of pairs of a true and a false row in which the true one has the
    larger value; equal values count half. NaN without such a pair."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    true, false = (np.add.reduceat((weights * side)[:, order], starts, axis=1) for side in (label, ~label))
    below = np.cumsum(false, axis=1) - false
    with np.errstate(invalid="ignore"):
        return (true * (below + false / 2)).sum(1) / (true.sum(1) * false.sum(1))


def interval(resampled: np.ndarray) -> tuple[float, float, float] | None:
    """The first value, and the ends of the interval from the others; None where there is none."""
    if np.isnan(resampled[0]):
        return None
    low, high = np.nanpercentile(resampled[1:], [2.5, 97.5])
    return float(resampled[0]), float(low), float(high)


def shown(resampled: np.ndarray, sign: str = "") -> str:
    """The first value, with the interval from the others."""
    found = interval(resampled)
    return "-" if found is None else interval_text(*found, sign=sign)
