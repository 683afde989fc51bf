"""Losses against their definitions, written out term by term, and against numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.losses.gap import five_pairs, pairwise
from pit.losses.rl import leave_one_out, reinforce, sequence_kl, shaped_reward
from pit.losses.sft import token_nll
from pit.losses.total import masked

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


@given(logp=LOGP, anchor=LOGP, sampled=hnp.arrays(bool, (2, 3, 4)))
def test_sequence_kl_by_its_definition(logp, anchor, sampled):
    kl_nats = sequence_kl(jnp.asarray(logp), jnp.asarray(anchor), jnp.asarray(sampled))
    difference = logp.astype(float) - anchor.astype(float)
    np.testing.assert_allclose(kl_nats, np.where(sampled, difference, 0).sum(axis=-1), atol=1e-4)


@given(logp=LOGP, sampled=hnp.arrays(bool, (2, 3, 4)))
def test_sequence_kl_of_equal_log_probs_is_exactly_0(logp, sampled):
    spoiled = jnp.asarray(np.where(sampled, logp, np.float32(-np.inf)))
    assert np.all(np.asarray(sequence_kl(spoiled, spoiled, jnp.asarray(sampled))) == 0)


@given(beta=st.floats(0, 4), penalty=st.floats(0, 4))
def test_a_reward_of_one_half_stays_one_half(beta, penalty):
    half = jnp.full((2, 3), 0.5, jnp.float32)
    reward = shaped_reward(half, jnp.zeros((2, 3)), jnp.ones((2, 3), bool), beta=beta, no_eos_penalty=penalty)
    assert reward.dtype == jnp.float32
    assert np.all(np.asarray(reward) == 0.5)


@given(score=matrix(2, 3), kl=matrix(2, 3), finished=hnp.arrays(bool, (2, 3)), beta=st.floats(0, 2))
def test_shaped_reward_by_its_definition(score, kl, finished, beta):
    reward = shaped_reward(jnp.asarray(score), jnp.asarray(kl), jnp.asarray(finished), beta=beta, no_eos_penalty=0.75)
    expected = score.astype(float) - beta * kl.astype(float) - np.where(finished, 0.0, 0.75)
    np.testing.assert_allclose(reward, expected, atol=2e-5)


# A language of three tokens, 2 ends a sample, at most two tokens: all samples can be written down.
END = 2
SAMPLES = [(END,), *((first, second) for first in (0, 1) for second in (0, 1, END))]
PAIRS = [(one, two) for one in SAMPLES for two in SAMPLES]
TOKEN = np.array([[(*y, 0)[:2] for y in pair] for pair in PAIRS], np.int32)
SAMPLED = np.array([[[True, len(y) == 2] for y in pair] for pair in PAIRS])
FINISHED = np.array([[y[-1] == END for y in pair] for pair in PAIRS])


def token_logp(logits):
    """[pairs, 2, 2] log-probs of a policy that is a table: row 0 before the first token, row 1 + a after token a."""
    table = jax.nn.log_softmax(logits, axis=-1)
    context = np.stack([np.zeros_like(TOKEN[..., 0]), 1 + np.minimum(TOKEN[..., 0], 1)], axis=-1)
    return table[context, TOKEN]


def sample_logp(logits):
    return jnp.sum(jnp.where(SAMPLED, token_logp(logits), jnp.float32(0)), axis=-1)


@given(
    logits=matrix(3, 3, st.floats(-2, 2, width=32)),
    anchor=matrix(3, 3, st.floats(-2, 2, width=32)),
    scores=hnp.arrays(np.float32, len(SAMPLES), elements=st.floats(-3, 3, width=32)),
    beta=st.sampled_from([0.0, 0.5]),
)
def test_reinforce_is_the_exact_policy_gradient_in_expectation(logits, anchor, scores, beta):
    """Over all pairs of samples, each by its probability: the gradient of E[score - penalty] - beta KL."""
    score = np.array([[scores[SAMPLES.index(y)] for y in pair] for pair in PAIRS], np.float32)
    logits = jnp.asarray(logits)
    probability = jnp.exp(jnp.sum(sample_logp(logits), axis=1))
    np.testing.assert_allclose(jnp.sum(probability), 1, rtol=1e-5)

    kl_nats = sequence_kl(token_logp(logits), token_logp(jnp.asarray(anchor)), jnp.asarray(SAMPLED))
    reward = shaped_reward(jnp.asarray(score), kl_nats, jnp.asarray(FINISHED), beta=beta, no_eos_penalty=0.5)
    advantage = leave_one_out(reward)

    def estimate(table):
        def of_pair(logp, advantage, sampled):
            total = reinforce(logp[None], advantage[None], sampled[None], jnp.array([True]))
            return total.sum / total.weight

        return jnp.sum(jax.vmap(of_pair)(token_logp(table), advantage, jnp.asarray(SAMPLED)) * probability)

    def exact(table):
        logp = sample_logp(table)[:: len(SAMPLES), 0]
        of_sample = jnp.asarray(scores) - jnp.asarray(np.where(FINISHED[:: len(SAMPLES), 0], 0, 0.5).astype(np.float32))
        kl = logp - sample_logp(jnp.asarray(anchor))[:: len(SAMPLES), 0]
        return -jnp.sum(jnp.exp(logp) * (of_sample - jnp.float32(beta) * kl))

    np.testing.assert_allclose(jax.grad(estimate)(logits), jax.grad(exact)(logits), atol=2e-5)


def test_reinforce_counts_the_samples_of_present_trees_only():
    logp, advantage = jnp.full((2, 3, 2), -1.0), jnp.array([[1.0, 2.0, -4.0], [9.0, 9.0, 9.0]])
    sampled = jnp.ones((2, 3, 2), bool).at[0, 2, 1].set(False)
    total = reinforce(logp, advantage, sampled, jnp.array([True, False]))
    assert (float(total.sum), float(total.weight)) == (1.0 * 2 + 2.0 * 2 - 4.0 * 1, 3.0)
