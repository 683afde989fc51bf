"""Three-way attention for TPUs, in Pallas: only blocks that can see something cost anything.

A row's keys and values lie in VMEM while its blocks of queries pass, so q, k, v and the output cross HBM once, forward
and backward, whatever the mask; longer rows are cut into stretches of keys. The online softmax is FlashAttention's
(Dao, arXiv 2307.08691).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels import device
from pit_kernels.three_way_attention.pallas_tpu import calls, stretches, vmem
from pit_kernels.three_way_attention.pallas_tpu.shared import Kernel, Shape, lists, make
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.tiles import Tiles

padded_tokens = vmem.padded_tokens


def unsupported_reason(tokens: int, group: int, width: int, dtype: Any, tiles: Tiles) -> str | None:
    """Why these kernels cannot serve a call, or None.

    Args:
      tokens: length of a row.
      group: query heads per key/value head.
      width: width of a head.
      dtype: of q, k and v.
      tiles: block sizes.
    """
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"its inputs are {jnp.dtype(dtype).name}, and it computes in bfloat16 and float32"
    if vmem.stretches(tokens, _rows(group, width, dtype, tiles)) is None:
        return (
            f"{group} heads of {width} a key and rows of {tokens} tokens: {tiles.queries} keys and their lists take "
            f"more than a {device.kind()} lends, {device.vmem_bytes() // 2**20} MiB of VMEM and 1 MiB of SMEM"
        )
    return None


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    settings: Settings,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Output and log-sum-exp (natural log, -inf in padding)."""
    kernel = _kernel(q, k, settings)
    q_in, k_in, v_in, until = _heads(kernel, q), _heads(kernel, k), _heads(kernel, v), _tokens(kernel, visible_until)
    if kernel.stretch:
        out, lse = stretches.forward(q_in, k_in, v_in, until, kernel, settings.interpret)
    else:
        out, lse = calls.forward(q_in, k_in, v_in, until, lists(until, kernel), kernel, settings.interpret)
    return _without(out, q.shape), lse.reshape(q.shape[0], q.shape[2], -1)[:, :, : q.shape[1]]


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    d_out: Float[Array, "B T N H"],
    settings: Settings,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Gradients of q, k and v; `lse` and `delta` are 0 in padding."""
    kernel = _kernel(q, k, settings)
    until = _tokens(kernel, visible_until)
    q_in, k_in, v_in, d_out = _heads(kernel, q), _heads(kernel, k), _heads(kernel, v), _heads(kernel, d_out)
    lse, delta = _statistics(kernel, lse), _statistics(kernel, delta)
    if kernel.stretch:
        found = stretches.backward(q_in, k_in, v_in, until, lse, delta, d_out, kernel, settings.interpret)
    else:
        listed = lists(until, kernel)
        found = calls.backward(q_in, k_in, v_in, until, lse, delta, d_out, listed, kernel, settings.interpret)
    d_q, d_k, d_v = found
    return _without(d_q, q.shape), _without(d_k, k.shape), _without(d_v, v.shape)


def _kernel(q: Array, k: Array, settings: Settings) -> Kernel:
    """The call inside: whole blocks of tokens, stretches of keys that fit, a width that registers hold."""
    (batch, tokens, heads, width), kv_heads = q.shape, k.shape[2]
    rows = _rows(heads // kv_heads, width, q.dtype, settings.tiles)
    cut = vmem.stretches(tokens, rows)
    if cut is None:
        raise ValueError(unsupported_reason(tokens, rows.group, width, q.dtype, settings.tiles))
    number, keys = cut
    return make(Shape(batch, kv_heads, rows.group, number * keys, keys, rows.width, q.dtype), settings)


def _rows(group: int, width: int, dtype: Any, tiles: Tiles) -> vmem.Rows:
    return vmem.Rows(group, vmem.padded_width(width), jnp.dtype(dtype).itemsize, tiles)


def _tokens(kernel: Kernel, visible_until: Array) -> Array:
    """A token that is added has visible_until 0: padding, by the formula."""
    return jnp.pad(visible_until, ((0, 0), (0, kernel.shape.tokens - visible_until.shape[1])))


def _heads(kernel: Kernel, x: Array) -> Array:
    """[B, T, N, H] to [B, N, T, H], filled up with zeros, which change no product."""
    ends = kernel.shape.tokens - x.shape[1], kernel.shape.width - x.shape[3]
    if any(ends):
        x = jnp.pad(x, ((0, 0), (0, ends[0]), (0, 0), (0, ends[1])))
    return x.swapaxes(1, 2)


def _statistics(kernel: Kernel, x: Array) -> Array:
    """[B, N, T] to blocks of queries."""
    ends = kernel.shape.tokens - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, ends))).reshape(calls.statistics_shape(kernel))


def _without(x: Array, shape: tuple[int, ...]) -> Array:
    """[B, N, T, H] to the caller's [B, T, N, H]."""
    return x.swapaxes(1, 2)[:, : shape[1], :, : shape[3]]
