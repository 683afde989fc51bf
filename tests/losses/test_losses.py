"""Losses against their definitions, term by term, and against numbers worked out by hand."""

import functools
import importlib
import math

import compiling
import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.losses import gap, kl, rl, sft, total
from pit.losses.kl import FactoredLogits, vocabulary_kl
from pit.losses.rl import adapted_beta
from pit.types import GAP_LW, GAP_WL

# Compiled once per shape: properties call them a hundred times.
five_pairs, one_pair, pairwise, token_nll, masked, leave_one_out, sample_sum = map(
    twins.jit,
    (gap.five_pairs, gap.one_pair, gap.pairwise, sft.token_nll, total.masked, rl.leave_one_out, rl.sample_sum),
)
shaped_reward = twins.jit(rl.shaped_reward, static_argnames=("beta", "no_eos_penalty", "length_cost", "length_free"))
token_kl = twins.jit(kl.token_kl, static_argnums=0)

SCORES = st.floats(-8, 8, width=32)


def given_trees(**strategies):
    """A property of arrays with several trees each: 30 of them are as many trees as other properties have examples."""
    return lambda test: settings(max_examples=examples(30))(given(**strategies)(test))


def matrix(rows, columns, elements=SCORES):
    return hnp.arrays(np.float32, (rows, columns), elements=elements)


def cost(difference):
    """-log sigmoid(difference) in float64."""
    return math.log1p(math.exp(-difference))


@given_trees(score=matrix(5, 4), present=hnp.arrays(bool, 5))
def test_five_pairs_by_its_definition(score, present):
    expected = 0.0
    for (ww, lw, wl, ll), there in zip(score.astype(float), present, strict=True):
        pairs = (wl - ww), (wl - ll), (wl - lw), (ww - lw), (ll - lw)
        expected += there * sum(map(cost, pairs))
    loss = five_pairs(jnp.asarray(score), jnp.asarray(present))
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert float(loss.weight) == present.sum()


def test_five_pairs_worked_out():
    # r(w,l) = 2, r(w,w) = r(l,l) = 1, r(l,w) = 0: four differences of 1 and one of 2.
    score = jnp.array([[1.0, 0.0, 2.0, 1.0]])
    by_hand = 4 * 0.31326169 + 0.12692801
    assert float(five_pairs(score, jnp.array([True])).sum) == pytest.approx(by_hand, rel=1e-6)
    gradient = twins.jit(jax.grad(lambda s: gap.five_pairs(s, jnp.array([True])).sum))(score)[0]
    one, two = 0.26894142, 0.11920292  # sigmoid(-1), sigmoid(-2)
    np.testing.assert_allclose(gradient, [0.0, 2 * one + two, -2 * one - two, 0.0], atol=1e-6)


@given_trees(score=matrix(5, 4), offset=st.floats(-4, 4, width=32))
def test_five_pairs_has_no_offset(score, offset):
    present = jnp.ones(5, bool)
    one, two = (five_pairs(jnp.asarray(s), present).sum for s in (score, score + np.float32(offset)))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@given_trees(score=matrix(5, 4), present=hnp.arrays(bool, 5))
def test_one_pair_by_its_definition(score, present):
    expected = sum(cost(float(r[GAP_WL]) - float(r[GAP_LW])) for r, there in zip(score, present, strict=True) if there)
    loss = one_pair(jnp.asarray(score), jnp.asarray(present))
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert float(loss.weight) == present.sum()


@given_trees(score=matrix(5, 4), present=hnp.arrays(bool, 5))
def test_the_antisymmetric_loss_is_logistic_in_a_gap_that_changes_its_sign_with_the_order(score, present):
    gaps = [(float(r[GAP_WL]) - float(r[GAP_LW])) / 2 for r in score]
    loss = gap.antisymmetric(jnp.asarray(score), jnp.asarray(present))
    np.testing.assert_allclose(
        loss.sum, sum(cost(g) for g, there in zip(gaps, present, strict=True) if there), rtol=1e-5
    )
    swapped = score.copy()
    swapped[:, [GAP_WL, GAP_LW]] = score[:, [GAP_LW, GAP_WL]]
    other = gap.antisymmetric(jnp.asarray(swapped), jnp.asarray(present))
    # -log sigmoid(-g) = g - log sigmoid(g).
    expected = float(loss.sum) + sum(g for g, there in zip(gaps, present, strict=True) if there)
    np.testing.assert_allclose(other.sum, expected, rtol=1e-4, atol=1e-4)
    assert float(loss.weight) == present.sum()


