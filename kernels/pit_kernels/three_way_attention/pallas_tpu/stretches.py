"""Rows whose keys do not fit into VMEM: stretches of keys one after another, merged by their log-sum-exp.

Each stretch is one call in which every block of queries sees only the keys of that stretch; the program
loops over them, so only one stretch's results are held besides the sum. Padding is cleared before and after the kernel.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pit_kernels.dispatch import Interpret
from pit_kernels.three_way_attention.pallas_tpu import calls
from pit_kernels.three_way_attention.pallas_tpu.shared import Kernel, lists
from pit_kernels.three_way_attention.visible_blocks import Window, alive


def forward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    visible_until: Int32[Array, "B T"],
    window: Window | None,
    kernel: Kernel,
    interpret: Interpret,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K R n 1 Q"]]:
    """Return the output and log-sum-exp (natural log, -inf in padding)."""
    living = alive(visible_until)
    q, k, v = _cleared(living, q, k, v)

    def step(carry: tuple[Array, Array], stretch: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        out, lse = carry
        first, k, v, until, *last = stretch
        here = None if window is None else Window(window.position, *last)
        visits = lists(visible_until, window, kernel, first)
        part, part_lse = calls.forward(q, k, v, until, here, visits, kernel, interpret)
        both = jnp.logaddexp(lse, part_lse)
        finite = jnp.where(jnp.isneginf(both), 0, both)
        old, new = (jnp.exp(x - finite).reshape(*q.shape[:-1], 1) for x in (lse, part_lse))
        return (out * old + part * new, both), None

    start = jnp.zeros(q.shape, jnp.float32), jnp.full(calls.statistics_shape(kernel), -jnp.inf, jnp.float32)
    (out, lse), _ = lax.scan(step, start, _stretches(kernel, k, v, visible_until, window))
    (out,) = _cleared(living, out)
    # A dead query has met keys like a living one.
    lse = jnp.where(living.reshape(q.shape[0], 1, 1, *lse.shape[3:]), lse, -jnp.inf)
    return out.astype(q.dtype), lse


def backward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    visible_until: Int32[Array, "B T"],
    window: Window | None,
    lse: Float[Array, "B K R n 1 Q"],
    delta: Float[Array, "B K R n 1 Q"],
    d_out: Float[Array, "B N T H"],
    kernel: Kernel,
    interpret: Interpret,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K T H"], Float[Array, "B K T H"]]:
    """Return the gradients of q, k and v; `lse` and `delta` are 0 in padding."""
    q, k, v, d_out = _cleared(alive(visible_until), q, k, v, d_out)

    def step(d_q: Array, stretch: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        first, k, v, until, *last = stretch
        here = None if window is None else Window(window.position, *last)
        visits = lists(visible_until, window, kernel, first)
        part, d_k, d_v = calls.backward(q, k, v, until, here, lse, delta, d_out, visits, kernel, interpret)
        return d_q + part, (d_k, d_v)

    d_q, d_keys = lax.scan(step, jnp.zeros(q.shape, jnp.float32), _stretches(kernel, k, v, visible_until, window))
    d_k, d_v = (jnp.moveaxis(x, 0, 2).reshape(k.shape) for x in d_keys)
    return d_q.astype(q.dtype), d_k, d_v


def _stretches(kernel: Kernel, k: Array, v: Array, visible_until: Array, window: Window | None) -> tuple[Array, ...]:
    """Return the first key, keys, values, `visible_until` and with a window last positions of each stretch.

    `visible_until` is counted from the stretch's first key.
    """
    shape = kernel.shape
    number = shape.tokens // shape.keys
    first = jnp.arange(number, dtype=jnp.int32) * shape.keys
    k, v = (jnp.moveaxis(x.reshape(shape.batch, shape.kv_heads, number, shape.keys, shape.width), 2, 0) for x in (k, v))
    until, *last = (
        x.reshape(shape.batch, number, shape.keys).swapaxes(0, 1)
        for x in (visible_until, *(() if window is None else (window.last,)))
    )
    # No query of the stretch sees a segment that ends before it: 0, so that no int32 underflows.
    return first, k, v, jnp.maximum(until, first[:, None, None]) - first[:, None, None], *last


def _cleared(living: Array, *arrays: Array) -> tuple[Any, ...]:
    """Return the arrays [B, N, T, H] with zeros in padding."""
    return tuple(jnp.where(living[:, None, :, None], x, 0) for x in arrays)
