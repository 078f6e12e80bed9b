"""studies/area_under_curve.py: the area against a count of pairs and examples computed by hand, and the bootstrap."""

import numpy as np
import pytest
from studies.area_under_curve import RESAMPLES, auroc, resampled, shown


@pytest.mark.parametrize(
    ("values", "true", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([1, 2, 3, 4], [0, 1, 0, 1], 0.75),  # of the pairs (2,1), (2,3), (4,1), (4,3) all but the second
        ([5, 5, 5, 5], [0, 1, 0, 1], 0.5),
        ([1, 2, 2], [0, 1, 0], 0.75),  # one pair is won, one is even
        ([np.inf, 1, 2], [1, 0, 0], 1.0),  # a run that diverged has no finite drift
    ],
)
def test_the_area_of_a_few_rows(values, true, expected):
    found = auroc(np.array(values, dtype=float), np.array(true, dtype=bool), np.ones((1, len(values))))
    assert found.tolist() == [expected]


def test_the_area_counts_pairs_also_in_resamples():
    random = np.random.default_rng(1)
    values, label = random.integers(0, 6, 40).astype(float), random.random(40) < 0.4  # with many equal values
    weights = np.concatenate([np.ones((1, 40)), random.multinomial(40, np.full(40, 1 / 40), 5)])
    found = auroc(values, label, weights)
    for drawn, one in zip(weights.astype(int), found, strict=True):
        v, y = np.repeat(values, drawn), np.repeat(label, drawn)
        pairs = [(a > b) + (a == b) / 2 for a in v[y] for b in v[~y]]
        assert one == pytest.approx(sum(pairs) / len(pairs))
    assert np.isnan(auroc(values, np.full(40, True), weights)).all()


def test_a_question_is_drawn_with_all_its_rows():
    drawn = resampled(np.array(["a", "b", "a", "c"]))
    assert drawn.shape == (1 + RESAMPLES, 4)
    assert (drawn[0] == 1).all()
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[1:, [0, 1, 3]].sum(1) == 3).all()


def test_a_value_is_shown_with_the_interval_of_its_resamples():
    assert shown(np.concatenate([[0.5], np.linspace(0, 1, 101)])) == "0.500 [0.025, 0.975]"
    assert shown(np.array([np.nan, 1.0])) == "-"
