"""Token log-probabilities against the log-softmax of all logits, on every backend."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from error_rule import assert_within_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import INTERPRET, QUICK, no_races
from jax.test_util import check_grads

from pit_kernels import TokenLogprob, token_logprob
from pit_kernels.token_logprob import reference, xla
from pit_kernels.token_logprob.tiles import Tiles

TILES = Tiles(128, 128, 128, 128, 128, 128)
VARIANTS = (
    {"layout": "vd"},
    {"layout": "dv", "temperature": 0.6},
    {"layout": "vd", "temperature": 1.7, "logit_soft_cap": 3.0},
    {"layout": "dv", "logit_soft_cap": 2.0},
)
BACKENDS = {
    "xla": {"implementation": "xla"},
    # The tiles change nothing but the name of the program: one that is compiled already would not be cut again.
    "xla-chunks": {"implementation": "xla", "tiles": TILES},
    "pallas_tpu": {"implementation": "pallas_tpu", "interpret": INTERPRET, "tiles": TILES},
}
SHAPES = {"xla": (14, 6, 11), "xla-chunks": (14, 6, 11), "pallas_tpu": (200, 6, 300)}
"""Rows, width and vocabulary. For the TPU kernels two blocks of rows and three tiles, the last of both not full."""


def draw_arrays(seed, layout, dtype=np.float64, shape=SHAPES["xla"]):
    rows, width, vocabulary = shape
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(vocabulary, width))
    floats = (rng.normal(size=(rows, width)), weight if layout == "vd" else weight.T, rng.normal(size=vocabulary))
    target = rng.integers(0, vocabulary, rows).astype(np.int32)
    return [jnp.asarray(x, dtype) for x in floats], jnp.asarray(target)


@functools.cache
def compiled(which, variant):
    """Results and gradients of all three."""
    function = functools.partial(token_logprob, **BACKENDS[which]) if which in BACKENDS else reference.token_logprob

    def run(floats, target, valid, cotangents):
        def results(hidden, weight, bias):
            return tuple(function(hidden, weight, target, valid=valid, bias=bias, **VARIANTS[variant]))

        values, pull = jax.vjp(results, *floats)
        return *values, *pull(tuple(c.astype(x.dtype) for c, x in zip(cotangents, values, strict=True)))

    return jax.jit(run, compiler_options=QUICK)


NAMES = ("logp", "lse", "entropy", "d_hidden", "d_weight", "d_bias")


def check_against_the_log_softmax(which, variant, seed, valid, low):
    dtype, rows = jnp.bfloat16 if low else jnp.float32, SHAPES[which][0]
    valid = np.random.default_rng(seed + 2).random(rows) < valid
    cotangents = list(np.random.default_rng(seed + 1).normal(size=(3, rows)).astype(np.float32))
    floats, target = draw_arrays(seed, VARIANTS[variant]["layout"], dtype, SHAPES[which])
    with pytest.MonkeyPatch.context() as patch, no_races():
        if which == "xla-chunks":
            patch.setattr(xla, "LOGITS_AT_ONCE", 4 * SHAPES[which][2])
            assert xla.chunk_count(rows, SHAPES[which][2]) == 4
        actual = compiled(which, variant)(floats, target, valid, cotangents)
    naive = compiled("reference", variant)(floats, target, valid, cotangents)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in floats]
        truth = compiled("reference", variant)(exact, target, valid, [c.astype(np.float64) for c in cotangents])
    for name, *values in zip(NAMES, actual, naive, truth, strict=True):
        assert_within_rule(*values, factor=2 if name in NAMES[:3] else 3, name=name)


CASES = {
    "variant": st.sampled_from(range(len(VARIANTS))),
    "seed": st.integers(0, 2**32),
    "valid": st.sampled_from((0.0, 0.01, 0.5, 1.0)),
    "low": st.booleans(),
}


@settings(max_examples=examples(30))
@given(**{name: CASES[name] for name in ("variant", "seed", "valid")})
def test_matches_the_log_softmax(variant, seed, valid):
    check_against_the_log_softmax("xla", variant, seed, valid, variant in (1, 2))


@pytest.mark.slow
@settings(max_examples=examples(100))
@given(**CASES)
def test_matches_the_log_softmax_in_every_dtype(variant, seed, valid, low):
    check_against_the_log_softmax("xla", variant, seed, valid, low)


@settings(max_examples=examples(15))
@given(**{name: CASES[name] for name in ("variant", "seed", "valid")})
def test_chunks_match_the_log_softmax(variant, seed, valid):
    check_against_the_log_softmax("xla-chunks", variant, seed, valid, variant in (1, 2))


@settings(max_examples=examples(4))
@given(variant=st.sampled_from((0, 1)), seed=CASES["seed"], valid=CASES["valid"])
def test_the_tpu_kernels_match_the_log_softmax(variant, seed, valid):
    # Two programs, one per dtype and layout of the table: each takes seconds to compile.
    check_against_the_log_softmax("pallas_tpu", variant, seed, valid, variant in (1, 2))


@pytest.mark.slow
@settings(max_examples=examples(25))
@given(**CASES)
def test_the_tpu_kernels_match_the_log_softmax_in_every_dtype(variant, seed, valid, low):
    check_against_the_log_softmax("pallas_tpu", variant, seed, valid, low)


def test_chunks_are_chunks():
    assert xla.chunk_count(13, 11) == 1
    assert xla.chunk_count(16384, 262144) == 256


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_gradients_match_finite_differences(variant):
    with jax.enable_x64(True):
        floats, target = draw_arrays(0, VARIANTS[variant]["layout"])
        valid = jnp.arange(target.size) % 3 > 0

        def results(hidden, weight, bias):
            return tuple(token_logprob(hidden, weight, target, valid=valid, bias=bias, **VARIANTS[variant]))

        check_grads(jax.jit(results), floats, order=1, modes=["rev"], eps=1e-5)


def check_nan_in_invalid_rows(which, seed, part):
    rows = SHAPES[which][0]
    valid = np.random.default_rng(seed + 2).random(rows) < part
    (hidden, weight, bias), target = draw_arrays(seed, "vd", jnp.float32, SHAPES[which])
    poisoned = jnp.where(valid[:, None], hidden, jnp.nan)
    wild = jnp.where(valid, target, -7)
    cotangents = tuple(jnp.where(valid, 1.0, jnp.nan) for _ in range(3))
    with no_races():
        clean = compiled(which, 0)((hidden, weight, bias), target, jnp.asarray(valid), (jnp.ones(rows),) * 3)
        dirty = compiled(which, 0)((poisoned, weight, bias), wild, jnp.asarray(valid), cotangents)
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    for x in dirty[:4]:
        assert not np.asarray(x)[~valid].any()


@settings(max_examples=examples(30))
@given(seed=st.integers(0, 2**32), part=st.floats(0, 1))
def test_nan_in_invalid_rows_reaches_nothing(seed, part):
    check_nan_in_invalid_rows("xla", seed, part)


@settings(max_examples=examples(2))
@given(seed=st.integers(0, 2**32), part=st.sampled_from((0.1, 0.7)))
def test_nan_in_invalid_rows_reaches_nothing_of_the_tpu_kernels(seed, part):
    check_nan_in_invalid_rows("pallas_tpu", seed, part)


def small(which):
    """Arguments that choose a backend, and the shape whose program the tests of it share."""
    return BACKENDS[which], SHAPES[which]


def shared(which, floats, target):
    """Results and gradients of logp + entropy by the program that the properties use: layout "vd", all rows valid."""
    valid, ones = np.ones(target.size, bool), jnp.ones(target.size)
    hidden, weight, *bias = floats
    bias = bias or [jnp.zeros(weight.shape[0])]
    logp, lse, entropy, *gradients = compiled(which, 0)((hidden, weight, *bias), target, valid, (ones, 0 * ones, ones))
    return TokenLogprob(logp, lse, entropy), gradients


EVERY = pytest.mark.parametrize("which", ["xla", "pallas_tpu"])


# The interpreter of TPU kernels takes seconds per program, and that of layout "vd" without options serves most tests.
APART = pytest.mark.parametrize("which", ["xla", pytest.param("pallas_tpu", marks=pytest.mark.slow)])


@APART
def test_a_gradient_through_logp_alone_skips_the_entropy_and_survives_checkpoint_and_vmap(which):
    chosen, shape = small(which)
    (hidden, weight, _), target = draw_arrays(3, "vd", jnp.float32, shape)

    def total(hidden, weight):
        return token_logprob(hidden, weight, target, **chosen).logp.sum()

    def quick(function):
        return jax.jit(function, compiler_options=QUICK)

    expected = quick(jax.grad(lambda *x: reference.token_logprob(*x, target)[0].sum(), (0, 1)))(hidden, weight)
    actual = [quick(jax.vmap(jax.grad(total, (0, 1)), (0, None)))(hidden[None], weight)]
    actual[0] = [x[0] for x in actual[0]]
    if which == "xla":
        # The interpreter's callbacks have effects, which checkpoint does not take.
        actual += [quick(jax.grad(f, (0, 1)))(hidden, weight) for f in (total, jax.checkpoint(total))]
    for gradients in actual:
        for a, b in zip(expected, gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@APART
def test_known_values(which):
    # Logits 0 and log 3 at temperature 1: p = 1/4, 3/4. At 1/2 the ratio is 9: p = 1/10, 9/10.
    hidden, weight = jnp.ones((2, 1)), jnp.array([[0.0], [np.log(3.0)]])
    target = jnp.array([0, 1], jnp.int32)
    function = functools.partial(token_logprob, hidden, weight, target, **BACKENDS[which])
    plain, sharp = function(), function(temperature=0.5)
    np.testing.assert_allclose(np.exp(plain.logp), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(np.exp(plain.lse), [4.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(np.exp(sharp.logp), [0.1, 0.9], rtol=1e-6)
    np.testing.assert_allclose(sharp.entropy, -(0.1 * np.log(0.1) + 0.9 * np.log(0.9)), rtol=1e-6)


@EVERY
def test_a_forbidden_token_has_probability_zero_and_no_nan(which):
    shape = SHAPES[which]
    (hidden, weight, bias), target = draw_arrays(1, "vd", jnp.float32, shape)
    # For the TPU kernels a whole tile, the first, and one token more.
    forbidden = np.arange(129) if which == "pallas_tpu" else np.array([2])
    kept = np.delete(np.arange(shape[2]), forbidden)
    target = jnp.asarray(kept[np.asarray(target) % kept.size].astype(np.int32))

    result, (gradient, *_) = shared(which, (hidden, weight, bias.at[forbidden].set(-jnp.inf)), target)
    place = jnp.asarray(np.searchsorted(kept, target).astype(np.int32))
    expected = reference.token_logprob(hidden, weight[kept], place, bias=bias[kept])
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert np.isfinite(np.asarray(gradient)).all()


@EVERY
def test_equal_and_huge_logits(which):
    rows, width, vocabulary = SHAPES[which]
    target = jnp.arange(rows, dtype=jnp.int32) % vocabulary
    flat, _ = shared(which, (jnp.full((rows, width), 1e4), jnp.ones((vocabulary, width))), target)
    np.testing.assert_allclose(flat.logp, -np.log(vocabulary), rtol=1e-6)
    np.testing.assert_allclose(flat.entropy, np.log(vocabulary), rtol=1e-5)
    # One token takes all: its logit is 1e30 and the others are -1e30, so that a shift is beyond what float32 adds up.
    weight = jnp.where(jnp.arange(vocabulary)[:, None] == vocabulary - 1, 1.0, -1.0) * jnp.ones((1, width))
    hidden = jnp.full((rows, width), 1e30 / width)
    last = jnp.full(rows, vocabulary - 1, jnp.int32)
    sharp, (gradient, *_) = shared(which, (hidden, weight), last)
    np.testing.assert_array_equal(sharp.logp, np.zeros(rows))
    np.testing.assert_array_equal(sharp.entropy, np.zeros(rows))
    np.testing.assert_array_equal(gradient, np.zeros((rows, width)))


@EVERY
def test_any_int32_may_be_a_target_and_one_outside_the_vocabulary_is_nan(which):
    shape = SHAPES[which]
    (hidden, weight, _), target = draw_arrays(2, "vd", jnp.float32, shape)
    # The last ones lie in the part of the last tile that is no part of the vocabulary, for the TPU kernels.
    wild = np.array([-(2**31), -1, shape[2], shape[2] + 1, 383, 384, 2**31 - 1], np.int64).astype(np.int32)
    target = target.at[: wild.size].set(wild)
    with no_races():
        result, _ = shared(which, (hidden, weight), target)
    outside = (np.asarray(target) < 0) | (np.asarray(target) >= shape[2])
    np.testing.assert_array_equal(np.isnan(np.asarray(result.logp)), outside)
    assert np.isfinite(np.asarray(result.lse)).all()


@EVERY
def test_a_nan_in_a_valid_row_shows(which):
    shape = SHAPES[which]
    (hidden, weight, _), target = draw_arrays(2, "vd", jnp.float32, shape)
    result, _ = shared(which, (hidden.at[1].set(jnp.nan), weight), target)
    for x in result:
        assert np.isnan(np.asarray(x)).tolist() == [False, True] + [False] * (shape[0] - 2)


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
        ({"implementation": "sparse"}, r"token_logprob has no sparse backend; available: pallas_tpu, triton_gpu, xla"),
        ({"implementation": "xla", "interpret": True}, r"interpret is for TPU kernels, and implementation is 'xla'"),
        (
            {"implementation": "pallas_tpu", "hidden": (0, 4), "target": (0,)},
            r"pallas_tpu cannot serve this call: there is nothing to compute in 0 rows of width 4 and 5 columns",
        ),
        (
            {"implementation": "pallas_tpu", "hidden": (3, 9000), "weight": (5, 9000)},
            r"the table of tiles has none for a width of 9000 in float32 on v5e; give tiles",
        ),
        (
            {"implementation": "pallas_tpu", "hidden": (3, 9000), "weight": (5, 9000), "tiles": TILES},
            None,
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    if message is None:
        jax.eval_shape(lambda: call(**arguments))
        return
    with pytest.raises(ValueError, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((128, 128, 100, 128, 128, 128), r"tiles\.vocab_tile is 100; it must be a positive multiple of 128"),
        ((128, 128, 0, 128, 128, 128), r"tiles\.vocab_tile is 0; it must be a positive multiple of 128"),
        ((128, 128, 128, 384, 256, 128), r"tiles\.grad_rows is 384 and tiles\.grad_row_tile is 256; the second must"),
    ],
)
def test_bad_tiles_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        Tiles(*sizes)


def test_tiles_that_do_not_fit_are_refused():
    many = 2**21
    arguments = {"hidden": (many, 64), "weight": (5, 64), "target": (many,), "implementation": "pallas_tpu"}
    tiles = Tiles(many, 128, 128, many, 128, 128)
    with pytest.raises(
        ValueError, match=r"take about \d+ MiB of VMEM at a width of 64, and v5e lends 120; give smaller"
    ):
        jax.eval_shape(lambda: call(**arguments, tiles=tiles))


def test_the_tpu_kernels_do_not_take_float64():
    with jax.enable_x64(True):
        floats, target = draw_arrays(0, "vd")
        with pytest.raises(ValueError, match=r"the arrays are float64, and it takes bfloat16 and float32"):
            token_logprob(*floats[:2], target, implementation="pallas_tpu")
