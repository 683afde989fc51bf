"""Sliding windows of the TPU kernels: interpreted, as programs of every generation, and the lists of blocks of keys."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from error_rule import assert_within_rule, tree_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import INTERPRET, QUICK, no_races
from test_three_way_attention import BACKENDS as ATTENTION
from test_three_way_attention import TPU, TPU_SHAPE, draw_arrays, poisoned
from tpu_programs import compile_for, mesh, needs_libtpu

from pit_kernels import cached_attention, device, three_way_attention
from pit_kernels.cached_attention import reference as cached_reference
from pit_kernels.conformance.rows import path_positions
from pit_kernels.three_way_attention import reference
from pit_kernels.three_way_attention.tiles import Tiles
from pit_kernels.three_way_attention.visible_blocks import KEYS, visible_blocks, visible_blocks_of_stretch, window_of

WINDOWS = (1, 60, 130, 200)

# Bodies of one tile a trip: they compile in half the time, and a window changes no other.
FAST = {
    "a tile a row": (Tiles(queries=128, keys=512, unroll=1, masked=1, short=4), 60),
    "loops": (Tiles(queries=128, keys=128, unroll=1, masked=1, short=0), 130),
    "stretches": (Tiles(queries=128, keys=128, unroll=1, masked=1, short=0, resident=256), 200),
}
"""Tiles and window of the fast tests: each is a program."""

BACKENDS = ATTENTION | {name: {"interpret": INTERPRET, "tiles": tiles} for name, (tiles, _) in FAST.items()}


@functools.cache
def compiled(which, window):
    def results(arrays, until, position):
        *qkv, d_out, d_lse = arrays

        def out(*qkv):
            if which == "reference":
                return reference.three_way_attention(*qkv, until, position, window=window)
            options = {"window": window, "return_lse": True, **BACKENDS[which]}
            return three_way_attention(*qkv, until, position, **options)

        value, pull = jax.vjp(out, *qkv)
        return *value, *pull((d_out, d_lse.astype(value[1].dtype)))

    return jax.jit(results, compiler_options=QUICK)


def check(backend, until, position, window, seed):
    """Results and gradients by the rule, with NaN and wild positions in padding for the kernel alone."""
    padding = until <= np.arange(until.shape[1])
    arrays = draw_arrays(TPU_SHAPE, seed)
    arrays[4] = np.where(padding[:, :, None], 0, arrays[4])
    wild = np.where(padding, np.random.default_rng(seed).choice([-(2**31), 2**31 - 1], padding.shape), position)
    actual = compiled(backend, window)(poisoned(arrays, padding), until, wild.astype(np.int32))
    naive = compiled("reference", window)(arrays, until, position)
    with jax.enable_x64(True):
        truth = compiled("reference", window)([x.astype(np.float64) for x in arrays], until, position)
    names = ("out", "lse", "dq", "dk", "dv")
    for name, factor, *values in zip(names, (2, 2, 3, 3, 3), actual, naive, truth, strict=True):
        if name == "lse":
            values = [np.where(padding[:, :, None], 0, x) for x in values]
        assert_within_rule(*values, factor=factor, name=name)
    for x in (actual[0], *actual[2:]):
        assert not np.asarray(x)[padding].any()


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=3)
@given(data=st.data())
def test_interpreted_trees_match_the_dense_formula(backend, data):
    until = data.draw(tree_rows(*TPU_SHAPE[:2]))
    position = np.stack([path_positions(row) for row in until])
    check(backend, until, position, FAST[backend][1], data.draw(st.integers(0, 2**32)))


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("backend", TPU)
@settings(max_examples=20)
@given(data=st.data())
def test_more_interpreted_trees_match_the_dense_formula(backend, window, data):
    until = data.draw(tree_rows(*TPU_SHAPE[:2]))
    position = np.stack([path_positions(row) for row in until])
    check(backend, until, position, window, data.draw(st.integers(0, 2**32)))


@settings(max_examples=3)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_interpreted_positions_may_be_any(data, seed):
    until = data.draw(tree_rows(*TPU_SHAPE[:2]))
    position = np.random.default_rng(seed).integers(-200, 300, until.shape).astype(np.int32)
    check("loops", until, position, FAST["loops"][1], seed)


def pairs(until, position, window):
    """Which queries see which keys, by the definition, for each row."""
    index = np.arange(until.shape[1])
    seen = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < until[:, None, :])
    seen &= (until > index)[:, :, None]
    distance = position[:, :, None].astype(np.int64) - position[:, None, :]
    return seen & (distance < window)


@functools.partial(jax.jit, static_argnames=("window", "queries", "stretch"), compiler_options=QUICK)
def listed(until, position, window, queries, stretch):
    of_window = window_of(until, position, window)
    if stretch is None:
        return visible_blocks(until, queries, of_window)
    return visible_blocks_of_stretch(until, queries, jnp.int32(stretch), 2 * KEYS, of_window)


@pytest.mark.parametrize("stretch", [None, 2 * KEYS])
@settings(max_examples=examples(20))
@given(until=tree_rows(2, 768), window=st.sampled_from((1, 100, 200)), wild=st.booleans())
def test_lists_hold_every_block_that_a_window_shows_and_whole_ones_are_whole(stretch, until, window, wild):
    queries = 256
    position = np.stack([path_positions(row) for row in until])
    if wild:
        position = np.where(position % 7 == 3, 2**31 - 1 - position, -position).astype(np.int32)
    lists = jax.tree.map(np.asarray, listed(until, position, window, queries, stretch))
    first, keys = (0, 768) if stretch is None else (stretch, 2 * KEYS)
    seen = pairs(until, position, window)[:, :, first : first + keys]
    blocks = seen.reshape(2, 768 // queries, queries, keys // KEYS, KEYS)
    any_BNM, all_BNM = blocks.any(axis=(2, 4)), blocks.all(axis=(2, 4))
    for row in range(2):
        for i in range(768 // queries):
            most = i * queries // KEYS if stretch is None else keys // KEYS
            number, full = lists.number[row, i], lists.full[row, i]
            block = lists.block[row, i]
            assert set(np.flatnonzero(any_BNM[row, i, :most])) <= set(block[:number].tolist())
            assert (block[number:] == keys // KEYS).all()
            assert all(all_BNM[row, i, j] for j in block[:full])


def test_blocks_before_the_window_are_in_no_list():
    until = np.full((1, 768), 768, np.int32)
    position = np.arange(768, dtype=np.int32)[None]
    for window, most in ((1, 0), (128, 1), (130, 2)):
        lists = listed(until, position, window, 128, None)
        assert lists.number.tolist() == [[min(i, most) for i in range(6)]]
    # Of the two blocks before, a window of 256 shows the nearer one whole.
    assert listed(until, position, 256, 128, None).full.tolist() == [[0, 1, 1, 1, 1, 1]]


SLOTS, PREFIXES, HEADS, KV_HEADS, WIDTH, PREFIX, SUFFIX = 4, 2, 4, 2, 8, 640, 384


@functools.cache
def decode(window):
    function = functools.partial(cached_attention, window=window, slots_per_prefix=SLOTS, interpret=INTERPRET)
    return jax.jit(function, compiler_options=QUICK)


@settings(max_examples=examples(4))
@given(data=st.data())
def test_the_interpreted_decode_kernel_sees_the_window_of_both_caches(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shapes = (SLOTS, HEADS, WIDTH), (PREFIXES, KV_HEADS, PREFIX, WIDTH), (SLOTS, KV_HEADS, SUFFIX, WIDTH)
    q, prefix_k, suffix_k = (rng.normal(size=s).astype(np.float32) for s in shapes)
    prefix_v, suffix_v = (rng.normal(size=s).astype(np.float32) for s in shapes[1:])
    held = lambda most, count: st.lists(  # noqa: E731
        st.sampled_from((-1, 0, 1, 127, 129, most, most + 1)) | st.integers(0, most), min_size=count, max_size=count
    )
    numbers = [
        np.array(data.draw(x), np.int32)
        for x in (
            held(PREFIX, PREFIXES),
            held(SUFFIX, SLOTS),
            st.lists(st.integers(-1, PREFIXES), min_size=SLOTS, max_size=SLOTS),
            st.lists(st.integers(-5, 2 * SUFFIX), min_size=SLOTS, max_size=SLOTS),
        )
    ]
    arguments = (q, prefix_k, prefix_v, numbers[0], suffix_k, suffix_v, *numbers[1:])
    truth = cached_reference.cached_attention(*arguments, window=300)
    with no_races():
        np.testing.assert_allclose(decode(300)(*arguments), truth, rtol=1e-5, atol=1e-5)


# What a program is compiled with does not change with its tiles, and small ones compile in half the time.
SMALL = Tiles(queries=128, keys=256, unroll=1, masked=1, short=1)


def gradient(q, k, v, until, position, d_out, tiles=None):
    out, pull = jax.vjp(lambda *qkv: three_way_attention(*qkv, until, position, window=300, tiles=tiles), q, k, v)
    return out, pull(d_out)


def check_compiles(kind, tiles=None, tokens=1024):
    q, k = (jax.ShapeDtypeStruct((2, tokens, heads, 128), jnp.bfloat16) for heads in (8, 2))
    row = jax.ShapeDtypeStruct((2, tokens), jnp.int32)
    program = compile_for(mesh(kind, core=1), functools.partial(gradient, tiles=tiles), q, k, k, row, row, q)
    kernels = set(re.findall(r"three_way_attention_(?:forward|backward)", program.as_text()))
    assert kernels == {"three_way_attention_forward", "three_way_attention_backward"}


def decode_program(kind):
    def sixteen(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    numbers = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (4, 64, 64, 64)]
    prefix, suffix = sixteen(4, 8, 1024, 128), sixteen(64, 8, 512, 128)
    function = functools.partial(cached_attention, window=700, slots_per_prefix=16)
    arguments = (sixteen(64, 32, 128), prefix, prefix, numbers[0], suffix, suffix, *numbers[1:])
    return compile_for(mesh(kind, core=1), function, *arguments)


@needs_libtpu
def test_windows_compile():
    check_compiles("v5e", SMALL)
    assert len(re.findall(r'custom_call_target="tpu_custom_call"', decode_program("v5e").as_text())) == 2


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("tokens", [4096, 16384])
@pytest.mark.parametrize("kind", device.KINDS)
def test_windows_compile_for_every_generation(kind, tokens):
    check_compiles(kind, tokens=tokens)
    decode_program(kind)
