"""The tiles of queries and keys with a visible pair, for GPU kernels, listed on the device.

Tiles of queries and of keys have sizes of their own, and those on the diagonal are in the lists.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from pit_kernels.three_way_attention.visible_blocks import alive

_LAST = int(np.iinfo(np.int32).max)


class TileLists(NamedTuple):
    """For each of n tiles of one side, the m tiles of the other; each part of a list is ascending.

    block: the wholly visible tiles, then the others with a visible pair, then the rest.
    full: how many of them are wholly visible: every query sees every key.
    number: how many are visible at all.
    """

    block: Int32[Array, "B n m"]
    full: Int32[Array, "B n"]
    number: Int32[Array, "B n"]


def tile_lists(
    visible_until: Int32[Array, "B T"], position: Int32[Array, "B T"], window: int | None, queries: int, keys: int
) -> tuple[TileLists, TileLists]:
    """Return the tiles of keys that each tile of queries sees, and the tiles of queries that see each tile of keys.

    A tile is listed when extremes of `visible_until`, and with a window of `position`, do not rule out a visible pair.

    Args:
      visible_until: the mask; T is a multiple of both sizes.
      position: position of a token on its path; read with a window only.
      window: positions of its path that a query sees; all when None.
      queries: tokens of a tile of queries.
      keys: tokens of a tile of keys.
    """
    batch, tokens = visible_until.shape
    n, m = tokens // queries, tokens // keys
    i_n, j_m = jnp.arange(n, dtype=jnp.int32), jnp.arange(m, dtype=jnp.int32)
    index_T = jnp.arange(tokens, dtype=jnp.int32)[None, :]
    alive_BT = alive(visible_until)
    first_Bn = jnp.min(jnp.where(alive_BT, index_T, _LAST).reshape(batch, n, queries), axis=2)
    whole_Bn = jnp.all(alive_BT.reshape(batch, n, queries), axis=2)
    until_BmK = visible_until.reshape(batch, m, keys)
    most_Bm, least_Bm = jnp.max(until_BmK, axis=2), jnp.min(until_BmK, axis=2)
    reached_nm = j_m[None, :] * keys < (i_n[:, None] + 1) * queries
    before_nm = (j_m[None, :] + 1) * keys <= i_n[:, None] * queries
    seen_Bnm = reached_nm[None] & (most_Bm[:, None, :] > first_Bn[:, :, None])
    full_Bnm = before_nm[None] & whole_Bn[:, :, None] & (least_Bm[:, None, :] >= ((i_n + 1) * queries)[None, :, None])
    if window is not None:
        of_queries, of_keys = position.reshape(batch, n, queries), position.reshape(batch, m, keys)
        alive_BnQ, alive_BmK = alive_BT.reshape(of_queries.shape), alive_BT.reshape(of_keys.shape)
        least_Bn = jnp.min(jnp.where(alive_BnQ, of_queries, _LAST), axis=2)
        last_Bm = jnp.max(jnp.where(alive_BmK, of_keys, 0), axis=2)
        seen_Bnm = seen_Bnm & (least_Bn[:, :, None] - last_Bm[:, None, :] < window)
        farthest_Bnm = jnp.max(of_queries, axis=2)[:, :, None] - jnp.min(of_keys, axis=2)[:, None, :]
        full_Bnm = full_Bnm & seen_Bnm & (farthest_Bnm < window)
    return (
        _listed(full_Bnm, seen_Bnm),
        _listed(full_Bnm.swapaxes(1, 2), seen_Bnm.swapaxes(1, 2)),
    )


def _listed(full: Bool[Array, "B n m"], seen: Bool[Array, "B n m"]) -> TileLists:
    rank_Bnm = jnp.where(full, 0, jnp.where(seen, 1, 2))
    return TileLists(
        jnp.argsort(rank_Bnm, axis=2, stable=True).astype(jnp.int32),
        jnp.sum(full, axis=2, dtype=jnp.int32),
        jnp.sum(seen, axis=2, dtype=jnp.int32),
    )
