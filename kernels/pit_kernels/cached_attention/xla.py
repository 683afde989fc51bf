"""Decode-time attention in plain XLA: one pass over the shared prefixes, one over the slots' own suffixes, merged.

The split is that of Hydragen (Juravsky et al., arXiv 2402.05099): slots that share a prefix read it in one
batched product.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import numerics
from pit_kernels.cached_attention.groups import group_slots, grouped, ungrouped
from pit_kernels.cached_attention.settings import Settings


class _Partial(NamedTuple):
    """Attention over part of the keys, not yet normalised: exp sums relative to `peak`."""

    weighted: Float[Array, "*b H"]
    total: Float[Array, "*b"]
    peak: Float[Array, "*b"]


def attend(
    q: Float[Array, "S N H"],
    prefix_k: Float[Array, "P K C0 H"],
    prefix_v: Float[Array, "P K C0 H"],
    prefix_length: Int32[Array, " P"],
    suffix_k: Float[Array, "S K C1 H"],
    suffix_v: Float[Array, "S K C1 H"],
    suffix_length: Int32[Array, " S"],
    prefix_id: Int32[Array, " S"],
    suffix_start: Int32[Array, " S"],
    settings: Settings,
) -> Float[Array, "S N H"]:
    """Attention output; the contract is that of `api.cached_attention`."""
    slots, heads, width = q.shape
    kv_heads = suffix_k.shape[1]
    q_SKRH = q.reshape(slots, kv_heads, heads // kv_heads, width)
    entry, capacity = jnp.arange(suffix_k.shape[2], dtype=jnp.int32)[None, :], jnp.int32(max(suffix_k.shape[2], 1))
    held = (entry - suffix_start[:, None] % capacity) % capacity < suffix_length[:, None]
    suffix = _partial(q_SKRH, suffix_k, suffix_v, held, settings)

    groups = group_slots(prefix_id, prefix_k.shape[0], settings.slots_per_prefix)
    held = jnp.arange(prefix_k.shape[2], dtype=jnp.int32)[None, :] < prefix_length[:, None]
    rows = _partial(grouped(q_SKRH, groups), prefix_k, prefix_v, held, settings)
    prefix = _Partial(
        ungrouped(rows.weighted, groups), ungrouped(rows.total, groups), ungrouped(rows.peak, groups, _floor(q))
    )
    peak = jnp.maximum(prefix.peak, suffix.peak)
    prefix_share, suffix_share = jnp.exp(prefix.peak - peak), jnp.exp(suffix.peak - peak)
    weighted = prefix.weighted * prefix_share[..., None] + suffix.weighted * suffix_share[..., None]
    total = prefix.total * prefix_share + suffix.total * suffix_share
    # A slot whose prefix and suffix are both empty sees nothing: 0, as padding does in three-way attention.
    out = weighted / jnp.where(total > 0, total, 1)[..., None]
    out = jnp.where(groups.refused[:, None, None, None], jnp.nan, out)
    return out.reshape(slots, heads, width).astype(q.dtype)


def _floor(q: Array) -> float:
    """A finite least peak: an empty cache then gives exp(-inf - finite) = 0 and never inf - inf."""
    return float(np.finfo(numerics.accumulator(q)).min)


def _partial(
    q: Float[Array, "G K R H"],
    k: Float[Array, "G K C H"],
    v: Float[Array, "G K C H"],
    held: Bool[Array, "G C"],
    settings: Settings,
) -> _Partial:
    """Attention of R queries a head over the held keys of the group's cache."""
    accumulator = numerics.accumulator(q)
    logits = jnp.einsum("gkrh,gkch->gkrc", q, k, preferred_element_type=accumulator) * settings.scale
    if settings.logit_soft_cap is not None:
        logits = settings.logit_soft_cap * jnp.tanh(logits / settings.logit_soft_cap)
    logits = jnp.where(held[:, None, None, :], logits, -jnp.inf)
    peak = jnp.max(logits, axis=-1, initial=_floor(q))
    p = jnp.exp(logits - peak[..., None])
    weighted = jnp.einsum("gkrc,gkch->gkrh", p.astype(v.dtype), v, preferred_element_type=accumulator)
    return _Partial(weighted, jnp.sum(p, axis=-1), peak)
