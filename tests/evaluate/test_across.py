"""Statistics across seeds and methods: Student's quantiles from tables, ratings by hand, error messages."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.evaluate.across import across_seeds, elo, t_quantile


@pytest.mark.parametrize(
    ("degrees", "printed"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_printed_tables(degrees: int, printed: float) -> None:
    assert round(t_quantile(degrees), 3) == printed


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 20, 40])
def test_a_quantile_bounds_95_per_cent_of_the_area_under_the_density(degrees: int) -> None:
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    # t = sqrt(n) tan(a) takes the density to cos(a)^(n - 1) on a bounded interval.
    a = np.linspace(0, math.atan(t_quantile(degrees) / math.sqrt(degrees)), 2001)
    area = 2 * scale * math.sqrt(degrees) * np.trapezoid(np.cos(a) ** (degrees - 1), a)
    assert float(area) == pytest.approx(0.95, abs=1e-6)


def test_five_seeds_by_hand() -> None:
    # Deviations -2, -1, 0, 1, 2: variance 10 / 4, standard error sqrt(2.5 / 5), times 2.776.
    result = across_seeds([-1.0, 0.0, 1.0, 2.0, 3.0])
    assert (result.value, result.seeds, result.above, result.below) == (1.0, 5, 3, 1)
    assert (result.low, result.high) == pytest.approx((1 - 1.96324, 1 + 1.96324), abs=2e-5)


def test_an_interval_needs_two_seeds_and_finite_values() -> None:
    for values in ([1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match=rf"^values = {re.escape(str(values))} .*two finite"):
            across_seeds(values)
    with pytest.raises(ValueError, match=r"^degrees = 0 .*at least 1"):
        t_quantile(0)


def test_the_rating_of_two_methods_is_the_log_odds_of_their_wins() -> None:
    # 6 wins, 2 losses and 2 ties, and half a win to each: odds 7.5 to 3.5.
    first = np.array([1.0] * 6 + [0.0] * 2 + [0.5] * 2)
    ratings = elo({"a": first, "b": np.full(10, 0.5)}, "b", resamples=0)
    assert ratings["a"].value == pytest.approx(400 * math.log10(7.5 / 3.5), abs=1e-3)
    assert ratings["b"][:3] == (0, 0, 0)


@given(st.integers(0, 1000))
def test_ratings_do_not_depend_on_the_order_of_methods_and_equal_methods_are_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = {name: rng.integers(0, 4, 30).astype(np.float64) for name in "abc"}
    scores["same as a"] = scores["a"]
    there = elo(scores, "b", seed=1, resamples=5)
    back = elo(dict(reversed(scores.items())), "b", seed=1, resamples=5)
    for name in scores:
        np.testing.assert_allclose(there[name], back[name], atol=1e-3)
        assert there[name].low <= there[name].value <= there[name].high
    assert there["a"].value == pytest.approx(there["same as a"].value, abs=1e-3)


def test_a_method_that_always_wins_has_a_finite_rating_and_the_higher_one() -> None:
    ladder = {str(level): np.full(50, float(level)) for level in range(4)}
    values = [elo(ladder, "0", resamples=3)[str(level)].value for level in range(4)]
    assert all(np.isfinite(values))
    assert values == sorted(values)
    assert values[1] > 400


def test_ratings_need_a_baseline_and_the_same_prompts() -> None:
    with pytest.raises(ValueError, match=r"^baseline = 'c' .*a, b$"):
        elo({"a": np.ones(2), "b": np.ones(2)}, "c")
    with pytest.raises(ValueError, match=r"^scores has \{'a': 2, 'b': 3\}"):
        elo({"a": np.ones(2), "b": np.ones(3)}, "a")