def test_one_pair_worked_out():
    # r(w,l) = 2, r(l,w) = 0; what (w,w) and (l,l) score costs nothing and learns nothing.
    score = jnp.array([[7.0, 0.0, 2.0, -7.0]])
    assert float(one_pair(score, jnp.array([True])).sum) == pytest.approx(0.12692801, rel=1e-6)
    gradient = twins.jit(jax.grad(lambda s: gap.one_pair(s, jnp.array([True])).sum))(score)[0]
    np.testing.assert_allclose(gradient, [0.0, 0.11920292, -0.11920292, 0.0], atol=1e-6)


@given_trees(score=matrix(5, 2), present=hnp.arrays(bool, 5))
def test_pairwise_by_its_definition(score, present):
    expected = sum(cost(float(w) - float(lost)) for (w, lost), there in zip(score, present, strict=True) if there)
    loss = pairwise(jnp.asarray(score), jnp.asarray(present))
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert float(loss.weight) == present.sum()


@given_trees(values=hnp.arrays(np.float32, 6, elements=SCORES), present=hnp.arrays(bool, 6))
def test_masked_ignores_what_is_absent_whatever_it_holds(values, present):
    spoiled = np.where(present, values, np.float32(np.nan))
    loss = masked(jnp.asarray(spoiled), jnp.asarray(present))
    np.testing.assert_allclose(loss.sum, values[present].sum(dtype=np.float64), rtol=1e-5, atol=1e-5)
    assert float(loss.weight) == present.sum()


nll_gradient = twins.jit(jax.grad(lambda logp, weight: sft.token_nll(logp, weight).sum))


@given_trees(logp=matrix(3, 4, st.floats(-20, 0, width=32)), weight=matrix(3, 4, st.sampled_from([0.0, 0.0, 0.5, 1.0])))
def test_token_nll_and_its_gradient_by_definition(logp, weight):
    loss = token_nll(jnp.asarray(logp), jnp.asarray(weight))
    np.testing.assert_allclose(loss.sum, -np.sum(logp.astype(float) * weight), rtol=1e-5, atol=1e-6)
    assert float(loss.weight) == weight.sum()
    spoiled = jnp.asarray(np.where(weight > 0, logp, np.float32(-np.inf)))
    gradient = nll_gradient(spoiled, jnp.asarray(weight))
    np.testing.assert_array_equal(gradient, -weight)


@given_trees(data=st.data(), n=st.integers(2, 5))
def test_leave_one_out_by_its_definition(data, n):
    reward = data.draw(matrix(4, n))
    advantage = np.asarray(leave_one_out(jnp.asarray(reward)))
    exact = reward.astype(float)
    others = (exact.sum(axis=1, keepdims=True) - exact) / (n - 1)
    np.testing.assert_allclose(advantage, exact - others, atol=2e-5)
    np.testing.assert_allclose(advantage.sum(axis=1), 0, atol=5e-5)


@given_trees(offset=matrix(4, 1), reward=matrix(4, 3))
def test_an_offset_of_a_tree_cancels_in_its_advantages(offset, reward):
    one, two = (leave_one_out(jnp.asarray(r)) for r in (reward, reward + offset))
    np.testing.assert_allclose(one, two, atol=2e-5)


LOGP = hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-30, 0, width=32))


FORMULAS = {"k1": lambda x: x, "k2": lambda x: x**2 / 2, "k3": lambda x: np.exp(-x) - 1 + x}


@pytest.mark.parametrize("estimator", FORMULAS)
@given_trees(ratio=hnp.arrays(np.float32, (2, 3), elements=st.floats(-9, 9, width=32)))
def test_token_kl_by_its_formula(estimator, ratio):
    np.testing.assert_allclose(
        token_kl(estimator, jnp.asarray(ratio)), FORMULAS[estimator](ratio.astype(float)), rtol=1e-5, atol=1e-5
    )
    assert np.all(np.asarray(token_kl(estimator, jnp.zeros((2, 3)))) == 0)


def test_the_full_kl_of_one_token_is_refused():
    with pytest.raises(ValueError, match=r"^estimator = 'full' .*vocabulary_kl$"):
        kl.token_kl("full", jnp.zeros(1))


@given_trees(logp=LOGP, sampled=hnp.arrays(bool, (2, 3, 4)))
def test_a_sum_over_a_sample_is_of_its_tokens_alone(logp, sampled):
    spoiled = jnp.asarray(np.where(sampled, logp, np.float32(np.nan)))
    sums = sample_sum(spoiled, jnp.asarray(sampled))
    np.testing.assert_allclose(sums, np.where(sampled, logp.astype(float), 0).sum(axis=-1), atol=1e-4)


@functools.cache
def kl_by_definition(temperature, cap):
    """Compiled: value, and gradients of a weighted sum, of the KL over the vocabulary as its formula has it."""

    def log_softmax(hidden, table):
        logits = hidden @ table.T
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        return jax.nn.log_softmax(logits / temperature, axis=-1)

    def kl(hidden, table, other, anchor, valid):
        log_p, log_q = log_softmax(hidden, table), log_softmax(other, anchor)
        return jnp.where(valid, jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), jnp.float32(0))

    return twins.jit(kl), twins.jit(weighted_gradients(kl))


