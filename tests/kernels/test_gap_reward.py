"""Leaf scores against norm and head on every token, and the algebra of the gaps."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.test_util import check_grads

from pit_kernels import centred_gap, leaf_scores, symmetric_gap
from pit_kernels.gap_reward import reference
from pit_kernels.partition import Partition

B, T, D, G, L = 2, 7, 5, 3, 4
LEAF = st.tuples(st.integers(0, B - 1), st.integers(0, T - 1)) | st.just((-1, -1))
LEAVES = st.lists(LEAF, min_size=G * L, max_size=G * L).map(lambda x: np.array(x, np.int32).reshape(G, L, 2))


def draw_arrays(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(np.float32) for s in ((B, T, D), (D,), (D,), ())]


@functools.cache
def compiled(offset_norm):
    return jax.jit(functools.partial(leaf_scores, eps=1e-5, offset_norm=offset_norm))


@given(leaf=LEAVES, seed=st.integers(0, 2**32), offset_norm=st.booleans())
def test_scores_match_the_definition(leaf, seed, offset_norm):
    hidden, scale, weight, bias = draw_arrays(seed)
    actual = compiled(offset_norm)(hidden, leaf, scale, weight, bias)
    expected = reference.leaf_scores(hidden, leaf, scale, weight, float(bias), eps=1e-5, offset_norm=offset_norm)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert not np.asarray(actual)[leaf[..., 0] < 0].any()


@given(leaf=LEAVES)
def test_only_leaves_are_read_and_get_gradients(leaf):
    hidden, scale, weight, bias = draw_arrays(0)
    read = np.zeros((B, T), bool)
    for row, index in leaf.reshape(-1, 2):
        if row >= 0:
            read[row, index] = True
    poisoned = np.where(read[..., None], hidden, np.nan)
    absent = leaf[..., 0] < 0
    scores, pull = jax.vjp(lambda *x: compiled(False)(x[0], leaf, *x[1:]), poisoned, scale, weight, bias)
    gradients = pull(jnp.where(absent, jnp.nan, 1.0))
    np.testing.assert_array_equal(scores, compiled(False)(hidden, leaf, scale, weight, bias))
    assert all(np.isfinite(np.asarray(g)).all() for g in gradients)
    assert not np.asarray(gradients[0])[~read].any()
    assert float(gradients[3]) == (~absent).sum()


def test_gradients_match_finite_differences():
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in draw_arrays(1)]
        leaf = jnp.array([[[0, 1], [1, 6], [-1, -1], [0, 1]]] * G, jnp.int32)
        check_grads(lambda h, *rest: compiled(True)(h, leaf, *rest), arrays, order=1, modes=["rev"])


def test_a_leaf_outside_the_rows_is_nan():
    hidden, scale, weight, bias = draw_arrays(2)
    leaf = np.full((G, L, 2), -1, np.int32)
    leaf[0, 0], leaf[0, 1] = (B, 0), (0, T)
    scores = np.asarray(compiled(False)(hidden, leaf, scale, weight, bias))
    assert np.isnan(scores[0]).tolist() == [True, True, False, False]


def test_leaves_of_one_token_add_up():
    hidden, scale, weight, bias = draw_arrays(4)
    leaf = np.full((1, L, 2), 1, np.int32)
    gradient = jax.grad(lambda h, leaf: compiled(False)(h, leaf, scale, weight, bias).sum())
    once = gradient(hidden, leaf[:, :1])
    np.testing.assert_allclose(gradient(hidden, leaf), L * once, rtol=1e-5)
    assert np.count_nonzero(np.asarray(once).any(axis=-1)) == 1


SPLIT = jax.jit(functools.partial(leaf_scores, eps=1e-5, partition=Partition(rows=("data",), columns=("tensor",))))


@settings(max_examples=20)
@given(leaf=LEAVES)
def test_rows_and_trees_split_over_a_mesh(leaf):
    hidden, scale, weight, bias = draw_arrays(5)
    # The second shard's trees lie in the second shard's rows; what is outside stays outside.
    past = np.where(
        leaf[..., :1] < 0, leaf[..., :1], np.where(leaf[..., :1] < len(hidden), leaf[..., :1] + len(hidden), 99)
    )
    other = np.concatenate([past, leaf[..., 1:]], axis=-1).astype(np.int32)
    leaf = np.where(leaf[..., :1] < len(hidden), leaf, np.array([99, 0], np.int32))
    both_hidden, both_leaf = np.concatenate([hidden, -2 * hidden]), np.concatenate([leaf, other])
    d_score = np.random.default_rng(6).normal(size=(2 * G, L)).astype(np.float32)

    def run(function):
        scores, pull = jax.vjp(lambda *x: function(x[0], both_leaf, *x[1:]), both_hidden, scale, weight, bias)
        return scores, *pull(d_score)

    mesh = jax.make_mesh((2, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        actual = run(SPLIT)
    for together, alone in zip(actual, run(compiled(False)), strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_a_leaf_in_another_shard_scores_nan():
    hidden, scale, weight, bias = draw_arrays(5)
    rows = len(hidden)
    leaf = np.stack([np.full((L, 2), [rows, 0]), np.full((L, 2), [rows, 0])]).astype(np.int32)
    mesh = jax.make_mesh((2, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        scores = np.asarray(SPLIT(np.concatenate([hidden, hidden]), leaf, scale, weight, bias))
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1]).all()


def test_low_precision_hidden_states_are_scored_in_float32():
    hidden, scale, weight, _ = draw_arrays(3)
    low = hidden.astype(jnp.bfloat16)
    leaf = np.zeros((G, L, 2), np.int32)
    actual = leaf_scores(jnp.asarray(low), jnp.asarray(leaf), jnp.asarray(scale), jnp.asarray(weight), eps=1e-5)
    expected = reference.leaf_scores(low.astype(np.float32), leaf, scale, weight, None, eps=1e-5, offset_norm=False)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


SCORE = st.floats(-1e6, 1e6, width=32)


@given(r=SCORE)
def test_the_centred_gap_is_exactly_zero_at_identity(r):
    assert float(centred_gap(*[jnp.float32(r)] * 3)) == 0.0


@given(a=SCORE, b=SCORE)
def test_the_symmetric_gap_changes_sign_when_the_order_does(a, b):
    a, b = jnp.float32(a), jnp.float32(b)
    assert float(symmetric_gap(a, b)) == -float(symmetric_gap(b, a))


@given(scores=st.lists(st.integers(-1000, 1000), min_size=3, max_size=3), offset=st.integers(-1000, 1000))
def test_an_offset_leaves_both_gaps_alone(scores, offset):
    # Integers, so that float32 is exact and equality is what is meant.
    plain = [jnp.float32(x) for x in scores]
    moved = [jnp.float32(x + offset) for x in scores]
    assert float(centred_gap(*plain)) == float(centred_gap(*moved))
    assert float(symmetric_gap(*plain[:2])) == float(symmetric_gap(*moved[:2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": jnp.zeros((T, D))}, r"gap_reward: hidden has shape \(7, 5\); it must have rank 3, \[B T D\]"),
        ({"leaf": jnp.zeros((G, L, 3), jnp.int32)}, r"leaf has shape \(3, 4, 3\); it must be \[G L 2\] = \(3, 4, 2\)"),
        ({"leaf": jnp.zeros((G, L, 2), jnp.uint32)}, r"leaf has dtype uint32; it must be int32"),
        ({"norm_scale": jnp.zeros(4)}, r"norm_scale has shape \(4,\); it must be \[D\] = \(5,\)"),
        ({"head_weight": jnp.zeros((D, 1))}, r"head_weight has shape \(5, 1\); it must be \[D\] = \(5,\)"),
        ({"head_bias": jnp.zeros(1)}, r"head_bias has shape \(1,\); it must be \[\] = \(\)"),
        ({"eps": -1.0}, r"eps is -1\.0; it must be a Python float, finite and above 0"),
        ({"implementation": "triton_gpu"}, r"gap_reward has no triton_gpu backend; available: xla"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    # The undecorated function: under the suite's run-time shape checks the checker would answer first.
    hidden, scale, weight, bias = map(jnp.asarray, draw_arrays(0))
    arguments = {"hidden": hidden, "leaf": jnp.zeros((G, L, 2), jnp.int32), "norm_scale": scale, "head_weight": weight}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(leaf_scores)(**(arguments | {"head_bias": bias, "eps": 1e-5} | changes))
