"""Sliding windows: each query sees the last tokens of its own path, in packed trees and in caches, and no more."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from error_rule import assert_within_rule, tree_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import QUICK

from pit_kernels import cached_attention, three_way_attention
from pit_kernels.cached_attention import reference as cached_reference
from pit_kernels.conformance import OPERATIONS, judge_backend
from pit_kernels.conformance.rows import path_positions, write_segments
from pit_kernels.operations import BACKENDS
from pit_kernels.three_way_attention import reference, xla

SHAPES = ((2, 100, 2, 2, 8), (2, 300, 4, 2, 8))
WINDOWS = (1, 7, 130)


def arrays_of(shape, seed):
    """q, k, v and a cotangent of the output."""
    batch, tokens, heads, kv_heads, width = shape
    rng = np.random.default_rng(seed)
    shapes = [(batch, tokens, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, d_out = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    # The floor of the rule assumes that a query's d_out . v is about 1.
    return [q, k, v, d_out * np.float32(width**-0.5)]


@functools.cache
def compiled(which, window):
    def results(arrays, until, position):
        *qkv, d_out = arrays

        def out(*qkv):
            if which == "reference":
                return reference.three_way_attention(*qkv, until, position, window=window)[0]
            return three_way_attention(*qkv, until, position, window=window)

        value, pull = jax.vjp(out, *qkv)
        return value, *pull(d_out)

    return jax.jit(results, compiler_options=QUICK)


def check(arrays, until, position, window):
    alive = (until > np.arange(until.shape[1]))[:, :, None, None]
    arrays = [*arrays[:3], np.where(alive, arrays[3], 0)]
    actual, naive = (compiled(which, window)(arrays, until, position) for which in ("xla", "reference"))
    with jax.enable_x64(True):
        truth = compiled("reference", window)([x.astype(np.float64) for x in arrays], until, position)
    for name, factor, *values in zip(("out", "dq", "dk", "dv"), (2, 3, 3, 3), actual, naive, truth, strict=True):
        assert_within_rule(*values, factor=factor, name=name)
    return actual


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=2)
@given(data=st.data(), window=st.sampled_from(WINDOWS))
def test_trees_match_the_dense_formula(shape, data, window):
    until = data.draw(tree_rows(shape[0], shape[1]))
    position = np.stack([path_positions(row) for row in until])
    check(arrays_of(shape, data.draw(st.integers(0, 2**32))), until, position, window)


@settings(max_examples=2)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_position_follows_the_formula(data, seed):
    until = data.draw(tree_rows(2, 300))
    position = np.random.default_rng(seed).integers(-20, 300, until.shape).astype(np.int32)
    # A token sees itself whatever its position.
    check(arrays_of(SHAPES[1], seed), until, position, 7)


def test_a_window_counts_on_the_path_and_not_in_the_row():
    """Two answers under one prompt: the second one's window reaches into the prompt, over the first answer."""
    until = write_segments(8, [(0, 3, False), (1, 3, False), (1, 2, False)])
    position = path_positions(until)
    assert position.tolist() == [0, 1, 2, 3, 4, 5, 3, 4]
    ones, v = jnp.ones((1, 8, 1, 2)), jnp.arange(8.0)[None, :, None, None] * jnp.ones((1, 8, 1, 2))
    out = three_way_attention(ones, ones, v, jnp.asarray(until[None]), jnp.asarray(position[None]), window=3)
    # Means of the values seen: token 6 sees 1, 2 and itself; token 7 sees 2, 6 and itself.
    np.testing.assert_allclose(out[0, :, 0, 0], [0, 0.5, 1, 2, 3, 4, 3, 5], rtol=1e-6)


def test_a_window_as_long_as_the_row_changes_no_bit():
    until = write_segments(300, [(0, 150, False), (1, 100, False), (1, 50, False)])[None].repeat(2, 0)
    position = np.stack([path_positions(row) for row in until])
    arrays = arrays_of(SHAPES[1], 0)
    for windowed, whole in zip(
        compiled("xla", 300)(arrays, until, position), compiled("xla", None)(arrays, until, position), strict=True
    ):
        np.testing.assert_array_equal(windowed, whole)


@settings(max_examples=examples(20))
@given(until=tree_rows(2, 640), window=st.sampled_from((1, 100, 200)))
def test_visited_blocks_hold_every_seen_pair(until, window):
    index, position = np.arange(640), np.stack([path_positions(row) for row in until])
    seen = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < until[:, None, :])
    seen &= (until > index)[:, :, None] & (position[:, :, None] - position[:, None, :] < window)
    needed = seen.any(0).reshape(5, 128, 5, 128).any((1, 3)) | np.eye(5, dtype=bool)
    for i, (order, count) in enumerate(visited_blocks(until, position, window)):
        assert set(np.flatnonzero(needed[i])) <= set(np.asarray(order)[: int(count)].tolist())


@functools.partial(jax.jit, static_argnames="window", compiler_options=QUICK)
def visited_blocks(until, position, window):
    heads = jnp.zeros((2, 640, 1, 1))
    tiles = xla._tile(heads, heads, heads, until, position)
    return [xla._visible_blocks(tiles, jnp.int32(i), window) for i in range(5)]


