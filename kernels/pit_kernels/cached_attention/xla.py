"""Decode-time attention in plain XLA: one pass over the shared prefix, one over the slot's own suffix, merged.

The split is that of Hydragen (Juravsky et al., arXiv 2402.05099): slots that share a prefix read it in one
batched product.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from pit_kernels import numerics


class Settings(NamedTuple):
    """Static settings; with `slots_per_prefix` n, slot s belongs to prefix s // n and `prefix_id` is not read."""

    scale: float
    logit_soft_cap: float | None
    slots_per_prefix: int | None


class _Partial(NamedTuple):
    """Attention over part of the keys, not yet normalised: exp sums relative to `peak`."""

    weighted: Float[Array, "*b K R H"]
    total: Float[Array, "*b K R"]
    peak: Float[Array, "*b K R"]


@functools.partial(jax.jit, static_argnames="settings")
def attend(
    q: Float[Array, "S N H"],
    prefix_k: Float[Array, "P C0 K H"],
    prefix_v: Float[Array, "P C0 K H"],
    prefix_length: Int32[Array, " P"],
    suffix_k: Float[Array, "S C1 K H"],
    suffix_v: Float[Array, "S C1 K H"],
    suffix_length: Int32[Array, " S"],
    prefix_id: Int32[Array, " S"] | None,
    settings: Settings,
) -> Float[Array, "S N H"]:
    """Attention output; the contract is that of `api.cached_attention`."""
    slots, heads, width = q.shape
    kv_heads = suffix_k.shape[2]
    q_SKRH = q.reshape(slots, kv_heads, heads // kv_heads, width)
    suffix = _partial(q_SKRH[:, None], suffix_k, suffix_v, suffix_length, settings)
    if settings.slots_per_prefix is None:
        own_k, own_v, own_length = prefix_k[prefix_id], prefix_v[prefix_id], prefix_length[prefix_id]
        prefix = _partial(q_SKRH[:, None], own_k, own_v, own_length, settings)
    else:
        grouped = q_SKRH.reshape(-1, settings.slots_per_prefix, *q_SKRH.shape[1:])
        prefix = _partial(grouped, prefix_k, prefix_v, prefix_length, settings)
    prefix, suffix = (_Partial(*(x.reshape(slots, *x.shape[2:]) for x in part)) for part in (prefix, suffix))
    peak = jnp.maximum(prefix.peak, suffix.peak)
    prefix_share, suffix_share = jnp.exp(prefix.peak - peak), jnp.exp(suffix.peak - peak)
    weighted = prefix.weighted * prefix_share[..., None] + suffix.weighted * suffix_share[..., None]
    total = prefix.total * prefix_share + suffix.total * suffix_share
    # A slot whose prefix and suffix are both empty sees nothing: 0, as padding does in three-way attention.
    out = weighted / jnp.where(total > 0, total, 1)[..., None]
    return out.reshape(slots, heads, width).astype(q.dtype)


def _partial(
    q: Float[Array, "G n K R H"],
    k: Float[Array, "G S K H"],
    v: Float[Array, "G S K H"],
    length: Int32[Array, " G"],
    settings: Settings,
) -> _Partial:
    """Attention of n queries a group over the first `length` keys of the group's cache."""
    accumulator = numerics.accumulator(q)
    held_GS = jnp.arange(k.shape[1], dtype=jnp.int32)[None, :] < length[:, None]
    v = jnp.where(held_GS[:, :, None, None], v, 0)
    logits = jnp.einsum("gnkrh,gskh->gnkrs", q, k, preferred_element_type=accumulator) * settings.scale
    if settings.logit_soft_cap is not None:
        logits = settings.logit_soft_cap * jnp.tanh(logits / settings.logit_soft_cap)
    logits = jnp.where(held_GS[:, None, None, None, :], logits, -jnp.inf)
    # A finite floor: an empty cache then gives exp(-inf - finite) = 0 and never inf - inf.
    peak = jnp.max(logits, axis=-1, initial=float(np.finfo(accumulator).min))
    p = jnp.exp(logits - peak[..., None])
    weighted = jnp.einsum("gnkrs,gskh->gnkrh", p.astype(v.dtype), v, preferred_element_type=accumulator)
    return _Partial(weighted, jnp.sum(p, axis=-1), peak)
