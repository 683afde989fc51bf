"""The scale of a reward model: the slope at which its margins are log-odds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.rl.scale import ScaleError, log_odds_scale

MARGINS = hnp.arrays(np.float32, st.integers(2, 40), elements=st.floats(-4, 8, width=32))


@given(margins=MARGINS)
def test_no_other_factor_is_likelier(margins):
    if not margins.astype(np.float64).mean() > 1e-3:
        return
    exact, target = margins.astype(np.float64), (len(margins) + 1) / (len(margins) + 2)

    def loss(factor):
        z = factor * exact
        return np.mean(target * np.logaddexp(0, -z) + (1 - target) * np.logaddexp(0, z))

    best = log_odds_scale(margins, "")
    assert np.isfinite(best)
    assert best > 0
    assert all(loss(best) <= loss(best * other) + 1e-12 for other in (0.5, 0.9, 1.1, 2.0))


@given(margins=MARGINS, factor=st.sampled_from([0.25, 2.0, 8.0]))
def test_scaled_margins_do_not_depend_on_their_unit(margins, factor):
    if margins.astype(np.float64).mean() > 1e-3:
        other = margins * np.float32(factor)
        assert log_odds_scale(other, "") * factor == pytest.approx(log_odds_scale(margins, ""), rel=1e-6)


def test_the_scale_of_drawn_labels_is_that_of_their_log_odds():
    rng = np.random.default_rng(0)
    gap = rng.normal(size=40_000)
    better = rng.random(gap.size) < 1 / (1 + np.exp(-3 * gap))
    assert log_odds_scale(np.where(better, gap, -gap).astype(np.float32), "") == pytest.approx(3, rel=0.05)


def test_a_model_that_ranks_like_chance_has_no_scale():
    with pytest.raises(ScaleError, match=r"^rl_policy.reward.scale = 'log_odds': the mean margin of 2 held-out pairs"):
        log_odds_scale(np.array([1, -1], np.float32), "rl_policy.reward.scale = 'log_odds'")
