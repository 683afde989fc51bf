"""Token log-probabilities against the log-softmax of all logits, whole and in chunks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from error_rule import assert_within_rule
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from pit_kernels import token_logprob
from pit_kernels.token_logprob import reference, xla

ROWS, WIDTH, VOCABULARY = 13, 6, 11
VARIANTS = (
    {"layout": "vd"},
    {"layout": "dv", "temperature": 0.6},
    {"layout": "vd", "temperature": 1.7, "logit_soft_cap": 3.0},
    {"layout": "dv", "logit_soft_cap": 2.0},
)


def draw_arrays(seed, layout, dtype=np.float64):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(VOCABULARY, WIDTH))
    floats = (rng.normal(size=(ROWS, WIDTH)), weight if layout == "vd" else weight.T, rng.normal(size=VOCABULARY))
    target = rng.integers(0, VOCABULARY, ROWS).astype(np.int32)
    return [jnp.asarray(x, dtype) for x in floats], jnp.asarray(target)


@functools.cache
def compiled(which, variant, chunked):
    """Results and gradients of all three; `chunked` is part of the key because a module constant decides it."""
    function = token_logprob if which == "fast" else reference.token_logprob

    def run(floats, target, valid, cotangents):
        def results(hidden, weight, bias):
            return tuple(function(hidden, weight, target, valid=valid, bias=bias, **VARIANTS[variant]))

        values, pull = jax.vjp(results, *floats)
        return *values, *pull(tuple(c.astype(x.dtype) for c, x in zip(cotangents, values, strict=True)))

    return jax.jit(run)


NAMES = ("logp", "lse", "entropy", "d_hidden", "d_weight", "d_bias")


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunks"])
@given(
    variant=st.sampled_from(range(len(VARIANTS))),
    seed=st.integers(0, 2**32),
    valid=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    low=st.booleans(),
)
def test_matches_the_log_softmax(chunked, variant, seed, valid, low):
    dtype, valid = jnp.bfloat16 if low else jnp.float32, jnp.array(valid)
    cotangents = list(np.random.default_rng(seed + 1).normal(size=(3, ROWS)).astype(np.float32))
    floats, target = draw_arrays(seed, VARIANTS[variant]["layout"], dtype)
    with pytest.MonkeyPatch.context() as patch:
        if chunked:
            patch.setattr(xla, "LOGITS_AT_ONCE", 4 * VOCABULARY)
        assert (xla.chunk_count(ROWS, VOCABULARY) > 1) == chunked
        actual = compiled("fast", variant, chunked)(floats, target, valid, cotangents)
    naive = compiled("reference", variant, False)(floats, target, valid, cotangents)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in floats]
        truth = compiled("reference", variant, False)(exact, target, valid, [c.astype(np.float64) for c in cotangents])
    for name, *values in zip(NAMES, actual, naive, truth, strict=True):
        assert_within_rule(*values, factor=2 if name in NAMES[:3] else 3, name=name)


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_gradients_match_finite_differences(variant):
    with jax.enable_x64(True):
        floats, target = draw_arrays(0, VARIANTS[variant]["layout"])
        valid = jnp.arange(ROWS) % 3 > 0

        def results(hidden, weight, bias):
            return tuple(token_logprob(hidden, weight, target, valid=valid, bias=bias, **VARIANTS[variant]))

        check_grads(jax.jit(results), floats, order=1, modes=["rev"], eps=1e-5)


@given(seed=st.integers(0, 2**32), valid=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
def test_nan_in_invalid_rows_reaches_nothing(seed, valid):
    invalid = ~np.array(valid)
    (hidden, weight, bias), target = draw_arrays(seed, "vd", jnp.float32)
    poisoned = jnp.where(invalid[:, None], jnp.nan, hidden)
    wild = jnp.where(invalid, -7, target)
    cotangents = tuple(jnp.where(invalid, jnp.nan, 1.0) for _ in range(3))

    clean = compiled("fast", 0, False)((hidden, weight, bias), target, jnp.array(valid), (jnp.ones(ROWS),) * 3)
    dirty = compiled("fast", 0, False)((poisoned, weight, bias), wild, jnp.array(valid), cotangents)
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    for x in dirty[:4]:
        assert not np.asarray(x)[invalid].any()


def test_a_gradient_through_logp_alone_skips_the_entropy_and_survives_checkpoint_and_vmap():
    (hidden, weight, _), target = draw_arrays(3, "vd", jnp.float32)

    def total(hidden, weight, function=token_logprob):
        return function(hidden, weight, target)[0].sum()

    expected = jax.grad(functools.partial(total, function=reference.token_logprob), (0, 1))(hidden, weight)
    stacked = jax.vmap(jax.grad(total, (0, 1)), (0, None))(hidden[None], weight)
    for gradients in (jax.grad(total, (0, 1)), jax.grad(jax.checkpoint(total), (0, 1))):
        for a, b, c in zip(expected, gradients(hidden, weight), stacked, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(a, c[0], rtol=1e-5, atol=1e-6)


def test_known_values():
    # Logits 0 and log 3 at temperature 1: p = 1/4, 3/4. At 1/2 the ratio is 9: p = 1/10, 9/10.
    hidden, weight = jnp.ones((2, 1)), jnp.array([[0.0], [np.log(3.0)]])
    target = jnp.array([0, 1], jnp.int32)
    plain, sharp = token_logprob(hidden, weight, target), token_logprob(hidden, weight, target, temperature=0.5)
    np.testing.assert_allclose(np.exp(plain.logp), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(np.exp(plain.lse), [4.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(np.exp(sharp.logp), [0.1, 0.9], rtol=1e-6)
    np.testing.assert_allclose(sharp.entropy, -(0.1 * np.log(0.1) + 0.9 * np.log(0.9)), rtol=1e-6)


def test_a_forbidden_token_has_probability_zero_and_no_nan():
    (hidden, weight, bias), target = draw_arrays(1, "vd", jnp.float32)
    target = jnp.where(target == 2, 3, target)
    kept = np.delete(np.arange(VOCABULARY), 2)

    def entropy_and_gradient(bias):
        def total(hidden):
            result = token_logprob(hidden, weight, target, bias=bias)
            return (result.logp + result.entropy).sum(), result

        return jax.grad(total, has_aux=True)(hidden)

    gradient, result = entropy_and_gradient(bias.at[2].set(-jnp.inf))
    expected = reference.token_logprob(hidden, weight[kept], jnp.where(target > 2, target - 1, target), bias=bias[kept])
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.isfinite(np.asarray(gradient)).all()


def test_a_target_outside_the_vocabulary_is_nan():
    (hidden, weight, _), target = draw_arrays(2, "vd", jnp.float32)
    result = token_logprob(hidden, weight, target.at[0].set(-1).at[1].set(VOCABULARY))
    assert np.isnan(np.asarray(result.logp)).tolist() == [True, True] + [False] * (ROWS - 2)


def test_the_logits_never_live_at_once():
    rows, width, vocabulary = 4096, 16, 32768

    def total(hidden, weight, target):
        result = token_logprob(hidden, weight, target)
        return (result.logp + result.entropy).sum()

    hidden, weight = (jax.ShapeDtypeStruct((n, width), jnp.float32) for n in (rows, vocabulary))
    target = jax.ShapeDtypeStruct((rows,), jnp.int32)
    compiled_gradient = jax.jit(jax.grad(total, (0, 1))).lower(hidden, weight, target).compile()
    assert compiled_gradient.memory_analysis().temp_size_in_bytes < rows * vocabulary * 4 * 0.6


def call(hidden=(3, 4), weight=(5, 4), target=(3,), dtype=jnp.float32, target_dtype=jnp.int32, **rest):
    # The undecorated function: under the suite's run-time shape checks the checker would answer first.
    raw = inspect.unwrap(token_logprob)
    return raw(jnp.zeros(hidden, dtype), jnp.zeros(weight, jnp.float32), jnp.zeros(target, target_dtype), **rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": (1, 3, 4)}, r"token_logprob: hidden has shape \(1, 3, 4\); it must have rank 2, \[M D\]"),
        ({"dtype": jnp.bfloat16}, r"dtypes are hidden bfloat16, weight float32; they must be one floating dtype"),
        ({"target_dtype": jnp.uint8}, r"target has dtype uint8; it must be int32: convert it"),
        ({"target": (4,)}, r"target has shape \(4,\); it must be \[M\] = \(3,\)"),
        ({"layout": "VD"}, r'layout is \'VD\'; it must be "vd" for a \[V, D\] table or "dv"'),
        ({"layout": "dv"}, r"weight has shape \(5, 4\) with layout 'dv', so its width is 5; hidden has width 4"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it must be a Python float, finite and above 0"),
        ({"temperature": np.float32(1)}, r"temperature is .*; it must be a Python float, finite and above 0"),
        ({"bias": jnp.zeros(4)}, r"bias has shape \(4,\); it must be \[V\] = \(5,\)"),
        ({"valid": jnp.ones(2, bool)}, r"valid has shape \(2,\); it must be \[M\] = \(3,\)"),
        ({"valid": jnp.ones(3)}, r"valid has dtype float32; it must be bool: compare it"),
        ({"implementation": "triton_gpu"}, r"token_logprob has no triton_gpu backend; available: xla"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)
