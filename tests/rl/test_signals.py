"""Signals of reward hacking against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.rl import signals


@given(
    length=hnp.arrays(np.int32, (4, 3), elements=st.integers(1, 9)),
    scores=hnp.arrays(np.float32, (4, 3), elements=st.floats(-8, 8, width=16)),
    slope=st.sampled_from([-2.0, 0.5]),
)
def test_length_and_reward_are_numpys_correlations_and_follow_a_linear_reward(length, scores, slope):
    within, across = signals.length_and_reward(length, scores)
    inner = [v - v.mean(axis=1, keepdims=True) for v in (length.astype(float), scores.astype(float))]
    if all(np.ptp(v) > 1e-3 for v in inner):
        np.testing.assert_allclose(within, np.corrcoef(*[v.ravel() for v in inner])[0, 1], atol=1e-7)
    means = length.mean(axis=1), scores.astype(float).mean(axis=1)
    if all(np.ptp(v) > 1e-3 for v in means):
        np.testing.assert_allclose(across, np.corrcoef(*means)[0, 1], atol=1e-7)
    paid = signals.length_and_reward(length, (slope * length).astype(np.float32))[0]
    assert paid == pytest.approx(0.0 if np.ptp(inner[0]) == 0 else np.sign(slope))


def test_constant_sides_have_no_correlation():
    length = np.array([[3, 3], [3, 3]], np.int32)
    assert signals.length_and_reward(length, np.array([[0.1, 0.3], [0.7, 0.9]], np.float32)) == (0.0, 0.0)


def test_repetition_by_hand():
    # 5 bigrams of which 12 comes three times and 21 twice: 3 of 5 stood there before. The single token has none.
    assert signals.repeated_ngrams([[1, 2, 1, 2, 1, 2], [9]], 2) == pytest.approx(3 / 5)
    assert signals.repeated_ngrams([[1, 2, 3, 4]], 3) == 0.0
    assert signals.repeated_ngrams([[1], []], 3) == 0.0
    # Three answers of two trigrams each, two of them the same: 4 of 6 differ.
    assert signals.distinct_ngrams([[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]], 3) == pytest.approx(4 / 6)
    assert signals.distinct_ngrams([[1]], 3) == 1.0


def test_quantiles_are_of_all_samples_together():
    scores = np.arange(21, dtype=np.float32)[::-1].reshape(3, 7)
    assert signals.quantiles(scores) == {"p05": 1.0, "p25": 5.0, "p50": 10.0, "p75": 15.0, "p95": 19.0}


def test_agreement_counts_pairs_that_differ_in_gold():
    gold = np.array([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]])
    assert signals.agreement(gold.astype(np.float32), gold) == 1.0
    assert signals.agreement(-gold.astype(np.float32), gold) == 0.0
    # Of the first tree's pairs two are ranked right and one tied; the second tree has none.
    assert signals.agreement(np.array([[1, 1, 2], [3, 1, 2]], np.float32), gold) == pytest.approx(2.5 / 3)
    assert signals.agreement(np.ones((1, 3), np.float32), gold[1:]) is None


@given(
    proxy=hnp.arrays(np.float32, (2, 3), elements=st.floats(-1, 1, width=16)),
    gold=hnp.arrays(np.float64, (2, 3), elements=st.sampled_from([0.0, 0.25, 1.0])),
)
def test_agreement_of_a_reversed_proxy_is_the_rest(proxy, gold):
    share, reversed_share = signals.agreement(proxy, gold), signals.agreement(-proxy, gold)
    if share is None:
        assert reversed_share is None
    else:
        assert share + reversed_share == pytest.approx(1)
