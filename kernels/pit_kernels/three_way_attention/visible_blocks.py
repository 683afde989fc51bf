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

_LEAST, _LAST = int(np.iinfo(np.int32).min), int(np.iinfo(np.int32).max)


class Window(NamedTuple):
    """A sliding window, as what a kernel compares: query t sees key s only if position[t] <= last[s].

    position: position of each token on its own path.
    last: last position that sees the token; the least int32 for padding, which nothing sees.
    """

    position: Int32[Array, "B T"]
    last: Int32[Array, "B T"]


def window_of(visible_until: Int32[Array, "B T"], position: Int32[Array, "B T"], window: int) -> Window:
    """Return the window in which a query sees `window` positions of its path, its own included.

    Args:
      visible_until: the mask.
      position: position of each token on its own path.
      window: at least 1.

    Example:
      >>> until, position = jnp.array([[2, 2, 0]], jnp.int32), jnp.array([[0, 2**31 - 1, 7]], jnp.int32)
      >>> window_of(until, position, 3).last.tolist()
      [[2, 2147483647, -2147483648]]
    """
    ahead = min(window - 1, _LAST)
    # No int32 overflows: what would lie past the last one is the last one.
    last = jnp.minimum(position, _LAST - ahead) + ahead
    return Window(position, jnp.where(alive(visible_until), last, _LEAST))


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


def visible_blocks(visible_until: Int32[Array, "B T"], queries: int, window: Window | None = None) -> VisibleBlocks:
    """Return the lists for blocks of `queries` queries.

    A block of keys is seen when its largest `visible_until` lies past the first living query; it is full when its
    smallest one lies past the last query and every query is alive. With a window extremes of positions must not rule
    out a visible pair, or a hidden one, either.

    Args:
      visible_until: the mask; T is a multiple of `queries`.
      queries: queries of a block, a multiple of `KEYS`.
      window: sliding window of the call.
    """
    n, m = visible_until.shape[1] // queries, visible_until.shape[1] // KEYS
    i_n, j_m = jnp.arange(n, dtype=jnp.int32), jnp.arange(m, dtype=jnp.int32)
    before_nm = (j_m[None, :] + 1) * KEYS <= i_n[:, None] * queries
    return _lists(visible_until, window, visible_until, None if window is None else window.last, before_nm, before_nm)


def visible_blocks_of_stretch(
    visible_until: Int32[Array, "B T"],
    queries: int,
    first_key: Int32[Array, ""],
    keys: int,
    window: Window | None = None,
) -> VisibleBlocks:
    """Return the lists of blocks of keys of one stretch of the row; those on the diagonal are listed too, as not full.

    Blocks are numbered from the stretch's first.

    Args:
      visible_until: the mask; T is a multiple of `queries`.
      queries: queries of a block, a multiple of `KEYS`.
      first_key: index of the stretch's first key, a multiple of `KEYS`.
      keys: its length, a multiple of `KEYS`.
      window: sliding window of the call.
    """
    n, m = visible_until.shape[1] // queries, keys // KEYS
    until_of_keys = lax.dynamic_slice_in_dim(visible_until, first_key, keys, axis=1)
    last_of_keys = None if window is None else lax.dynamic_slice_in_dim(window.last, first_key, keys, axis=1)
    i_n, key_m = jnp.arange(n, dtype=jnp.int32), first_key + jnp.arange(m, dtype=jnp.int32) * KEYS
    before_nm = key_m[None, :] + KEYS <= i_n[:, None] * queries
    reached_nm = key_m[None, :] < (i_n[:, None] + 1) * queries
    return _lists(visible_until, window, until_of_keys, last_of_keys, before_nm, reached_nm)


def _lists(
    visible_until: Int32[Array, "B T"],
    window: Window | None,
    until_of_keys: Int32[Array, "B S"],
    last_of_keys: Int32[Array, "B S"] | None,
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
    if window is not None and last_of_keys is not None:
        position_BnQ, last_BmK = window.position.reshape(batch, n, queries), last_of_keys.reshape(batch, m, KEYS)
        earliest_Bn1 = jnp.min(jnp.where(alive_BT.reshape(position_BnQ.shape), position_BnQ, _LAST), axis=2)[..., None]
        latest_Bn1 = jnp.max(position_BnQ, axis=2)[:, :, None]
        seen_Bnm = seen_Bnm & (earliest_Bn1 <= jnp.max(last_BmK, axis=2)[:, None])
        full_Bnm = full_Bnm & (latest_Bn1 <= jnp.min(last_BmK, axis=2)[:, None])
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