def test_blocks_before_the_window_are_not_visited():
    until = np.full((2, 640), 640, np.int32)
    position = np.broadcast_to(np.arange(640, dtype=np.int32), (2, 640))
    for window, most in ((1, 1), (100, 2), (130, 3)):
        counts = [int(count) for _, count in visited_blocks(until, position, window)]
        assert counts == [min(i + 1, most) for i in range(5)]


def test_padding_with_any_position_reaches_nothing():
    until = write_segments(300, [(0, 150, True), (0, 100, False), (0, 50, True)])[None].repeat(2, 0)
    arrays, dead = arrays_of(SHAPES[1], 0), np.arange(300)[None] >= until
    clean = compiled("xla", 7)(arrays, until, np.where(dead, 0, 5).astype(np.int32))
    wild = [np.where(dead[:, :, None, None], np.nan, x).astype(np.float32) for x in arrays]
    filled = compiled("xla", 7)(wild, until, np.where(dead, 2**31 - 1, 5).astype(np.int32))
    for a, b in zip(clean, filled, strict=True):
        np.testing.assert_array_equal(a, b)


SLOTS, PREFIXES, C0, C1, N, K, H = 6, 3, 9, 5, 4, 2, 8
lengths_of = lambda count, most: st.lists(st.integers(-1, most), min_size=count, max_size=count)  # noqa: E731


@functools.cache
def cached(window):
    return jax.jit(functools.partial(cached_attention, window=window), compiler_options=QUICK)


@settings(max_examples=examples(40))
@given(
    seed=st.integers(0, 2**32),
    window=st.sampled_from((1, 3, 8, 13, 14)),
    prefix_length=lengths_of(PREFIXES, C0 + 1),
    suffix_length=lengths_of(SLOTS, C1 + 1),
    prefix_id=st.lists(st.integers(-1, PREFIXES), min_size=SLOTS, max_size=SLOTS),
    suffix_start=lengths_of(SLOTS, 2 * C1),
)
def test_caches_match_one_concatenated_cache(seed, window, prefix_length, suffix_length, prefix_id, suffix_start):
    rng = np.random.default_rng(seed)
    shapes = (SLOTS, N, H), (PREFIXES, K, C0, H), (PREFIXES, K, C0, H), (SLOTS, K, C1, H), (SLOTS, K, C1, H)
    q, prefix_k, prefix_v, suffix_k, suffix_v = (rng.normal(size=s).astype(np.float32) for s in shapes)
    numbers = [np.array(x, np.int32) for x in (prefix_length, suffix_length, prefix_id, suffix_start)]
    arguments = (q, prefix_k, prefix_v, numbers[0], suffix_k, suffix_v, *numbers[1:])
    truth = cached_reference.cached_attention(*arguments, window=window)
    np.testing.assert_allclose(cached(window)(*arguments), truth, rtol=1e-5, atol=1e-5)
    if window >= C0 + C1:
        np.testing.assert_array_equal(cached(window)(*arguments), cached(None)(*arguments))


def test_slots_of_one_prefix_see_different_parts_of_it():
    """Both have the prefix 0 1 2; one has decoded one token, the other two, so that its window starts later."""
    prefix = jnp.arange(3.0)[None, None, :, None] * jnp.ones((1, 1, 3, 2))
    suffix = jnp.array([[3.0, 9.0], [3.0, 4.0]])[:, None, :, None] * jnp.ones((2, 1, 2, 2))
    zeros, ids, one = jnp.zeros((2, 1, 2)), jnp.zeros(2, jnp.int32), jnp.array([3], jnp.int32)
    out = cached_attention(zeros, prefix, prefix, one, suffix, suffix, jnp.array([1, 2], jnp.int32), ids, window=3)
    np.testing.assert_allclose(out[:, 0, 0], [(1 + 2 + 3) / 3, (2 + 3 + 4) / 3], rtol=1e-6)


@pytest.mark.parametrize("name", ["xla", pytest.param("pallas_tpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", ["three_way_attention", "cached_attention"])
def test_backends_conform_in_a_window(operation, name):
    (backend,) = [backend for backend in BACKENDS[operation] if backend.name == name]
    cases = [case for case in OPERATIONS[operation].cases() if "window" in case.needs]
    assert len(cases) > 1
    verdict = judge_backend(operation, backend, cases[-1:])
    assert (verdict.failure, verdict.passed, verdict.skipped) == (None, 1, ()), str(verdict.failure)


def test_bad_windows_are_named():
    x, until = jnp.ones((1, 4, 1, 2)), jnp.full((1, 4), 4, jnp.int32)
    attention = inspect.unwrap(three_way_attention)
    for window in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"three_way_attention: window is {window}; it must be an int"):
            attention(x, x, x, until, until, window=window)
    with pytest.raises(ValueError, match="position is None; with window = 2 it must be"):
        attention(x, x, x, until, window=2)
    with pytest.raises(ValueError, match=r"position has shape \(4,\); it must be \[B T\] = \(1, 4\)"):
        attention(x, x, x, until, until[0], window=2)
