"""Decode-time attention against one concatenated cache a slot."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from error_rule import assert_within_rule
from hypothesis import given
from hypothesis import strategies as st

from pit_kernels import cached_attention
from pit_kernels.cached_attention import reference

SLOTS, PREFIXES, C0, C1, N, K, H = 6, 3, 9, 5, 4, 2, 8


def draw_arrays(seed, dtype=np.float32):
    """q, prefix keys and values, suffix keys and values."""
    rng = np.random.default_rng(seed)
    shapes = (SLOTS, N, H), (PREFIXES, C0, K, H), (PREFIXES, C0, K, H), (SLOTS, C1, K, H), (SLOTS, C1, K, H)
    return [rng.normal(size=s).astype(dtype) for s in shapes]


@functools.cache
def compiled(soft_cap, slots_per_prefix):
    return jax.jit(functools.partial(cached_attention, logit_soft_cap=soft_cap, slots_per_prefix=slots_per_prefix))


@functools.partial(jax.jit, static_argnames="soft_cap")
def naive(q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length, prefix_id, soft_cap):
    """The dense formula in the dtype of its inputs: one masked softmax over the two caches side by side."""
    k, v = (jnp.concatenate(x, 1) for x in ((prefix_k[prefix_id], suffix_k), (prefix_v[prefix_id], suffix_v)))
    k, v = jnp.repeat(k, N // K, axis=2), jnp.repeat(v, N // K, axis=2)
    held = [
        jnp.arange(c, dtype=jnp.int32)[None] < n[:, None]
        for c, n in ((C0, prefix_length[prefix_id]), (C1, suffix_length))
    ]
    logits = jnp.einsum("snh,scnh->snc", q, k) * H**-0.5
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    p = jax.nn.softmax(jnp.where(jnp.concatenate(held, 1)[:, None], logits, -jnp.inf), axis=-1)
    return jnp.where(
        (prefix_length[prefix_id] + suffix_length > 0)[:, None, None], jnp.einsum("snc,scnh->snh", p, v), 0
    )


lengths_of = lambda count, most: st.lists(st.integers(0, most), min_size=count, max_size=count)  # noqa: E731


@given(
    seed=st.integers(0, 2**32),
    prefix_length=lengths_of(PREFIXES, C0),
    suffix_length=lengths_of(SLOTS, C1),
    prefix_id=st.lists(st.integers(0, PREFIXES - 1), min_size=SLOTS, max_size=SLOTS),
    dtype=st.sampled_from((jnp.float32, jnp.bfloat16)),
    soft_cap=st.sampled_from((None, 2.0)),
)
def test_matches_one_concatenated_cache(seed, prefix_length, suffix_length, prefix_id, dtype, soft_cap):
    q, prefix_k, prefix_v, suffix_k, suffix_v = draw_arrays(seed, dtype)
    prefix_length, suffix_length = np.array(prefix_length, np.int32), np.array(suffix_length, np.int32)
    grouped_id = np.repeat(np.arange(PREFIXES, dtype=np.int32), SLOTS // PREFIXES)
    for slots_per_prefix, ids in ((None, np.array(prefix_id, np.int32)), (SLOTS // PREFIXES, grouped_id)):
        arguments = (q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length)
        actual = compiled(soft_cap, slots_per_prefix)(*arguments, ids if slots_per_prefix is None else None)
        truth = reference.cached_attention(*arguments, ids, logit_soft_cap=soft_cap)
        bar = naive(*arguments, ids, soft_cap)
        assert actual.dtype == dtype
        assert_within_rule(actual, bar, truth, factor=2, name=f"out, slots_per_prefix={slots_per_prefix}")


@given(prefix_length=lengths_of(PREFIXES, C0), suffix_length=lengths_of(SLOTS, C1))
def test_nan_past_a_length_reaches_nothing(prefix_length, suffix_length):
    prefix_length, suffix_length = np.array(prefix_length, np.int32), np.array(suffix_length, np.int32)
    q, *caches = draw_arrays(0)
    poisoned = [x.copy() for x in caches]
    for x, length in zip(poisoned, (prefix_length, prefix_length, suffix_length, suffix_length), strict=True):
        x[np.arange(x.shape[1])[None] >= length[:, None]] = np.nan

    def run(prefix_k, prefix_v, suffix_k, suffix_v):
        return compiled(None, 2)(q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length, None)

    np.testing.assert_array_equal(run(*caches), run(*poisoned))
    empty = (np.repeat(prefix_length, 2) == 0) & (suffix_length == 0)
    assert not np.asarray(run(*poisoned))[empty].any()


def test_lengths_beyond_the_caches_count_as_all_of_them():
    q, prefix_k, prefix_v, suffix_k, suffix_v = draw_arrays(1)
    outs = []
    for prefix, suffix, empty in ((C0, C1, 0), (2**31 - 1, C1 + 1, -(2**31))):
        prefix_length = np.array([prefix, prefix, empty], np.int32)
        suffix_length = np.array([suffix, empty] * 3, np.int32)
        outs.append(compiled(None, 2)(q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length, None))
    np.testing.assert_array_equal(*outs)


def call(slots=6, prefixes=3, **changes):
    # The undecorated function: under the suite's run-time shape checks the checker would answer first.
    arguments = {
        "q": jnp.zeros((slots, N, H)),
        "prefix_k": jnp.zeros((prefixes, C0, K, H)),
        "prefix_v": jnp.zeros((prefixes, C0, K, H)),
        "prefix_length": jnp.zeros(prefixes, jnp.int32),
        "suffix_k": jnp.zeros((slots, C1, K, H)),
        "suffix_v": jnp.zeros((slots, C1, K, H)),
        "suffix_length": jnp.zeros(slots, jnp.int32),
        "prefix_id": jnp.zeros(slots, jnp.int32),
    }
    return inspect.unwrap(cached_attention)(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": jnp.zeros((6, H))}, r"cached_attention: q has shape \(6, 8\); it must have rank 3, \[S N H\]"),
        ({"prefix_v": jnp.zeros((3, C0, N, H))}, r"prefix_v has shape .*; it must be \[P C0 K H\] = \(3, 9, 2, 8\)"),
        ({"suffix_k": jnp.zeros((5, C1, K, H))}, r"suffix_k has shape .*; it must be \[S C1 K H\] = \(6, 5, 2, 8\)"),
        ({"q": jnp.zeros((6, 3, H))}, r"q has N=3 heads and k has K=2; N must be a multiple of K"),
        ({"prefix_id": None}, r"prefix_id and slots_per_prefix are both None; give one"),
        ({"slots_per_prefix": 3}, r"slots_per_prefix is 3 with P=3 prefixes and S=6 slots; S must be P times it"),
        ({"suffix_length": jnp.zeros(6, jnp.uint32)}, r"suffix_length has dtype uint32; it must be int32"),
        ({"prefix_length": jnp.zeros(6, jnp.int32)}, r"prefix_length has shape \(6,\); it must be \[P\] = \(3,\)"),
        ({"suffix_v": jnp.zeros((6, C1, K, H), jnp.bfloat16)}, r"dtypes are .*suffix_v bfloat16; they must be one"),
        ({"implementation": "pallas_tpu"}, r"cached_attention has no pallas_tpu backend; available: xla"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)
