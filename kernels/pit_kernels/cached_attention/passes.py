"""Decode-time attention as two passes of one kind, over the shared prefixes and over the slots' own suffixes, merged.

The split is that of Hydragen (Juravsky et al., arXiv 2402.05099): slots that share a prefix read it in one batched
product. A backend is a pass; this module has everything else.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import numerics
from pit_kernels.cached_attention.groups import Groups, group_slots, grouped, ungrouped
from pit_kernels.cached_attention.settings import Settings


class Partial(NamedTuple):
    """Attention over part of the keys: sums of exp(logit - peak), of values and of 1; 0 and a finite peak for none.

    A `total` of None stands for 1 everywhere: the sums of values are divided already and `peak` is the log-sum-exp.
    """

    weighted: Float[Array, "*b H"]
    peak: Float[Array, "*b"]
    total: Float[Array, "*b"] | None

    def share_of_total(self, share: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Return the term that it adds to the merged total when its sums are multiplied by `share`."""
        return share if self.total is None else self.total * share


@runtime_checkable
class Pass(Protocol):
    """Attention of each group's queries over the held entries of the group's cache (see `held_entries`)."""

    def __call__(
        self,
        q: Float[Array, "G K M H"],
        k: Float[Array, "G K C H"],
        v: Float[Array, "G K C H"],
        start: Int32[Array, " G"],
        length: Int32[Array, " G"],
        settings: Settings,
        first: Int32[Array, "G M"] | None = None,
    ) -> Partial:
        """Return the partial sums, in float32 (float64 stays).

        `first` is given with a window only, and then `start` is 0: the first entry that each query sees.
        """


def held_entries(start: Int32[Array, " G"], length: Int32[Array, " G"], capacity: int) -> Bool[Array, "G C"]:
    """Return the mask of the entries that each cache holds: `length` of them from `start` on, around the end.

    Example:
      >>> held_entries(jnp.array([3], jnp.int32), jnp.array([2], jnp.int32), 4).tolist()
      [[True, False, False, True]]
    """
    entry = jnp.arange(capacity, dtype=jnp.int32)[None, :]
    return (entry - start[:, None] % capacity) % capacity < length[:, None] if capacity else entry < 0


def lowest(x: Array) -> float:
    """Return a finite least peak: an empty cache then gives exp(-inf - finite) = 0 and never inf - inf."""
    return float(np.finfo(numerics.accumulator(x)).min)


def first_of_rows(
    prefix_length: Int32[Array, " P"], left: Int32[Array, " S"], groups: Groups, group: int, capacity: int
) -> Int32[Array, "P MR"]:
    """Return the first entry of the prefix that each grouped query sees.

    Args:
      prefix_length: tokens held of each prefix.
      left: entries of the window that each slot's suffix leaves to the prefix, from 0 up.
      groups: rows of each prefix.
      group: R queries per slot and head.
      capacity: entries of a prefix cache.
    """
    left_PM = jnp.take(left, groups.slot, axis=0, mode="fill", fill_value=0)
    first_PM = jnp.clip(prefix_length, 0, capacity)[:, None] - left_PM
    return jnp.repeat(first_PM, group, axis=1)


def attend(
    over: Pass,
    settings: Settings,
    q: Float[Array, "S N H"],
    prefix_k: Float[Array, "P K C0 H"],
    prefix_v: Float[Array, "P K C0 H"],
    prefix_length: Int32[Array, " P"],
    suffix_k: Float[Array, "S K C1 H"],
    suffix_v: Float[Array, "S K C1 H"],
    suffix_length: Int32[Array, " S"],
    prefix_id: Int32[Array, " S"],
    suffix_start: Int32[Array, " S"],
) -> Float[Array, "S N H"]:
    """Return the attention output by the pass of a backend; the contract is that of `api.cached_attention`."""
    slots, heads, width = q.shape
    kv_heads = suffix_k.shape[1]
    group = heads // kv_heads
    q_SKRH = q.reshape(slots, kv_heads, group, width)
    groups = group_slots(prefix_id, prefix_k.shape[0], settings.slots_per_prefix)
    first_PM = None
    if settings.window is not None:
        held = jnp.clip(suffix_length, 0, suffix_k.shape[2])
        # A suffix longer than the window starts later; the others leave some of the window to their prefix.
        suffix_length = jnp.minimum(held, settings.window)
        suffix_start = suffix_start + held - suffix_length
        first_PM = first_of_rows(prefix_length, settings.window - suffix_length, groups, group, prefix_k.shape[2])
    suffix = over(q_SKRH, suffix_k, suffix_v, suffix_start, suffix_length, settings)

    # A prefix whose slots have all ended is not read.
    length = jnp.where(jnp.any(groups.slot < slots, axis=1), prefix_length, 0)
    rows = over(grouped(q_SKRH, groups), prefix_k, prefix_v, jnp.zeros_like(length), length, settings, first_PM)
    prefix = Partial(
        ungrouped(rows.weighted, groups),
        ungrouped(rows.peak, groups, lowest(q)),
        None if rows.total is None else ungrouped(rows.total, groups),
    )
    peak = jnp.maximum(prefix.peak, suffix.peak)
    prefix_share, suffix_share = jnp.exp(prefix.peak - peak), jnp.exp(suffix.peak - peak)
    weighted = prefix.weighted * prefix_share[..., None] + suffix.weighted * suffix_share[..., None]
    total = prefix.share_of_total(prefix_share) + suffix.share_of_total(suffix_share)
    # A slot whose prefix and suffix are both empty sees nothing: 0, as padding does in three-way attention.
    out = weighted / jnp.where(total > 0, total, 1)[..., None]
    out = jnp.where(groups.refused[:, None, None, None], jnp.nan, out)
    return out.reshape(slots, heads, width).astype(q.dtype)
