"""The blocks of keys that a block of queries must visit, from block extremes of `visible_until` on the device.

Keys come in blocks of `KEYS` tokens, queries in blocks of a multiple of that. Where a whole row is at hand, the blocks
on the diagonal of a block of queries are always visited and in no list.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32

KEYS = 128
"""Tokens of a block of keys: one vector register's lanes, and the finest grain at which nothing is computed."""

_LAST = int(np.iinfo(np.int32).max)


class VisibleBlocks(NamedTuple):
    """Lists of one call; n blocks of queries, m blocks of keys.

    block: the listed blocks of keys that a block of queries sees, full ones first, each part ascending;
      then m, the index of no block.
    full: how many of them every query of the block sees whole, so that they need no mask.
    number: how many blocks are listed.
    alive: whether the block of queries has a living token (1 or 0).
    """

    block: Int32[Array, "B n m"]
    full: Int32[Array, "B n"]
    number: Int32[Array, "B n"]
    alive: Int32[Array, "B n"]


def alive(visible_until: Int32[Array, "B T"]) -> Bool[Array, "B T"]:
    """Return the mask of the tokens that are not padding."""
    return visible_until > jnp.arange(visible_until.shape[1], dtype=jnp.int32)[None, :]


def visible_blocks(visible_until: Int32[Array, "B T"], queries: int) -> VisibleBlocks:
    """Return the lists for blocks of `queries` queries.

    A block of keys is seen when its largest `visible_until` lies past the first living query; it is full when its
    smallest one lies past the last query and every query is alive.

    Args:
      visible_until: the mask; T is a multiple of `queries`.
      queries: queries of a block, a multiple of `KEYS`.
    """
    n, m = visible_until.shape[1] // queries, visible_until.shape[1] // KEYS
    i_n, j_m = jnp.arange(n, dtype=jnp.int32), jnp.arange(m, dtype=jnp.int32)
    before_nm = (j_m[None, :] + 1) * KEYS <= i_n[:, None] * queries
    return _lists(visible_until, visible_until, before_nm, before_nm)


def visible_blocks_of_stretch(
    visible_until: Int32[Array, "B T"], queries: int, first_key: Int32[Array, ""], keys: int
) -> VisibleBlocks:
    """Return the lists of blocks of keys of one stretch of the row; those on the diagonal are listed too, as not full.

    Blocks are numbered from the stretch's first.

    Args:
      visible_until: the mask; T is a multiple of `queries`.
      queries: queries of a block, a multiple of `KEYS`.
      first_key: index of the stretch's first key, a multiple of `KEYS`.
      keys: its length, a multiple of `KEYS`.
    """
    n, m = visible_until.shape[1] // queries, keys // KEYS
    until_of_keys = lax.dynamic_slice_in_dim(visible_until, first_key, keys, axis=1)
    i_n, key_m = jnp.arange(n, dtype=jnp.int32), first_key + jnp.arange(m, dtype=jnp.int32) * KEYS
    before_nm = key_m[None, :] + KEYS <= i_n[:, None] * queries
    reached_nm = key_m[None, :] < (i_n[:, None] + 1) * queries
    return _lists(visible_until, until_of_keys, before_nm, reached_nm)


def _lists(
    visible_until: Int32[Array, "B T"],
    until_of_keys: Int32[Array, "B S"],
    before: Bool[Array, "n m"],
    listed: Bool[Array, "n m"],
) -> VisibleBlocks:
    """Return the lists over the blocks that are `listed`; only those that lie `before` the queries can be full."""
    batch, tokens = visible_until.shape
    n, m = before.shape
    queries = tokens // n
    index_T = jnp.arange(tokens, dtype=jnp.int32)[None, :]
    alive_BT = alive(visible_until)
    first_Bn = jnp.min(jnp.where(alive_BT, index_T, _LAST).reshape(batch, n, queries), axis=2)
    whole_Bn = jnp.all(alive_BT.reshape(batch, n, queries), axis=2)
    until_BmK = until_of_keys.reshape(batch, m, KEYS)
    most_B1m, least_B1m = jnp.max(until_BmK, axis=2)[:, None], jnp.min(until_BmK, axis=2)[:, None]
    end_n, j_m = (jnp.arange(n, dtype=jnp.int32) + 1) * queries, jnp.arange(m, dtype=jnp.int32)
    seen_Bnm = listed[None] & (most_B1m > first_Bn[:, :, None])
    full_Bnm = before[None] & whole_Bn[:, :, None] & (least_B1m >= end_n[None, :, None])
    partial_Bnm = seen_Bnm & ~full_Bnm
    full_Bn = jnp.sum(full_Bnm, axis=2, dtype=jnp.int32)
    place_Bnm = jnp.where(
        full_Bnm,
        jnp.cumsum(full_Bnm, axis=2, dtype=jnp.int32) - 1,
        full_Bn[:, :, None] + jnp.cumsum(partial_Bnm, axis=2, dtype=jnp.int32) - 1,
    )
    # Written by comparison, not by scatter: each place is the sum over the one block that has it.
    at_Bnmm = (place_Bnm[:, :, None, :] == j_m[None, None, :, None]) & seen_Bnm[:, :, None, :]
    taken_Bnm = jnp.any(at_Bnmm, axis=3)
    block_Bnm = jnp.sum(jnp.where(at_Bnmm, j_m[None, None, None, :], 0), axis=3, dtype=jnp.int32)
    return VisibleBlocks(
        jnp.where(taken_Bnm, block_Bnm, m),
        full_Bn,
        jnp.sum(seen_Bnm, axis=2, dtype=jnp.int32),
        (first_Bn != _LAST).astype(jnp.int32),
    )
