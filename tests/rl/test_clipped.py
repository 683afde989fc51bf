"""The clipped objective against its definition, and its gradient on the right side of the clip range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.config import ClipConfig, FieldError, KlConfig, PolicyRlConfig
from pit.losses.rl import clipped, reinforce
from pit.rl.algorithms import algorithm_of
from pit.rl.clipped import order_of
from pit.seeds import Seed

LOW, HIGH = 0.2, 0.3
RATIOS = hnp.arrays(np.float32, (2, 2, 3), elements=st.floats(-1.5, 1.5, width=32))
# A compiler may take a subnormal number for 0.
ADVANTAGES = hnp.arrays(np.float32, (2, 2), elements=st.floats(-3, 3, width=32, allow_subnormal=False))
LENGTHS = hnp.arrays(np.int32, (2, 2), elements=st.integers(1, 3))


def by_definition(log_ratio, advantage, length, present, level):
    """Loss, its gradient in the log-ratios, and the share of clipped units, sample by sample in float64."""
    total, clips, units, grads = 0.0, 0, 0, np.zeros(log_ratio.shape)
    for g, n in np.ndindex(advantage.shape):
        if not present[g]:
            continue
        a, x = float(advantage[g, n]), log_ratio[g, n, : length[g, n]].astype(np.float64)
        for places in [[t] for t in range(len(x))] if level == "token" else [list(range(len(x)))]:
            ratio = np.exp(x[places].sum())
            plain, bounded = ratio * a, np.clip(ratio, 1 - LOW, 1 + HIGH) * a
            total -= min(plain, bounded)
            units += 1
            if plain <= bounded:
                grads[g, n, places] = -plain
            else:
                clips += 1
    return total, grads, clips, units


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_loss_gradient_and_metrics_are_those_of_the_definition(level):
    @jax.jit
    def of(log_ratio, advantage, length, present):
        def objective(log_ratio):
            sampled = (jnp.arange(3, dtype=jnp.int32)[None, None] < length[:, :, None]) & present[:, None, None]
            total, moved = clipped(log_ratio, advantage, sampled, present, level=level, low=LOW, high=HIGH)
            return total.sum, (total, moved)

        return jax.value_and_grad(objective, has_aux=True)(log_ratio)

    @given(log_ratio=RATIOS, advantage=ADVANTAGES, length=LENGTHS, second=st.booleans())
    def check(log_ratio, advantage, length, second):
        present = np.array([True, second])
        expected, grads, clips, units = by_definition(log_ratio, advantage, length, present, level)
        (_, (total, moved)), actual = of(log_ratio, advantage, length, present)
        np.testing.assert_allclose(total, [expected, 2 * present.sum()], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(actual, grads, rtol=1e-4, atol=1e-4)
        assert [float(x) for x in moved["clipped"]] == [clips, units]
        there = (np.arange(3) < length[:, :, None]) & present[:, None, None]
        kl = np.where(there, np.exp(log_ratio) - 1 - log_ratio, 0).sum()
        np.testing.assert_allclose(moved["kl"], [kl, 2 * present.sum()], rtol=1e-4, atol=1e-4)

    check()


@jax.jit
def gradients(logp, advantage, sampled):
    """By the log-probs: of both levels at the policy of the rollout, and of REINFORCE."""
    here, rollout_logp = jnp.full(2, True), jax.lax.stop_gradient(logp)

    def of(level, logp):
        return clipped(logp - rollout_logp, advantage, sampled, here, level=level, low=LOW, high=HIGH)[0].sum

    by_level = [jax.grad(lambda x, level=level: of(level, x))(logp) for level in ("token", "sequence")]
    return by_level, jax.grad(lambda x: reinforce(x, advantage, sampled, here).sum)(logp)


@given(logp=RATIOS, advantage=ADVANTAGES, length=LENGTHS)
def test_at_the_policy_of_the_rollout_the_gradient_is_that_of_reinforce(logp, advantage, length):
    by_level, expected = gradients(logp, advantage, np.arange(3) < length[:, :, None])
    for actual in by_level:
        np.testing.assert_array_equal(actual, expected)


@jax.jit
@jax.value_and_grad
def farthest(log_ratio):
    there, here, advantage = jnp.full((1, 2, 2), True), jnp.full(1, True), jnp.array([[1.0, -1.0]])
    levels = ("token", "sequence")
    return sum(clipped(log_ratio, advantage, there, here, level=x, low=LOW, high=HIGH)[0].sum for x in levels)


@pytest.mark.parametrize("x", [-2000.0, -90.0, 90.0, 2000.0])
def test_the_farthest_ratios_are_finite(x):
    value, grad = farthest(jnp.full((1, 2, 2), x, jnp.float32))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


def test_every_epoch_has_an_order_of_its_own_from_the_seed():
    orders = [order_of(8, Seed((3,)).of(epoch)).tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert orders == [order_of(8, Seed((3,)).of(epoch)).tolist() for epoch in range(4)]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"clip": ClipConfig(minibatches=3)}, "clip.minibatches"),
        ({"kl": KlConfig(estimator="k3")}, "kl.estimator"),
        ({"kl": KlConfig(place="loss")}, "kl.place"),
        ({"entropy": 0.1}, "entropy"),
        ({"algorithm": "rloo", "clip": ClipConfig(epochs=3)}, "clip"),
    ],
)
def test_settings_that_an_algorithm_cannot_use_are_refused_under_their_path(fields, path):
    with pytest.raises(FieldError) as caught:
        algorithm_of(PolicyRlConfig(**{"algorithm": "clipped", "prompts": 8, **fields}), "rl_policy")
    assert caught.value.path == f"rl_policy.{path}"
