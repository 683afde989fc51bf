"""Decode-time attention against one concatenated cache a slot."""

import functools
import inspect
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from error_rule import assert_within_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import INTERPRET, QUICK, no_races

from pit_kernels import UnsupportedImplementationError, cached_attention
from pit_kernels.cached_attention import pallas_tpu, reference
from pit_kernels.conformance.cases import cached_formula

SLOTS, PREFIXES, C0, C1, N, K, H = 6, 3, 9, 5, 4, 2, 8


def draw_arrays(seed, dtype=np.float32):
    """q, prefix keys and values, suffix keys and values."""
    rng = np.random.default_rng(seed)
    shapes = (SLOTS, N, H), (PREFIXES, K, C0, H), (PREFIXES, K, C0, H), (SLOTS, K, C1, H), (SLOTS, K, C1, H)
    return [rng.normal(size=s).astype(dtype) for s in shapes]


@functools.cache
def compiled(soft_cap, slots_per_prefix):
    function = functools.partial(cached_attention, logit_soft_cap=soft_cap, slots_per_prefix=slots_per_prefix)
    return jax.jit(function, compiler_options=QUICK)


@functools.partial(jax.jit, static_argnames="soft_cap", compiler_options=QUICK)
def naive(q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length, prefix_id, suffix_start, soft_cap):
    numbers = prefix_length, suffix_length, prefix_id, suffix_start
    return cached_formula(q, prefix_k, prefix_v, suffix_k, suffix_v, *numbers, logit_soft_cap=soft_cap)


lengths_of = lambda count, most: st.lists(st.integers(0, most), min_size=count, max_size=count)  # noqa: E731


CALLS = {
    "seed": st.integers(0, 2**32),
    "prefix_length": lengths_of(PREFIXES, C0),
    "suffix_length": lengths_of(SLOTS, C1),
    "prefix_id": st.lists(st.integers(-1, PREFIXES), min_size=SLOTS, max_size=SLOTS),
    "suffix_start": lengths_of(SLOTS, 2 * C1),
}


@settings(max_examples=examples(30))
@given(**CALLS, case=st.sampled_from(((jnp.float32, None), (jnp.bfloat16, 2.0))))
def test_matches_one_concatenated_cache(case, **arguments):
    check_against_one_cache(*case, **arguments)


@pytest.mark.slow
@settings(max_examples=examples(100))
@given(**CALLS, dtype=st.sampled_from((jnp.float32, jnp.bfloat16)), soft_cap=st.sampled_from((None, 2.0)))
def test_matches_one_concatenated_cache_in_every_dtype(dtype, soft_cap, **arguments):
    check_against_one_cache(dtype, soft_cap, **arguments)


def check_against_one_cache(dtype, soft_cap, seed, prefix_length, suffix_length, prefix_id, suffix_start):
    arrays = draw_arrays(seed, dtype)
    numbers = [np.array(x, np.int32) for x in (prefix_length, suffix_length, prefix_id, suffix_start)]
    arguments = (*arrays[:3], numbers[0], *arrays[3:], *numbers[1:])
    most = max(Counter(prefix_id).values())
    truth = reference.cached_attention(*arguments, logit_soft_cap=soft_cap)
    bar = naive(*arguments, soft_cap)
    for slots_per_prefix in (None, 4) if most <= 4 else (None,):
        actual = compiled(soft_cap, slots_per_prefix)(*arguments)
        assert actual.dtype == dtype
        assert_within_rule(actual, bar, truth, factor=2, name=f"out, slots_per_prefix={slots_per_prefix}")


def test_a_slot_too_many_of_a_prefix_gets_nan_and_the_others_what_is_theirs():
    q, prefix_k, prefix_v, suffix_k, suffix_v = draw_arrays(2)
    lengths = np.full(PREFIXES, C0, np.int32), np.full(SLOTS, C1, np.int32)
    arguments = (
        q,
        prefix_k,
        prefix_v,
        lengths[0],
        suffix_k,
        suffix_v,
        lengths[1],
        np.array([0, 1, 0, 2, 0, 1], np.int32),
    )
    broken, whole = compiled(None, 2)(*arguments), compiled(None, None)(*arguments)
    assert np.isnan(broken[4]).all()
    np.testing.assert_allclose(np.delete(broken, 4, 0), np.delete(whole, 4, 0), rtol=1e-6, atol=1e-6)


