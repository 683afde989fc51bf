"""A pass of decode-time attention on CPUs in C++, which reads the held part of the caches only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from pit_kernels import native
from pit_kernels.cached_attention.passes import Partial, attend
from pit_kernels.cached_attention.settings import Settings
from pit_kernels.dispatch import Backend


def refuses(settings: Settings, q: Float[Array, "S N H"], *arrays: Array) -> str | None:
    """Return why the backend cannot serve a call, or None."""
    return native.refusal(q)


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
    sums, rows = jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    call = jax.ffi.ffi_call("pit_cached_attention", (sums, rows, rows), vmap_method="sequential")
    first = jnp.zeros((0, 0), jnp.int32) if first is None else first
    scale, soft_cap = np.float32(settings.scale), np.float32(settings.logit_soft_cap or 0)
    weighted, peak, total = call(q, k, v, start, length, first, scale=scale, soft_cap=soft_cap)
    return Partial(weighted, peak, total)


BACKEND = Backend("cpu", ("cpu",), refuses, functools.partial(attend, over))
