"""Three-way attention on CPUs in C++: fused, blocks of keys that no query sees left out, sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from pit_kernels import native
from pit_kernels.dispatch import Backend
from pit_kernels.three_way_attention.settings import Settings


def refuses(settings: Settings, q: Float[Array, "B T N H"], *arrays: Array) -> str | None:
    """Return why the backend cannot serve a call, or None."""
    return native.refusal(q)


def forward(
    settings: Settings,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Return the output and log-sum-exp (natural log, -inf in padding)."""
    batch, tokens, heads, _ = q.shape
    results = jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32)
    call = jax.ffi.ffi_call("pit_attention_forward", results, vmap_method="sequential")
    out, lse = call(q, k, v, visible_until, visible_until if position is None else position, **_attributes(settings))
    return out, lse


def backward(
    settings: Settings,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    d_out: Float[Array, "B T N H"],
    position: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Return the gradients of q, k and v; `lse` and `delta` are 0 in padding."""
    results = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v))
    call = jax.ffi.ffi_call("pit_attention_backward", results, vmap_method="sequential")
    arrays = (q, k, v, visible_until, visible_until if position is None else position, lse, delta, d_out)
    d_q, d_k, d_v = call(*arrays, **_attributes(settings))
    return d_q, d_k, d_v


def _attributes(settings: Settings) -> dict[str, np.generic]:
    """Return the settings as the C++ code takes them: 0 where there is no cap or window."""
    return {
        "scale": np.float32(settings.scale),
        "soft_cap": np.float32(settings.logit_soft_cap or 0),
        "window": np.int64(min(settings.window or 0, np.iinfo(np.int32).max)),
    }


BACKEND = Backend("cpu", ("cpu",), refuses, forward, backward)
