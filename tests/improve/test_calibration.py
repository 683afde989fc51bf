"""The calibration of acceptance: against another optimizer, and its threshold by hand."""

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from pit.improve.calibration import RIDGE, Calibration, fit


def labelled(seed, n=400, *, slope=1.5):
    """Gaps and differences with gains whose sign follows a logistic law of both; a fifth is of equal worth."""
    dice = np.random.default_rng(seed)
    gaps, differences = dice.normal(0.2, 2.0, n), dice.normal(0.0, 0.5, n)
    p = 1 / (1 + np.exp(-(0.3 + slope * gaps + 0.8 * differences)))
    sign = np.where(dice.random(n) < p, 1.0, -1.0) * (dice.random(n) < 0.8)
    return gaps, differences, sign * dice.uniform(0.1, 0.9, n)


@settings(max_examples=examples(10), deadline=None)
@given(seed=st.integers(0, 2**20))
def test_weights_are_those_of_another_optimizer(seed):
    gaps, differences, gains = labelled(seed)
    some = gains != 0
    inputs = np.stack([gaps / gaps[some].std(), differences / differences[some].std()], axis=1)[some]

    def objective(weights):
        logit = weights[0] + inputs @ weights[1:]
        return np.sum(np.logaddexp(0, logit) - (gains[some] > 0) * logit) + RIDGE / 2 * weights @ weights

    best = optimize.minimize(objective, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    made = fit(gaps, differences, gains)
    assert made.pairs == some.sum()
    np.testing.assert_allclose(
        [made.intercept, made.gap * gaps[some].std(), made.quality * differences[some].std()], best, atol=1e-5
    )


def test_probabilities_are_calibrated_on_new_pairs():
    made = fit(*labelled(1, 4000))
    gaps, differences, gains = labelled(2, 4000)
    p, some = made.probability(gaps, differences), gains != 0
    for low in np.arange(0.0, 1.0, 0.2):
        inside = some & (p >= low) & (p < low + 0.2)
        share, error = (gains[inside] > 0).mean(), 0.5 / np.sqrt(inside.sum())
        assert abs(share - p[inside].mean()) < 3 * error


def test_replacing_pays_above_the_threshold():
    """Better candidates gain .1 and .3, worse ones lose .6: replacing must be right three times of four."""
    made = fit(np.array([1.0, 2.0, -1.0, 0.0]), np.zeros(4), np.array([0.1, 0.3, -0.6, 0.0]))
    assert made.threshold == pytest.approx(0.75)
    assert made.quality == 0.0
    assert made.gap > 0


def test_where_nothing_was_worse_all_is_accepted_and_where_nothing_was_better_nothing():
    gaps = np.array([1.0, -1.0, 3.0])
    assert fit(gaps, gaps, np.array([0.2, 0.1, 0.0])).threshold == 0.0
    never = fit(gaps, gaps, np.array([-0.2, -0.1, 0.0]))
    assert never.threshold == 1.0
    assert not np.any(never.probability(gaps, gaps) > never.threshold)


def test_a_separable_fit_is_finite():
    made = fit(np.array([1.0, 2.0, -1.0, -2.0]), np.zeros(4), np.array([1.0, 1.0, -1.0, -1.0]))
    assert 0 < made.gap < 10
    assert made.intercept == pytest.approx(0.0, abs=1e-9)


def test_pairs_of_equal_worth_cannot_be_fitted():
    with pytest.raises(ValueError, match="all 3 pairs are of equal worth, so that nothing can be fitted; give more"):
        fit(np.ones(3), np.ones(3), np.zeros(3))


def test_a_probability_is_of_the_gap_and_the_difference():
    made = Calibration(0.5, 2.0, -1.0, 0.5, 9)
    gaps, differences = np.array([[1.0, 0.0]], np.float32), np.array([[0.5, 0.5]], np.float32)
    np.testing.assert_allclose(made.probability(gaps, differences), 1 / (1 + np.exp(-np.array([[2.0, 0.0]]))))
