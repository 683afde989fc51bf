"""Losses against their definitions, written out term by term, and against numbers worked out by hand."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.losses.gap import five_pairs, one_pair, pairwise
from pit.losses.kl import Readout, token_kl, vocabulary_kl
from pit.losses.rl import adapted_beta, expected_cost, leave_one_out, reinforce, sample_sum, shaped_reward
from pit.losses.sft import token_nll
from pit.losses.total import masked
from pit.types import GAP_LW, GAP_WL

SCORES = st.floats(-8, 8, width=32)


def matrix(rows, columns, elements=SCORES):
    return hnp.arrays(np.float32, (rows, columns), elements=elements)


def cost(difference):
    """-log sigmoid(difference) in float64."""
    return math.log1p(math.exp(-difference))


@given(score=matrix(5, 4), present=hnp.arrays(bool, 5))
def test_five_pairs_by_its_definition(score, present):
    expected = 0.0
    for (ww, lw, wl, ll), there in zip(score.astype(float), present, strict=True):
        pairs = (wl - ww), (wl - ll), (wl - lw), (ww - lw), (ll - lw)
        expected += there * sum(map(cost, pairs))
    total = five_pairs(jnp.asarray(score), jnp.asarray(present))
    np.testing.assert_allclose(total.sum, expected, rtol=1e-5)
    assert float(total.weight) == present.sum()


def test_five_pairs_worked_out():
    # r(w,l) = 2, r(w,w) = r(l,l) = 1, r(l,w) = 0: four differences of 1 and one of 2.
    score = jnp.array([[1.0, 0.0, 2.0, 1.0]])
    by_hand = 4 * 0.31326169 + 0.12692801
    assert float(five_pairs(score, jnp.array([True])).sum) == pytest.approx(by_hand, rel=1e-6)
    gradient = jax.grad(lambda s: five_pairs(s, jnp.array([True])).sum)(score)[0]
    one, two = 0.26894142, 0.11920292  # sigmoid(-1), sigmoid(-2)
    np.testing.assert_allclose(gradient, [0.0, 2 * one + two, -2 * one - two, 0.0], atol=1e-6)


@given(score=matrix(5, 4), offset=st.floats(-4, 4, width=32))
def test_five_pairs_has_no_offset(score, offset):
    present = jnp.ones(5, bool)
    one, two = (five_pairs(jnp.asarray(s), present).sum for s in (score, score + np.float32(offset)))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@given(score=matrix(5, 4), present=hnp.arrays(bool, 5))
def test_one_pair_by_its_definition(score, present):
    expected = sum(cost(float(r[GAP_WL]) - float(r[GAP_LW])) for r, there in zip(score, present, strict=True) if there)
    total = one_pair(jnp.asarray(score), jnp.asarray(present))
    np.testing.assert_allclose(total.sum, expected, rtol=1e-5)
    assert float(total.weight) == present.sum()


def test_one_pair_worked_out():
    # r(w,l) = 2, r(l,w) = 0; what (w,w) and (l,l) score costs nothing and learns nothing.
    score = jnp.array([[7.0, 0.0, 2.0, -7.0]])
    assert float(one_pair(score, jnp.array([True])).sum) == pytest.approx(0.12692801, rel=1e-6)
    gradient = jax.grad(lambda s: one_pair(s, jnp.array([True])).sum)(score)[0]
    np.testing.assert_allclose(gradient, [0.0, 0.11920292, -0.11920292, 0.0], atol=1e-6)


@given(score=matrix(5, 2), present=hnp.arrays(bool, 5))
def test_pairwise_by_its_definition(score, present):
    expected = sum(cost(float(w) - float(lost)) for (w, lost), there in zip(score, present, strict=True) if there)
    total = pairwise(jnp.asarray(score), jnp.asarray(present))
    np.testing.assert_allclose(total.sum, expected, rtol=1e-5)
    assert float(total.weight) == present.sum()


@given(values=hnp.arrays(np.float32, 6, elements=SCORES), present=hnp.arrays(bool, 6))
def test_masked_ignores_what_is_absent_whatever_it_holds(values, present):
    spoiled = np.where(present, values, np.float32(np.nan))
    total = masked(jnp.asarray(spoiled), jnp.asarray(present))
    np.testing.assert_allclose(total.sum, values[present].sum(dtype=np.float64), rtol=1e-5, atol=1e-5)
    assert float(total.weight) == present.sum()


@given(logp=matrix(3, 4, st.floats(-20, 0, width=32)), weight=matrix(3, 4, st.sampled_from([0.0, 0.0, 0.5, 1.0])))
def test_token_nll_and_its_gradient_by_definition(logp, weight):
    total = token_nll(jnp.asarray(logp), jnp.asarray(weight))
    np.testing.assert_allclose(total.sum, -np.sum(logp.astype(float) * weight), rtol=1e-5, atol=1e-6)
    assert float(total.weight) == weight.sum()
    spoiled = jnp.asarray(np.where(weight > 0, logp, np.float32(-np.inf)))
    gradient = jax.grad(lambda x: token_nll(x, jnp.asarray(weight)).sum)(spoiled)
    np.testing.assert_array_equal(gradient, -weight)


@given(data=st.data(), n=st.integers(2, 5))
def test_leave_one_out_by_its_definition(data, n):
    reward = data.draw(matrix(4, n))
    advantage = np.asarray(leave_one_out(jnp.asarray(reward)))
    exact = reward.astype(float)
    others = (exact.sum(axis=1, keepdims=True) - exact) / (n - 1)
    np.testing.assert_allclose(advantage, exact - others, atol=2e-5)
    np.testing.assert_allclose(advantage.sum(axis=1), 0, atol=5e-5)


@given(offset=matrix(4, 1), reward=matrix(4, 3))
def test_an_offset_of_a_tree_cancels_in_its_advantages(offset, reward):
    one, two = (leave_one_out(jnp.asarray(r)) for r in (reward, reward + offset))
    np.testing.assert_allclose(one, two, atol=2e-5)


LOGP = hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-30, 0, width=32))


FORMULAS = {"k1": lambda x: x, "k2": lambda x: x**2 / 2, "k3": lambda x: np.exp(-x) - 1 + x}


@pytest.mark.parametrize("estimator", FORMULAS)
@given(ratio=hnp.arrays(np.float32, (2, 3), elements=st.floats(-9, 9, width=32)))
def test_token_kl_by_its_formula(estimator, ratio):
    found = token_kl(estimator, jnp.asarray(ratio))
    np.testing.assert_allclose(found, FORMULAS[estimator](ratio.astype(float)), rtol=1e-5, atol=1e-5)
    assert np.all(np.asarray(token_kl(estimator, jnp.zeros(3))) == 0)


def test_full_kl_is_no_function_of_a_token():
    message = "^estimator = 'full': is no function of the sampled token; use vocabulary_kl$"
    with pytest.raises(ValueError, match=message):
        token_kl("full", jnp.zeros(1))


@given(logp=LOGP, sampled=hnp.arrays(bool, (2, 3, 4)))
def test_a_sum_over_a_sample_is_of_its_tokens_alone(logp, sampled):
    spoiled = jnp.asarray(np.where(sampled, logp, np.float32(np.nan)))
    found = sample_sum(spoiled, jnp.asarray(sampled))
    np.testing.assert_allclose(found, np.where(sampled, logp.astype(float), 0).sum(axis=-1), atol=1e-4)


@pytest.mark.parametrize("chunk", [2**24, 64, 8])
@pytest.mark.parametrize(("temperature", "cap"), [(1.0, None), (0.7, 2.0)])
def test_vocabulary_kl_and_its_gradient_by_definition(chunk, temperature, cap, monkeypatch):
    """In one chunk, in several, in one a row; invalid rows hold NaN and reach nothing."""
    monkeypatch.setattr(importlib.import_module("pit_kernels.token_logprob.xla"), "LOGITS_AT_ONCE", chunk)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 3), (7, 3), (5, 3), (7, 3))]
    valid, weight = np.array([True, True, False, True, True]), rng.normal(size=5).astype(np.float32)

    def log_softmax(hidden, table):
        logits = hidden @ table.T
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        return jax.nn.log_softmax(logits / temperature, axis=-1)

    def by_definition(hidden, table, other, anchor):
        log_p, log_q = log_softmax(hidden, table), log_softmax(other, anchor)
        return jnp.where(valid, jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), jnp.float32(0))

    def chunked(hidden, table, other, anchor):
        readouts = Readout(hidden, table), Readout(other, anchor)
        return vocabulary_kl(*readouts, jnp.asarray(valid), temperature=temperature, logit_soft_cap=cap)

    spoiled = [jnp.where(valid[:, None], x, jnp.float32(jnp.nan)) if len(x) == 5 else x for x in arrays]
    np.testing.assert_allclose(chunked(*spoiled), by_definition(*arrays), rtol=1e-5, atol=1e-6)
    gradients = [
        jax.grad(lambda *xs, f=f: jnp.sum(weight * f(*xs)), argnums=(0, 1, 2, 3))(*xs)
        for f, xs in ((chunked, spoiled), (by_definition, arrays))
    ]
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    equal = jax.jit(chunked)(*arrays[:2], *arrays[:2])
    assert np.all(np.asarray(equal) == 0)


def test_an_expected_cost_is_the_sum_and_weighs_tokens_by_what_follows_them():
    # Two samples of three and one tokens; what lies beyond the second one's end must not count.
    cost = jnp.array([[[1.0, 2.0, 4.0], [8.0, 99.0, 99.0]]])
    sampled = jnp.array([[[True, True, True], [True, False, False]]])
    logp = jnp.full((1, 2, 3), -1.0)
    for own, to_go in ((True, [[7, 6, 4], [8, 0, 0]]), (False, [[6, 4, 0], [0, 0, 0]])):

        def total(x, own=own):
            return expected_cost(cost, cost, x, sampled, own=own)

        np.testing.assert_array_equal(total(logp), [[7, 8]])
        one, two = np.array(to_go, np.float32)
        weights = np.stack([one - two, two - one]) * np.asarray(sampled[0])
        np.testing.assert_array_equal(jax.grad(lambda x, f=total: jnp.sum(f(x)))(logp)[0], weights)


@given(beta=st.floats(0, 4), penalty=st.floats(0, 4))
def test_a_reward_of_one_half_stays_one_half(beta, penalty):
    half, done, length = jnp.full((2, 3), 0.5, jnp.float32), jnp.ones((2, 3), bool), jnp.full((2, 3), 4)
    reward = shaped_reward(half, jnp.zeros((2, 3)), done, length, beta=beta, no_eos_penalty=penalty)
    assert reward.dtype == jnp.float32
    assert np.all(np.asarray(reward) == 0.5)


@given(
    score=matrix(2, 3),
    kl=matrix(2, 3),
    finished=hnp.arrays(bool, (2, 3)),
    length=hnp.arrays(np.int32, (2, 3), elements=st.integers(0, 9)),
    beta=st.floats(0, 2),
)
def test_shaped_reward_by_its_definition(score, kl, finished, length, beta):
    arrays = map(jnp.asarray, (score, kl, finished, length))
    reward = shaped_reward(*arrays, beta=beta, no_eos_penalty=0.75, length_cost=0.5, length_free=3)
    expected = score.astype(float) - beta * kl.astype(float) - np.where(finished, 0.0, 0.75)
    np.testing.assert_allclose(reward, expected - 0.5 * np.maximum(length - 3, 0), atol=2e-5)


@given(beta=st.floats(0.01, 9), kl=st.floats(0, 99), target=st.floats(0.1, 9))
def test_an_adapted_coefficient_moves_towards_the_target_by_at_most_a_fifth_of_the_gain(beta, kl, target):
    change = adapted_beta(beta, kl, target=target, gain=0.1) / beta - 1
    assert abs(change) <= 0.02 + 1e-12
    assert np.sign(round(change, 12)) in (0, np.sign(kl - target))


def test_reinforce_counts_the_samples_of_present_trees_only():
    logp, advantage = jnp.full((2, 3, 2), -1.0), jnp.array([[1.0, 2.0, -4.0], [9.0, 9.0, 9.0]])
    sampled = jnp.ones((2, 3, 2), bool).at[0, 2, 1].set(False)
    total = reinforce(logp, advantage, sampled, jnp.array([True, False]))
    assert (float(total.sum), float(total.weight)) == (1.0 * 2 + 2.0 * 2 - 4.0 * 1, 3.0)