IDS = np.repeat(np.arange(PREFIXES, dtype=np.int32), SLOTS // PREFIXES)


@settings(max_examples=examples(30))
@given(
    prefix_length=lengths_of(PREFIXES, C0),
    suffix_length=lengths_of(SLOTS, C1),
    suffix_start=lengths_of(SLOTS, C1 - 1),
    what=st.sampled_from((1e30, np.nan, np.inf)),
)
def test_what_is_not_held_reaches_nothing(prefix_length, suffix_length, suffix_start, what):
    numbers = [np.array(x, np.int32) for x in (prefix_length, suffix_length, suffix_start)]
    prefix_length, suffix_length, suffix_start = numbers
    q, *caches = draw_arrays(0)
    filled = [x.copy() for x in caches]
    zero = np.zeros(PREFIXES, np.int32)
    places = (prefix_length, zero), (prefix_length, zero), (suffix_length, suffix_start), (suffix_length, suffix_start)
    for x, (length, start) in zip(filled, places, strict=True):
        free = (np.arange(x.shape[2])[None] - start[:, None]) % x.shape[2] >= length[:, None]
        x.swapaxes(1, 2)[free] = what

    def run(prefix_k, prefix_v, suffix_k, suffix_v):
        arguments = (q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length, IDS, suffix_start)
        return compiled(None, 2)(*arguments)

    np.testing.assert_array_equal(run(*caches), run(*filled))
    empty = (np.repeat(prefix_length, 2) == 0) & (suffix_length == 0)
    assert not np.asarray(run(*filled))[empty].any()


def test_lengths_beyond_the_caches_count_as_all_of_them():
    q, prefix_k, prefix_v, suffix_k, suffix_v = draw_arrays(1)
    outs = []
    for prefix, suffix, empty in ((C0, C1, 0), (2**31 - 1, C1 + 1, -(2**31))):
        prefix_length = np.array([prefix, prefix, empty], np.int32)
        suffix_length = np.array([suffix, empty] * 3, np.int32)
        outs.append(compiled(None, 2)(q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length, IDS))
    np.testing.assert_array_equal(*outs)


def call(slots=6, prefixes=3, **changes):
    # The undecorated function: under the suite's run-time shape checks the checker would answer first.
    arguments = {
        "q": jnp.zeros((slots, N, H)),
        "prefix_k": jnp.zeros((prefixes, K, C0, H)),
        "prefix_v": jnp.zeros((prefixes, K, C0, H)),
        "prefix_length": jnp.zeros(prefixes, jnp.int32),
        "suffix_k": jnp.zeros((slots, K, C1, H)),
        "suffix_v": jnp.zeros((slots, K, C1, H)),
        "suffix_length": jnp.zeros(slots, jnp.int32),
        "prefix_id": jnp.zeros(slots, jnp.int32),
    }
    return inspect.unwrap(cached_attention)(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": jnp.zeros((6, H))}, r"cached_attention: q has shape \(6, 8\); it must have rank 3, \[S N H\]"),
        ({"prefix_v": jnp.zeros((3, N, C0, H))}, r"prefix_v has shape .*; it must be \[P K C0 H\] = \(3, 2, 9, 8\)"),
        ({"suffix_k": jnp.zeros((5, K, C1, H))}, r"suffix_k has shape .*; it must be \[S K C1 H\] = \(6, 2, 5, 8\)"),
        ({"q": jnp.zeros((6, 3, H))}, r"q has N=3 heads and k has K=2; N must be a multiple of K"),
        ({"slots_per_prefix": 0}, r"slots_per_prefix is 0; it must be an int of at least 1, or None"),
        ({"suffix_start": jnp.zeros(5, jnp.int32)}, r"suffix_start has shape \(5,\); it must be \[S\] = \(6,\)"),
        ({"suffix_length": jnp.zeros(6, jnp.uint32)}, r"suffix_length has dtype uint32; it must be int32"),
        ({"prefix_length": jnp.zeros(6, jnp.int32)}, r"prefix_length has shape \(6,\); it must be \[P\] = \(3,\)"),
        ({"suffix_v": jnp.zeros((6, K, C1, H), jnp.bfloat16)}, r"dtypes are .*suffix_v bfloat16; they must be one"),
        (
            {"implementation": "sparse"},
            "has no sparse backend; available: pallas_tpu, triton_gpu, cpu, xla",
        ),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


LONG = {"slots": 4, "prefixes": 2, "prefix": 640, "suffix": 384}
"""Caches of several blocks: five of a prefix, three of a suffix (blocks of 128 where VMEM is small)."""


@functools.cache
def interpreted(soft_cap, slots_per_prefix):
    return jax.jit(
        functools.partial(
            cached_attention, logit_soft_cap=soft_cap, slots_per_prefix=slots_per_prefix, interpret=INTERPRET
        ),
        compiler_options=QUICK,
    )


def check_interpreted(data, dtype, soft_cap):
    """The kernel on caches of several blocks, of which some are held by nobody, against the definition."""
    slots, prefixes = LONG["slots"], LONG["prefixes"]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shapes = (slots, N, H), (prefixes, K, LONG["prefix"], H), (slots, K, LONG["suffix"], H)
    q, prefix_k, suffix_k = (rng.normal(size=s).astype(dtype) for s in shapes)
    prefix_v, suffix_v = (rng.normal(size=s).astype(dtype) for s in shapes[1:])
    held = lambda most: st.sampled_from((-1, 0, 1, 127, 128, 129, most - 1, most, most + 1)) | st.integers(0, most)  # noqa: E731
    prefix_length = data.draw(st.lists(held(LONG["prefix"]), min_size=prefixes, max_size=prefixes))
    suffix_length = data.draw(st.lists(held(LONG["suffix"]), min_size=slots, max_size=slots))
    prefix_id = data.draw(st.lists(st.integers(-1, prefixes), min_size=slots, max_size=slots))
    suffix_start = data.draw(st.lists(st.integers(-5, 2 * LONG["suffix"]), min_size=slots, max_size=slots))
    numbers = [np.array(x, np.int32) for x in (prefix_length, suffix_length, prefix_id, suffix_start)]
    arguments = (q, prefix_k, prefix_v, numbers[0], suffix_k, suffix_v, *numbers[1:])
    truth = reference.cached_attention(*arguments, logit_soft_cap=soft_cap)
    bar = compiled(soft_cap, None)(*arguments)
    starts = (np.zeros_like(numbers[0]), numbers[3])
    for caches, length, start in zip(((prefix_k, prefix_v), (suffix_k, suffix_v)), numbers[:2], starts, strict=True):
        for x in caches:
            free = (np.arange(x.shape[2])[None] - start[:, None]) % x.shape[2] >= length[:, None]
            x.swapaxes(1, 2)[free] = np.nan
    with no_races():
        actual = np.asarray(interpreted(soft_cap, slots)(*arguments))
    assert_within_rule(actual, bar, truth, factor=2, name="out")


@settings(max_examples=examples(4))
@given(data=st.data())
def test_the_interpreted_kernel_matches_the_definition(data):
    # Without a cap: conformance and the slow test have one.
    check_interpreted(data, np.float32, None)


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data(), dtype=st.sampled_from((jnp.float32, jnp.bfloat16)), soft_cap=st.sampled_from((None, 2.0)))
def test_the_interpreted_kernel_matches_the_definition_in_many_cases(data, dtype, soft_cap):
    check_interpreted(data, dtype, soft_cap)


@pytest.mark.parametrize(
    ("room", "expected"), [(1 << 30, (64, 8)), (1024, (1, 8)), (1023, (1, 4)), (128, (1, 1)), (1, (1, 1))]
)
def test_a_grid_step_takes_the_heads_and_then_the_groups_that_fit(monkeypatch, room, expected):
    monkeypatch.setattr("pit_kernels.device.vmem_bytes", lambda: 2 * room)
    assert pallas_tpu._step(64, 8, 128) == expected


@pytest.mark.parametrize(("count", "expected"), [(64, (32, 8)), (1, (1, 4)), (3, (1, 4)), (2, (1, 8))])
def test_steps_are_left_for_both_cores(monkeypatch, count, expected):
    monkeypatch.setattr("pit_kernels.device.vmem_bytes", lambda: 2**30)
    monkeypatch.setattr("pit_kernels.device.cores", lambda: 2)
    assert pallas_tpu._step(count, 8, 128) == expected


@pytest.mark.parametrize(
    ("capacities", "dtype", "reason"),
    [
        ((1024, 511), jnp.bfloat16, None),
        ((1024, 700), jnp.float32, "suffix caches have 700 entries, and it takes 1 to 512, or a multiple of 128"),
        ((0, 511), jnp.float32, "prefix caches have 0 entries, and it takes 1 to 512, or a multiple of 128"),
        ((128, 128), jnp.float16, "its inputs are float16, and it computes in bfloat16 and float32"),
    ],
)
def test_what_the_kernel_does_not_serve_is_said(capacities, dtype, reason):
    prefix, suffix = (jnp.zeros((n, K, c, H), dtype) for n, c in zip((PREFIXES, SLOTS), capacities, strict=True))
    changes = {"q": jnp.zeros((SLOTS, N, H), dtype), "implementation": "pallas_tpu"}
    changes |= {"prefix_k": prefix, "prefix_v": prefix, "suffix_k": suffix, "suffix_v": suffix}
    if reason is None:
        assert jax.eval_shape(lambda: call(**changes)).shape == (SLOTS, N, H)
        return
    with pytest.raises(UnsupportedImplementationError, match=f"pallas_tpu cannot serve this call: {reason}"):
        call(**changes)
