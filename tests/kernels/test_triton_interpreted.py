"""The GPU kernels in Triton's interpreter: conformance, trees, NaN in padding, windows, chunks of the vocabulary.

In float32 and float16: the interpreter computes bfloat16 wrongly, so that the backends refuse it there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_three_way_attention as attention
import triton_kernels
from error_rule import assert_within_rule, tree_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_kernels import UnsupportedImplementationError, three_way_attention, token_logprob
from pit_kernels.cached_attention import triton_gpu as cached
from pit_kernels.conformance import OPERATIONS, judge
from pit_kernels.conformance.rows import path_positions
from pit_kernels.operations import BACKENDS
from pit_kernels.token_logprob import reference as logprob_reference
from pit_kernels.token_logprob import triton_gpu as logprob

pytestmark = triton_kernels.interpreted

WITH_TRITON = [name for name, backends in BACKENDS.items() if "triton_gpu" in [backend.name for backend in backends]]
attention.BACKENDS["triton"] = {"implementation": "triton_gpu"}


@pytest.mark.parametrize("operation", WITH_TRITON)
def test_kernels_conform_in_float32_and_float16(operation):
    known = OPERATIONS[operation]
    cases = [dataclasses.replace(c, dtype=jnp.float16) if c.dtype == jnp.bfloat16 else c for c in known.cases()]
    cases = [case for case in cases if case.needs <= known.serves]

    def call(*arrays, **options):
        return known.call(*map(jnp.asarray, arrays), implementation="triton_gpu", **options)

    verdict = judge(call, cases, known.serves)
    assert (verdict.failure, verdict.passed, verdict.skipped) == (None, len(cases), ()), str(verdict.failure)


@pytest.mark.parametrize("operation", WITH_TRITON)
def test_bfloat16_is_refused_by_name(operation):
    known = OPERATIONS[operation]
    case = next(c for c in known.cases() if c.dtype == jnp.bfloat16 and c.needs <= known.serves)
    floats = [jnp.asarray(x, jnp.bfloat16) for x in case.floats]
    with pytest.raises(UnsupportedImplementationError, match="has dtype bfloat16, which Triton's interpreter computes"):
        known.call(*floats, *map(jnp.asarray, case.others), implementation="triton_gpu", **case.options)


# Rows and widths that fill no tile, a group of three heads, one key/value head.
@pytest.mark.parametrize("shape", [(2, 100, 2, 2, 8), (1, 150, 3, 1, 40)], ids=str)
@pytest.mark.parametrize("soft_cap", [None, 5.0])
@settings(max_examples=3)
@given(data=st.data())
def test_trees_match_the_dense_formula_whatever_is_in_padding(shape, soft_cap, data):
    visible_until = data.draw(tree_rows(shape[0], shape[1]))
    arrays = attention.draw_arrays(shape, data.draw(st.integers(0, 2**32)))
    attention.check_against_float64(arrays, visible_until, soft_cap, "triton", poison=True)


@settings(max_examples=3)
@given(data=st.data())
def test_any_int32_follows_the_formula(data):
    shape = (1, 100, 2, 1, 16)
    values = st.sampled_from((-(2**31), -1, 0, 1, 63, 64, 65, 99, 100, 101, 2**31 - 1)) | st.integers(0, 100)
    row = data.draw(st.lists(values, min_size=100, max_size=100))
    arrays = attention.draw_arrays(shape, data.draw(st.integers(0, 2**32)))
    attention.check_against_float64(arrays, np.array([row], np.int32), None, "triton", poison=True)


def test_a_row_of_padding_gives_zeros_and_minus_infinity():
    x = jnp.full((1, 70, 2, 64), jnp.nan)
    out, lse = three_way_attention(x, x, x, jnp.zeros((1, 70), jnp.int32), return_lse=True, implementation="triton_gpu")
    assert not out.any()
    assert jnp.isneginf(lse).all()


def test_every_row_of_a_batch_has_its_own_mask_heads_and_window():
    rng = np.random.default_rng(3)
    q = rng.normal(size=(2, 80, 4, 32)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 80, 2, 32)).astype(np.float32)
    until = np.stack([np.full(80, 80), np.repeat([30, 70, 0], [30, 40, 10])]).astype(np.int32)
    position = np.stack([path_positions(row) for row in until])
    both = [
        three_way_attention(q, k, v, until, position, window=9, implementation=name) for name in ("triton_gpu", "xla")
    ]
    np.testing.assert_allclose(*both, atol=2e-6)


def test_vmap_loops_over_calls():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 1, 40, 1, 16)).astype(np.float32)
    until = np.array([[[40] * 40], [[20] * 20 + [0] * 20]], np.int32)
    call = functools.partial(three_way_attention, implementation="triton_gpu")
    np.testing.assert_array_equal(jax.vmap(call)(x, x, x, until), [call(*(x[i],) * 3, until[i]) for i in range(2)])


@pytest.mark.parametrize("layout", ["vd", "dv"])
@pytest.mark.parametrize("words", [128, 256, 1000])
def test_gradients_are_those_of_the_definition_over_chunks_that_do_and_do_not_fill_the_vocabulary(
    layout, words, monkeypatch
):
    rows, width, vocabulary = 40, 24, 330
    monkeypatch.setattr(logprob, "LOGITS_AT_ONCE", rows * words)
    rng = np.random.default_rng(words)
    hidden = rng.normal(size=(rows, width)).astype(np.float32)
    weight = rng.normal(size=(vocabulary, width)).astype(np.float32)
    weight = weight if layout == "vd" else weight.T.copy()
    bias = rng.normal(size=vocabulary).astype(np.float32)
    target = rng.integers(0, vocabulary, rows).astype(np.int32)
    valid = np.arange(rows) < 33
    hidden[~valid] = np.nan
    cotangents = rng.normal(size=(3, rows))

    def results(function, floats, dtype):
        options = {"layout": layout, "valid": jnp.asarray(valid), "temperature": 0.7, "logit_soft_cap": 9.0}

        def call(hidden, weight, bias):
            return tuple(function(hidden, weight, jnp.asarray(target), bias=bias, **options))

        values, pull = jax.vjp(call, *(jnp.asarray(x, dtype) for x in floats))
        return *values, *pull(tuple(jnp.asarray(c, x.dtype) for c, x in zip(cotangents, values, strict=True)))

    floats = hidden, weight, bias
    actual = results(functools.partial(token_logprob, implementation="triton_gpu"), floats, jnp.float32)
    clean = np.where(valid[:, None], hidden, 0), weight, bias
    naive = results(logprob_reference.token_logprob, clean, jnp.float32)
    with jax.enable_x64(True):
        truth = results(logprob_reference.token_logprob, clean, jnp.float64)
    names = ("logp", "lse", "entropy", "d hidden", "d weight", "d bias")
    for name, factor, *values in zip(names, (2, 2, 2, 3, 3, 3), actual, naive, truth, strict=True):
        assert_within_rule(*values, factor=factor, name=name)
    assert not np.asarray(actual[3])[~valid].any()


def test_a_cache_is_cut_into_pieces_where_groups_are_few_and_they_merge():
    assert cached.pieces(programs=1024, capacity=4096, entries=64) == (1, 4096)
    assert cached.pieces(programs=8, capacity=4096, entries=64) == (16, 256)
    assert cached.pieces(programs=1, capacity=100, entries=64) == (1, 128)
    assert logprob.pieces(row_tiles=128, vocabulary=32000, words=128) == (4, 8064)
    assert logprob.pieces(row_tiles=1, vocabulary=200, words=128) == (2, 128)
