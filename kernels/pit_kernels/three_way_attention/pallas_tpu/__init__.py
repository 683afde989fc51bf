"""Three-way attention for TPUs, in Pallas: blocks without a visible pair cost nothing.

A row's keys and values lie in VMEM while its blocks of queries pass, so q, k, v and the output cross HBM once, forward
and backward, whatever the mask; longer rows are cut into stretches of keys. The online softmax is FlashAttention's
(Dao, arXiv 2307.08691).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels import device
from pit_kernels.dispatch import Backend
from pit_kernels.three_way_attention.pallas_tpu import calls, stretches, vmem
from pit_kernels.three_way_attention.pallas_tpu.shared import Kernel, Shape, lists, make
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.tiles import default_tiles
from pit_kernels.three_way_attention.visible_blocks import Window, window_of


def refuses(
    settings: Settings, q: Array, k: Array, v: Array, visible_until: Array, position: Array | None = None
) -> str | None:
    """Return why these kernels cannot serve a call, or None."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"its inputs are {jnp.dtype(q.dtype).name}, and it computes in bfloat16 and float32"
    rows, tokens, width = _rows(settings, q, k), q.shape[1], q.shape[3]
    if vmem.stretches(tokens, rows) is None:
        return (
            f"{rows.group} heads of {width} on one key and rows of {tokens} tokens: {rows.tiles.queries} keys and "
            f"their lists take more than a {device.kind()} lends, {device.vmem_bytes() // 2**20} MiB of VMEM and 1 MiB "
            "of SMEM"
        )
    return None


def forward(
    settings: Settings,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Return the output and log-sum-exp (natural log, -inf in padding)."""
    kernel = _kernel(settings, q, k)
    until, window = _mask(kernel, visible_until, position)
    q_in, k_in, v_in = _heads(kernel, q), _heads(kernel, k), _heads(kernel, v)
    if kernel.stretch:
        out, lse = stretches.forward(q_in, k_in, v_in, until, window, kernel, settings.interpret)
    else:
        listed = lists(until, window, kernel)
        out, lse = calls.forward(q_in, k_in, v_in, until, window, listed, kernel, settings.interpret)
    return _without(out, q.shape), lse.reshape(q.shape[0], q.shape[2], -1)[:, :, : q.shape[1]]


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
    kernel = _kernel(settings, q, k)
    until, window = _mask(kernel, visible_until, position)
    q_in, k_in, v_in, d_out = _heads(kernel, q), _heads(kernel, k), _heads(kernel, v), _heads(kernel, d_out)
    lse, delta = _statistics(kernel, lse), _statistics(kernel, delta)
    arrays = q_in, k_in, v_in, until, window, lse, delta, d_out
    if kernel.stretch:
        gradients = stretches.backward(*arrays, kernel, settings.interpret)
    else:
        gradients = calls.backward(*arrays, lists(until, window, kernel), kernel, settings.interpret)
    d_q, d_k, d_v = gradients
    return _without(d_q, q.shape), _without(d_k, k.shape), _without(d_v, v.shape)


BACKEND = Backend("pallas_tpu", ("tpu",), refuses, forward, backward, interpreted=True)


def _kernel(settings: Settings, q: Array, k: Array) -> Kernel:
    """Return the call as the kernels see it: whole blocks of tokens, stretches of keys that fit, a padded width."""
    rows = _rows(settings, q, k)
    cut = vmem.stretches(q.shape[1], rows)
    assert cut is not None, "refuses has the reason"
    number, keys = cut
    shape = Shape(q.shape[0], k.shape[2], rows.group, number * keys, keys, rows.width, q.dtype)
    return make(shape, rows.tiles, settings)


def _rows(settings: Settings, q: Array, k: Array) -> vmem.Rows:
    """Return the sizes that VMEM depends on, with the caller's tiles or those of the committed table."""
    tokens, width, itemsize = q.shape[1], q.shape[3], jnp.dtype(q.dtype).itemsize
    group = q.shape[2] // k.shape[2]
    tiles = settings.tiles or default_tiles(vmem.padded_tokens(tokens), group, width, itemsize)
    return vmem.Rows(group, vmem.padded_width(width), itemsize, tiles, settings.window is not None)


def _mask(kernel: Kernel, visible_until: Array, position: Array | None) -> tuple[Array, Window | None]:
    """Return the mask and the window, padded with 0: an added token is padding, by the formula."""
    ends = ((0, 0), (0, kernel.shape.tokens - visible_until.shape[1]))
    until = jnp.pad(visible_until, ends)
    if kernel.window is None or position is None:
        return until, None
    return until, window_of(until, jnp.pad(position, ends), kernel.window)


def _heads(kernel: Kernel, x: Array) -> Array:
    """Turn [B, T, N, H] to [B, N, T, H], padded with zeros, which change no product."""
    ends = kernel.shape.tokens - x.shape[1], kernel.shape.width - x.shape[3]
    if any(ends):
        x = jnp.pad(x, ((0, 0), (0, ends[0]), (0, 0), (0, ends[1])))
    return x.swapaxes(1, 2)


def _statistics(kernel: Kernel, x: Array) -> Array:
    """Turn [B, N, T] to blocks of queries."""
    ends = kernel.shape.tokens - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, ends))).reshape(calls.statistics_shape(kernel))


def _without(x: Array, shape: tuple[int, ...]) -> Array:
    """Turn [B, N, T, H] to the caller's [B, T, N, H]."""
    return x.swapaxes(1, 2)[:, : shape[1], :, : shape[3]]
