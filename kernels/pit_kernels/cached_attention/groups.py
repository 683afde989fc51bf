"""The grouping of slots by prefix: it puts the queries of one prefix next to each other, and their results back."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


class Groups(NamedTuple):
    """P prefixes with M rows each.

    slot: slot of each row, S where the row is empty.
    row: row of each slot, P M where it has none.
    refused: slots whose prefix has no row left.
    """

    slot: Int32[Array, "P M"]
    row: Int32[Array, " S"]
    refused: Bool[Array, " S"]


def group_slots(prefix_id: Int32[Array, " S"], prefixes: int, rows: int) -> Groups:
    """Assign each slot a row of its prefix, in the order of the slots; an id outside 0..P-1 means no prefix.

    Example:
      >>> groups = group_slots(jnp.array([1, -1, 1, 0], jnp.int32), 2, 2)
      >>> groups.slot.tolist(), groups.row.tolist()
      ([[3, 4], [0, 2]], [2, 4, 3, 0])
    """
    slots = prefix_id.shape[0]
    number = jnp.arange(slots, dtype=jnp.int32)
    same = (prefix_id[:, None] == prefix_id[None, :]) & (number[None, :] < number[:, None])
    rank = jnp.sum(same, axis=1, dtype=jnp.int32)
    has_prefix = (prefix_id >= 0) & (prefix_id < prefixes)
    fits = has_prefix & (rank < rows)
    row = jnp.where(fits, prefix_id * rows + rank, prefixes * rows)
    # By comparison, not by scattering: the table is small, and a scatter takes a pass of its own.
    matches = row[None, :] == jnp.arange(prefixes * rows, dtype=jnp.int32)[:, None]
    slot = jnp.min(jnp.where(matches, number[None, :], slots), axis=1, initial=slots)
    return Groups(slot.reshape(prefixes, rows), row, has_prefix & ~fits)


def grouped(q: Float[Array, "S K R H"], groups: Groups) -> Float[Array, "P K MR H"]:
    """Return the queries by prefix and head: M slots of R rows each; zeros in rows that no slot has."""
    prefixes, members = groups.slot.shape
    _, kv_heads, group, width = q.shape
    q_PMKRH = jnp.take(q, groups.slot, axis=0, mode="fill", fill_value=0)
    return q_PMKRH.swapaxes(1, 2).reshape(prefixes, kv_heads, members * group, width)


def ungrouped(x: Float[Array, "P K MR *h"], groups: Groups, empty: float = 0.0) -> Float[Array, "S K R *h"]:
    """Return the results of each slot's rows; `empty` for a slot without a prefix."""
    prefixes, members = groups.slot.shape
    _, kv_heads, rows, *rest = x.shape
    by_member = x.reshape(prefixes, kv_heads, members, rows // members, *rest).swapaxes(1, 2)
    flat = by_member.reshape(prefixes * members, kv_heads, rows // members, *rest)
    results: Array = jnp.take(flat, groups.row, axis=0, mode="fill", fill_value=empty)
    return results
