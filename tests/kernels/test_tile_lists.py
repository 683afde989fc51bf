"""The lists of tiles of the GPU kernels against the mask, pair by pair; Triton is not needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from error_rule import tree_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_kernels.conformance.rows import path_positions
from pit_kernels.three_way_attention.tile_lists import tile_lists

TOKENS = 96
SIZES = ((16, 32), (32, 16), (32, 32))


@functools.cache
def compiled(window, queries, keys):
    return jax.jit(functools.partial(tile_lists, window=window, queries=queries, keys=keys))


def pairs(until, position, window):
    """Which queries see which keys, by the definition."""
    index = np.arange(until.size)
    seen = (index[None, :] <= index[:, None]) & (index[:, None] < until[None, :]) & (until > index)[:, None]
    return seen if window is None else seen & (position[:, None] - position[None, :] < window)


def check(lists, visible, whole):
    """Every visible tile is listed once, and what is listed as whole is."""
    for row, seen in enumerate(visible):
        for i in range(seen.shape[0]):
            block, full, number = lists.block[row, i], int(lists.full[row, i]), int(lists.number[row, i])
            assert sorted(block.tolist()) == list(range(block.size))
            assert set(np.flatnonzero(seen[i])) <= set(block[:number].tolist())
            assert all(whole[row, i, j] for j in block[:full])


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize(("queries", "keys"), SIZES)
@settings(max_examples=examples(20))
@given(data=st.data())
def test_lists_hold_every_visible_tile_and_whole_ones_are_whole(window, queries, keys, data):
    until = data.draw(tree_rows(2, TOKENS))
    position = np.stack([path_positions(row) for row in until])
    of_queries, of_keys = compiled(window, queries, keys)(jnp.asarray(until), jnp.asarray(position))
    seen = np.stack([pairs(*row, window) for row in zip(until, position, strict=True)])
    tiles = seen.reshape(2, TOKENS // queries, queries, TOKENS // keys, keys)
    visible, whole = tiles.any(axis=(2, 4)), tiles.all(axis=(2, 4))
    check(jax.tree.map(np.asarray, of_queries), visible, whole)
    check(jax.tree.map(np.asarray, of_keys), visible.swapaxes(1, 2), whole.swapaxes(1, 2))


def test_a_causal_row_lists_the_lower_triangle_and_what_is_below_the_diagonal_is_whole():
    until = jnp.full((1, TOKENS), TOKENS, jnp.int32)
    of_queries, of_keys = compiled(None, 32, 16)(until, until)
    assert (of_queries.number.tolist(), of_queries.full.tolist()) == ([[2, 4, 6]], [[0, 2, 4]])
    assert (of_keys.number.tolist(), of_keys.full.tolist()) == ([[3, 3, 2, 2, 1, 1]], [[2, 2, 1, 1, 0, 0]])


def test_padding_lists_nothing():
    zeros = jnp.zeros((1, TOKENS), jnp.int32)
    of_queries, of_keys = compiled(20, 32, 16)(zeros, zeros)
    assert not of_queries.number.any()
    assert not of_keys.number.any()
