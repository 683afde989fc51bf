"""A pass of decode-time attention in plain XLA."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pit_kernels import numerics
from pit_kernels.cached_attention.passes import Partial, attend, held_entries, lowest
from pit_kernels.cached_attention.settings import Settings
from pit_kernels.dispatch import OTHERS, Backend, serves_all


def over(
    q: Float[Array, "G K M H"],
    k: Float[Array, "G K C H"],
    v: Float[Array, "G K C H"],
    start: Int32[Array, " G"],
    length: Int32[Array, " G"],
    settings: Settings,
    first: Int32[Array, "G M"] | None = None,
) -> Partial:
    """Return the attention of M queries per head over the held keys of the group's cache."""
    accumulator, held_GC = numerics.accumulator(q), held_entries(start, length, k.shape[2])
    held = held_GC[:, None, None, :]
    if first is not None:
        entry = jnp.arange(k.shape[2], dtype=jnp.int32)
        held = held & (entry[None, None, :] >= first[:, :, None])[:, None]
    logits = jnp.einsum("gkmh,gkch->gkmc", q, k, preferred_element_type=accumulator) * settings.scale
    if settings.logit_soft_cap is not None:
        logits = settings.logit_soft_cap * jnp.tanh(logits / settings.logit_soft_cap)
    logits = jnp.where(held, logits, -jnp.inf)
    peak = jnp.max(logits, axis=-1, initial=lowest(q))
    p = jnp.exp(logits - peak[..., None])

    def sums(v: Array) -> Array:
        return jnp.einsum("gkmc,gkch->gkmh", p.astype(v.dtype), v, preferred_element_type=accumulator)

    # 0 times NaN is NaN. Clearing what nobody holds copies the cache, so that it is done only where it matters.
    weighted = sums(v)
    clean = jnp.all(jnp.isfinite(weighted))
    weighted = lax.cond(clean, lambda: weighted, lambda: sums(jnp.where(held_GC[:, None, :, None], v, 0)))
    return Partial(weighted, peak, jnp.sum(p, axis=-1))


BACKEND = Backend("xla", (OTHERS,), serves_all, functools.partial(attend, over))