def weighted_gradients(kl):
    return jax.grad(lambda weight, *xs: jnp.sum(weight * kl(*xs)), argnums=(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("chunk", "temperature", "cap"),
    [(2**24, 1.0, None), (2**24, 0.7, 2.0), (64, 0.7, 2.0), (8, 1.0, None)],
    ids=["one chunk", "one chunk, cap", "several chunks, cap", "one row per chunk"],
)
def test_vocabulary_kl_and_its_gradient_by_definition(chunk, temperature, cap, monkeypatch):
    """Invalid rows hold NaN, which reaches neither a value nor a gradient; equal bits give exactly 0."""
    monkeypatch.setattr(importlib.import_module("pit_kernels.token_logprob.xla"), "LOGITS_AT_ONCE", chunk)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((5, 3), (7, 3), (5, 3), (7, 3))]
    valid, weight = np.array([True, True, False, True, True]), rng.normal(size=5).astype(np.float32)
    spoiled = [np.where(valid[:, None], x, np.float32(np.nan)) if len(x) == 5 else x for x in arrays]

    def chunked(hidden, table, other, anchor, valid):
        policy, reference = FactoredLogits(hidden, table), FactoredLogits(other, anchor)
        return vocabulary_kl(policy, reference, valid, temperature=temperature, logit_soft_cap=cap)

    value, gradients = kl_by_definition(temperature, cap)
    # Compiled as in training: another code generator breaks the equality of bits.
    compiled = jax.jit(chunked, compiler_options=compiling.USERS)
    np.testing.assert_allclose(compiled(*spoiled, valid), value(*arrays, valid), rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(compiled(*arrays[:2], *arrays[:2], valid)) == 0)
    actual = twins.jit(weighted_gradients(chunked))(weight, *spoiled, valid)
    for one, expected in zip(actual, gradients(weight, *arrays, valid), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)


def test_an_expected_cost_is_the_sum_and_weighs_tokens_by_what_follows_them():
    # Two samples of three and one tokens; what lies beyond the second one's end must not count.
    cost = jnp.array([[[1.0, 2.0, 4.0], [8.0, 99.0, 99.0]]])
    sampled = jnp.array([[[True, True, True], [True, False, False]]])
    logp = jnp.full((1, 2, 3), -1.0)
    for include_current, to_go in ((True, [[7, 6, 4], [8, 0, 0]]), (False, [[6, 4, 0], [0, 0, 0]])):

        def sample_cost(x, include_current=include_current):
            value = rl.expected_cost(cost, cost, x, sampled, include_current=include_current)
            return jnp.sum(value), value

        gradient, value = twins.jit(jax.grad(sample_cost, has_aux=True))(logp)
        np.testing.assert_array_equal(value, [[7, 8]])
        one, two = np.array(to_go, np.float32)
        weights = np.stack([one - two, two - one]) * np.asarray(sampled[0])
        np.testing.assert_array_equal(gradient[0], weights)


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("penalty", [0.0, 1.7])
def test_a_score_of_one_half_stays_one_half_without_kl_penalty_and_length_cost(beta, penalty):
    half, done, length = jnp.full((2, 3), 0.5, jnp.float32), jnp.ones((2, 3), bool), jnp.full((2, 3), 4)
    reward = shaped_reward(half, jnp.zeros((2, 3)), done, length, beta=beta, no_eos_penalty=penalty)
    assert reward.dtype == jnp.float32
    assert np.all(np.asarray(reward) == 0.5)


@given_trees(
    score=matrix(2, 3),
    kl=matrix(2, 3),
    finished=hnp.arrays(bool, (2, 3)),
    length=hnp.arrays(np.int32, (2, 3), elements=st.integers(0, 9)),
    beta=st.sampled_from([0.0, 0.1, 1.7]),
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
    if abs(kl / target - 1) > 1e-9:
        assert np.sign(change) == np.sign(kl - target)
    if abs(kl / target - 1) >= 0.2:
        assert abs(change) == pytest.approx(0.02)


def test_reinforce_counts_the_samples_of_present_trees_only():
    logp, advantage = jnp.full((2, 3, 2), -1.0), jnp.array([[1.0, 2.0, -4.0], [9.0, 9.0, 9.0]])
    sampled = jnp.ones((2, 3, 2), bool).at[0, 2, 1].set(False)
    loss = twins.jit(rl.reinforce)(logp, advantage, sampled, jnp.array([True, False]))
    assert (float(loss.sum), float(loss.weight)) == (1.0 * 2 + 2.0 * 2 - 4.0 * 1, 3.0)
