"""Means with n and an interval over groups, and comparisons of two methods on the same rows."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from fastmem.errors import InputError
from fastmem.lab.scores.statistics import compare, mean


def test_mean_and_interval():
    values = list(np.random.default_rng(1).normal(0.5, 0.2, 400))
    result = mean(values)
    assert result.value == pytest.approx(np.mean(values))
    assert (result.n, result.groups, result.missing, result.how) == (400, 400, 0, "bootstrap")
    error = 1.96 * np.std(values) / 20  # the normal interval; the bootstrap is close to it at this n
    assert result.low == pytest.approx(result.value - error, abs=0.1 * error)
    assert result.high == pytest.approx(result.value + error, abs=0.1 * error)
    assert mean(values) == result  # seeded


def test_the_interval_covers_the_truth_about_as_often_as_it_should():
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        result = mean([bool(value) for value in random.random(80) < 0.7])
        covered += result.low <= 0.7 <= result.high
    assert 51 <= covered <= 60  # binomial(60, 0.95) falls below 51 once in 900 times


def test_rows_of_one_group_count_once():
    random = np.random.default_rng(3)
    answers = list(random.random(100) < 0.5)
    alone = mean([bool(value) for value in answers])
    repeated = [bool(value) for value in answers for _ in range(4)]
    taken_as_rows = mean(repeated)
    grouped = mean(repeated, [str(i // 4) for i in range(400)])
    assert grouped.value == taken_as_rows.value == alone.value
    assert (grouped.low, grouped.high) == (alone.low, alone.high)
    assert grouped.high - grouped.low > 1.8 * (taken_as_rows.high - taken_as_rows.low)
    assert (grouped.n, grouped.groups) == (400, 100)


def test_groups_are_weighted_by_their_rows():
    assert mean([1.0, 1.0, 0.0], ["a", "a", "b"]).value == pytest.approx(2 / 3)
    values, groups = [], []
    for question in range(80):  # a group is one wrong row or nine right ones
        rows = 9 if question % 2 else 1
        values += [rows == 9] * rows
        groups += [str(question)] * rows
    result = mean(values, groups)
    drawn = stats.binom(80, 0.5).ppf([0.025, 0.975])  # number of large groups in a resample of 80
    assert result.value == pytest.approx(0.9)
    assert (result.low, result.high) == pytest.approx(tuple(9 * drawn / (9 * drawn + 80 - drawn)), abs=0.01)


def test_missing_values_are_counted():
    result = mean([1.0, None, 0.0, None])
    assert (result.value, result.n, result.missing) == (0.5, 2, 2)
    nothing = mean([None, None])
    assert (nothing.value, nothing.low, nothing.n, nothing.missing, nothing.how) == (None, None, 0, 2, "none")
    assert mean([]).n == 0


def test_all_right_is_not_certain():
    result = mean([True] * 20)
    assert (result.value, result.high, result.how) == (1.0, 1.0, "exact")
    assert result.low == pytest.approx(0.025 ** (1 / 20))
    assert mean([False] * 20).high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert mean([True] * 20, ["q"] * 20).low == pytest.approx(0.025)  # one question, asked 20 times
    assert mean([0.3, 0.3]).how == "none"


def test_mcnemar():
    first = [True] * 50 + [False] * 30 + [True] * 3 + [False] * 12
    second = [True] * 50 + [False] * 30 + [False] * 3 + [True] * 12
    result = compare(first, second)
    assert (result.test, result.n, result.only_first, result.only_second) == ("mcnemar", 95, 3, 12)
    assert result.p_value == pytest.approx(2 * stats.binom.cdf(3, 15, 0.5))
    assert result.difference.value == pytest.approx(9 / 95)
    assert result.difference.low < 9 / 95 < result.difference.high


def test_mcnemar_without_a_difference():
    result = compare([True, False], [True, False])
    assert (result.p_value, result.difference.value, result.difference.how) == (1.0, 0.0, "none")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12])
def test_numbers_are_compared_by_all_ways_to_flip_the_signs_of_few_groups(count):
    differences = np.random.default_rng(count).normal(0.3, 1.0, count)
    ways = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=count)]
    expected = np.mean([abs(way) >= abs(sum(differences)) - 1e-12 for way in ways])
    result = compare([0.0] * count, list(differences))
    assert (result.test, result.p_value) == ("sign flip", pytest.approx(expected))
    if count > 1:  # which scipy asks for
        found = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=5000)
        assert result.p_value == pytest.approx(found.pvalue)


def test_no_row_is_certain():
    """Differences of one sign: at most the two ways with one sign for all are as extreme."""
    for count in range(1, 12):
        rows = [0.1 * i for i in range(1, count + 1)]
        assert compare([0.0] * count, rows).p_value == pytest.approx(2 * 0.5**count)
        assert compare([0.0] * count, [0.5] * count).p_value == pytest.approx(2 * 0.5**count)
    assert compare([0.5] * 9, [0.5] * 9).p_value == 1.0
    repeated = compare([0.0] * 30, [0.1 + i for i in range(30)], [str(i // 10) for i in range(30)])
    assert repeated.p_value == pytest.approx(2 * 0.5**3)


def test_with_many_groups_the_p_value_is_that_of_scipy():
    differences = np.random.default_rng(5).normal(0.15, 1.0, 150)
    found = stats.permutation_test(
        (differences,),
        lambda values, axis: values.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=50_000,
        rng=np.random.default_rng(6),
    )
    result = compare([0.0] * 150, list(differences))
    assert 0.02 < found.pvalue < 0.5
    assert result.p_value == pytest.approx(found.pvalue, abs=3 * np.sqrt(found.pvalue / 5000))
    assert result == compare([0.0] * 150, list(differences))  # seeded
    unequal = [str(i * i // 100) for i in range(150)]  # groups of 1 to 10 rows
    sums = [differences[[name == other for other in unequal]].sum() for name in dict.fromkeys(unequal)]
    grouped = compare([0.0] * 150, list(differences), unequal)
    assert grouped.p_value == pytest.approx(compare([0.0] * len(sums), sums).p_value)


def test_few_groups_have_no_interval_by_resampling():
    assert mean([0.1, 0.2, 0.3, 0.4, 0.5]).how == "none"
    assert mean([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).how == "bootstrap"
    assert mean([0.1 * i for i in range(10)], [str(i // 2) for i in range(10)]).low is None
    few = mean([True, True, True, True, False])
    exact = stats.binomtest(4, 5).proportion_ci(method="exact")
    assert (few.low, few.high, few.how) == (pytest.approx(exact.low), pytest.approx(exact.high), "exact")
    assert mean([True, False, True], ["a", "a", "b"]).how == "none"  # half a question is right
    assert compare([True, False, True], [True, True, True]).difference.low is None


def test_an_interval_holds_its_mean():
    """The mean is over rows, the exact interval over groups: of few groups they agree only if all are of one size."""
    values, groups = [False] * 100 + [True] * 4, ["a"] * 100 + ["b", "c", "d", "e"]
    assert mean(values, groups).value == pytest.approx(4 / 104)
    assert (mean(values, groups).low, mean(values, groups).how) == (None, "none")
    pairs = mean([True, True, True, True, False, False], ["a", "a", "b", "b", "c", "c"])
    assert (pairs.value, pairs.how) == (pytest.approx(2 / 3), "exact")
    assert pairs.low < pairs.value < pairs.high
    assert mean([True, True, True], ["a", "a", "b"]).how == "exact"  # all are equal, whatever the sizes


def test_numbers_of_many_rows():
    random = np.random.default_rng(4)
    first = random.normal(0.0, 1.0, 200)
    better = compare(list(first), list(first + random.normal(0.05, 0.1, 200)))
    assert better.test == "sign flip"
    assert better.p_value < 0.001  # the rows vary by 1, the differences by 0.1: an unpaired test would find nothing
    assert 0.0 < better.difference.low < better.difference.high < 0.1
    same = compare(list(first), list(first + random.normal(0.0, 0.1, 200)))
    assert same.p_value > 0.05
    assert same.difference.low < 0 < same.difference.high
    worse = compare(list(first + 0.05 * random.random(200)), list(first))
    assert worse.difference.high < 0
    assert worse.p_value < 0.001


def test_comparison_uses_the_rows_that_both_have():
    result = compare([0.1, None, 0.3, 0.4], [0.2, 0.5, None, 0.3])
    assert (result.n, result.difference.missing, result.only_first, result.only_second) == (2, 2, 1, 1)
    for nothing in (compare([None], [True]), compare([], [])):
        assert (nothing.p_value, nothing.test, nothing.n) == (None, "none", 0)


def test_rows_must_match():
    with pytest.raises(InputError, match="same rows; given 2 and 1"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="given 1 groups for 2 values"):
        mean([1.0, 2.0], ["a"])
