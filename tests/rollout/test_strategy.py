"""Which tokens a filter keeps, worked out by hand, and what is recorded of a draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.rollout.strategy import (
    Filtered,
    Greedy,
    Individual,
    MinP,
    Temperature,
    TopK,
    TopP,
    _first_above,
    individual,
    strategy_at,
)

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32)


def draws(strategy, logits, n, seed=0):
    keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(jax.random.key(seed), i)))(
        jnp.arange(n, dtype=jnp.int32)
    )
    return strategy.draw(jnp.broadcast_to(jnp.asarray(logits), (n, len(logits))), keys)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ([TopK(2)], [0, 1]),
        ([TopK(9)], [0, 1, 2, 3, 4]),
        ([TopP(0.39)], [0]),
        ([TopP(0.41)], [0, 1]),
        ([TopP(0.85)], [0, 1, 2]),
        ([TopP(1.0)], [0, 1, 2, 3, 4]),
        ([MinP(0.3)], [0, 1, 2]),
        ([MinP(1.0)], [0]),
        # Of 0.4 / 0.7 and 0.3 / 0.7 the first alone has 0.57: the second filter judges what the first left.
        ([TopK(2), TopP(0.5)], [0]),
        ([TopP(0.5), TopK(2)], [0, 1]),
        ([MinP(0.2), TopK(3), TopP(0.8)], [0, 1]),
    ],
    ids=str,
)
def test_filters_keep_what_their_definition_says(filters, kept):
    drawn = draws(strategy_at(1.0, *filters), np.log(P), 512)
    assert sorted(set(drawn.token.tolist())) == kept
    np.testing.assert_allclose(drawn.logp, np.log(P)[drawn.token], rtol=1e-5)
    np.testing.assert_allclose(drawn.drawn_logp, np.log(P / P[kept].sum())[drawn.token], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("each", [TopK(2), TopP(0.5), MinP(1.0)], ids=str)
def test_ties_are_kept_together(each):
    equal = np.log(np.array([0.1, 0.3, 0.3, 0.3], np.float32))
    assert set(draws(strategy_at(1.0, each), equal, 256).token.tolist()) == {1, 2, 3}


def test_a_filtered_draw_has_the_renormalised_probabilities():
    n, drawn = 20_000, draws(Filtered(Temperature(0.5), (TopK(3),)), np.log(P), 20_000)
    expected = P[:3] ** 2 / (P[:3] ** 2).sum()
    counts = np.bincount(drawn.token, minlength=3)
    # 2 degrees of freedom: above 18.4 with a chance of 1e-4 (and the seed is fixed).
    assert ((counts - n * expected) ** 2 / (n * expected)).sum() < 18.4
    np.testing.assert_allclose(drawn.logp[:8], np.log(P**2 / (P**2).sum())[drawn.token[:8]], rtol=1e-5)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8), st.floats(0.25, 4.0, width=32))
def test_without_filters_both_log_probs_are_those_at_the_temperature(logits, temperature):
    drawn = draws(Temperature(temperature), np.array(logits, np.float32), 4)
    scaled = np.array(logits) / temperature
    expected = scaled - np.log(np.exp(scaled - scaled.max()).sum()) - scaled.max()
    np.testing.assert_allclose(drawn.logp, expected[drawn.token], atol=1e-4)
    np.testing.assert_array_equal(drawn.logp, drawn.drawn_logp)


def test_a_greedy_token_is_the_first_of_the_most_likely_and_certain():
    drawn = draws(Greedy(), np.log(np.array([0.2, 0.4, 0.4], np.float32)), 2)
    assert drawn.token.tolist() == [1, 1]
    np.testing.assert_allclose(drawn.logp, np.log(0.4), rtol=1e-6)
    assert drawn.drawn_logp.tolist() == [0, 0]


def test_a_temperature_of_0_is_greedy_and_refused_elsewhere():
    assert strategy_at(0.0) == strategy_at(0.0, TopK(3)) == Greedy()
    assert strategy_at(0.4) == Temperature(0.4)
    assert strategy_at(0.4, TopK(3)) == Filtered(Temperature(0.4), (TopK(3),))
    with pytest.raises(ValueError, match=r"^temperature = 0.0: must be > 0; use Greedy\(\) for the limit at 0$"):
        Temperature(0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "top-k: k = 0: must be an int of at least 1; leave TopK out to keep all tokens"),
        (lambda: TopP(0.0), "top-p: p = 0.0: must be above 0 and at most 1; leave TopP out to keep all tokens"),
        (lambda: TopP(1.5), "top-p: p = 1.5: must be above 0 and at most 1; leave TopP out to keep all tokens"),
        (
            lambda: MinP(float("nan")),
            "min-p: p = nan: must be above 0 and at most 1; leave MinP out to keep all tokens",
        ),
    ],
)
def test_a_filter_that_keeps_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_draws_from_a_large_vocabulary_have_its_probabilities_within_and_across_blocks():
    rng, n, vocabulary = np.random.default_rng(0), 40_000, 1_000
    logits = rng.normal(0, 2, vocabulary).astype(np.float32)
    logits[rng.permutation(vocabulary)[:300]] = -np.inf
    expected = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    counts = np.zeros(vocabulary, int)
    for seed in range(4):
        drawn = draws(Temperature(1.0), logits, n // 4, seed)
        counts += np.bincount(drawn.token, minlength=vocabulary)
        np.testing.assert_allclose(drawn.logp, np.log(expected[drawn.token]), rtol=1e-5, atol=1e-5)
    assert counts[np.isinf(logits)].sum() == 0
    # Bins of at least 20 expected draws; the rest is one more bin. A chi-square of k bins has mean k and variance 2 k.
    large = expected * n >= 20
    seen, due = np.append(counts[large], counts[~large].sum()), np.append(expected[large], expected[~large].sum()) * n
    statistic = ((seen - due) ** 2 / due).sum()
    assert statistic < large.sum() + 4 * np.sqrt(2 * large.sum())


@given(
    st.lists(st.sampled_from([0.0, 1e-8, 1.0, 3.0]), min_size=1, max_size=9).filter(any),
    st.sampled_from([0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))]),
)
def test_the_first_above_a_share_is_found_and_has_weight(weight, uniform):
    found = int(_first_above(jnp.array([weight], jnp.float32), jnp.array([uniform], jnp.float32))[0])
    until = np.cumsum(np.array(weight, np.float32))
    assert weight[found] > 0
    assert until[found] > np.float32(uniform) * until[-1] or not any(weight[found + 1 :])
    assert found == 0 or until[found - 1] <= np.float32(uniform) * until[-1]


TWINS = [
    Greedy(),
    Temperature(0.5),
    Temperature(2.0),
    Filtered(Temperature(0.5), (TopP(0.6),)),
    Filtered(Temperature(2.0), (TopP(0.9),)),
    Filtered(Temperature(0.5), (TopK(3), TopP(0.6), MinP(0.3))),
    Filtered(Temperature(2.0), (MinP(0.2),)),
]
"""Temperatures whose reciprocals are exact, so that a division is the same in every program."""


@pytest.mark.parametrize("twin", TWINS, ids=str)
def test_a_setting_of_ones_own_draws_as_the_strategy_of_all(twin):
    strategy, (temperature, top_p) = individual(twin)
    n = 256
    keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(jax.random.key(1), i)))(jnp.arange(n))
    logits = jnp.broadcast_to(jnp.log(P), (n, len(P)))
    # Every other slot has other settings, which change nothing of its neighbours.
    own = [np.where(np.arange(n) % 2, np.float32(value), np.float32(0.7)) for value in (temperature, top_p)]
    drawn, expected = strategy.draw(logits, keys, *map(jnp.asarray, own)), twin.draw(logits, keys)
    for name in ("token", "logp", "drawn_logp"):
        np.testing.assert_allclose(getattr(drawn, name)[1::2], getattr(expected, name)[1::2], rtol=1e-5, atol=1e-6)


def test_strategies_that_share_all_but_two_numbers_have_one_kind():
    kinds = {individual(strategy)[0] for strategy in (Greedy(), Temperature(0.3), Temperature(2.0))}
    assert kinds == {Individual()}
    filtered = [Filtered(Temperature(t), (TopK(5), TopP(p))) for t, p in ((0.3, 0.5), (2.0, 0.9))]
    assert {individual(strategy)[0] for strategy in filtered} == {Individual(TopK(5), True, None)}
    assert individual(filtered[0])[1] == (0.3, 0.5)


@pytest.mark.parametrize("filters", [(TopP(0.5), TopK(2)), (TopP(0.5), TopP(0.4)), (MinP(0.5), TopP(0.4))], ids=str)
def test_filters_in_another_order_have_no_kind(filters):
    with pytest.raises(ValueError, match="must be top-k, top-p and min-p, in this order; reorder them"):
        individual(Filtered(Temperature(1.0), filters))


def test_the_least_top_p_keeps_the_most_likely_token():
    logits = jnp.asarray([[0.0, 1.0, 2.0]])
    drawn = Filtered(Temperature(1.0), (TopP(1e-44),)).draw(logits, jnp.zeros((1, 2), jnp.uint32))
    assert int(drawn.token[0]) == 2
    assert float(drawn.drawn_logp[0]) == 0
