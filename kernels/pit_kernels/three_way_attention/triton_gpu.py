"""Three-way attention for GPUs, in Triton: tiles without a visible pair cost nothing.

FlashAttention-2 (Dao, arXiv 2307.08691) over lists of visible tiles that are made on the device: a forward kernel, one
for the gradient of queries and one for those of keys and values, each written by one program and so the same in every
run. No GPU has run them yet; docs/gpu.md says what has been checked without one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels import gpu, triton_call
from pit_kernels import tiles as table
from pit_kernels.dispatch import Backend, one_by_one
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.tile_lists import TileLists, tile_lists

WIDEST = 256
"""Widest head."""


class Tile(NamedTuple):
    """Sizes of one kernel: tokens of a tile of queries and of keys, warps of a program, buffers of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


def refuses(
    settings: Settings, q: Array, k: Array, v: Array, visible_until: Array, position: Array | None = None
) -> str | None:
    """Return why these kernels cannot serve a call, or None."""
    reason = triton_call.absent_reason() or gpu.unsupported_reason() or triton_call.unsupported_dtype("q", q.dtype)
    if reason is not None:
        return reason
    _, tokens, heads, width = q.shape
    if width > WIDEST:
        return f"q has width {width}, and it takes heads of at most {WIDEST}"
    if tokens * heads * width >= 2**31:
        return f"a row of q holds {tokens * heads * width} numbers, and it takes fewer than 2**31"
    if 0 in q.shape:
        return f"q has shape {q.shape}, and it takes no empty arrays"
    return None


def tile_of(kernel: str, width: int, itemsize: int) -> Tile:
    """Return the sizes of a kernel on the GPU at hand.

    Args:
      kernel: "forward", "query_gradient" or "key_gradient".
      width: width of a head inside.
      itemsize: bytes of a number.
    """
    name = f"{kernel}-h{max(width, 64)}-b{itemsize}"
    entry = table.load("three_way_attention", gpu.architecture(), name, file="tiles_gpu.json")
    assert entry is not None, f"tiles_gpu.json lacks {name}"
    return Tile(**entry)


def forward(
    settings: Settings,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Return the output and log-sum-exp (natural log, -inf in padding)."""
    run = one_by_one(functools.partial(_forward, settings))
    out, lse = run(q, k, v, visible_until, *(() if position is None else (position,)))
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
    run = one_by_one(functools.partial(_backward, settings))
    optional = () if position is None else (position,)
    d_q, d_k, d_v = run(q, k, v, visible_until, lse, delta, d_out, *optional)
    return d_q, d_k, d_v


BACKEND = Backend("triton_gpu", ("cuda",), refuses, forward, backward)


class _Mask(NamedTuple):
    """The mask of a call, padded to whole tiles, with the lists of its visible ones."""

    visible_until: Int32[Array, "B P"]
    position: Int32[Array, "B P"]
    of_queries: TileLists
    of_keys: TileLists


def _forward(
    settings: Settings, q: Array, k: Array, v: Array, visible_until: Array, *position: Array
) -> tuple[Array, Array]:
    from pit_kernels.three_way_attention import kernels_gpu

    tile = tile_of("forward", _width(q), q.dtype.itemsize)
    mask = _mask(settings, tile, visible_until, *position)
    batch, tokens, heads, _ = q.shape
    outputs = [_like(q), jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32)]
    arrays = (q, k, v, mask.visible_until, mask.position, *mask.of_queries)
    grid = (mask.visible_until.shape[1] // tile.queries, batch * heads)
    out, lse = _call(settings, kernels_gpu.forward_kernel, arrays, outputs, grid, tile)
    return out, lse


def _backward(
    settings: Settings,
    q: Array,
    k: Array,
    v: Array,
    visible_until: Array,
    lse: Array,
    delta: Array,
    d_out: Array,
    *position: Array,
) -> tuple[Array, Array, Array]:
    from pit_kernels.three_way_attention import gradients_gpu

    batch, kv_heads = k.shape[0], k.shape[2]
    heads, floats = q.shape[2], (q, k, v, d_out, lse, delta)
    tile = tile_of("query_gradient", _width(q), q.dtype.itemsize)
    mask = _mask(settings, tile, visible_until, *position)
    arrays = (*floats, mask.visible_until, mask.position, *mask.of_queries)
    grid = (mask.visible_until.shape[1] // tile.queries, batch * heads)
    (d_q,) = _call(settings, gradients_gpu.query_gradient_kernel, arrays, [_like(q)], grid, tile)

    tile = tile_of("key_gradient", _width(q), q.dtype.itemsize)
    mask = _mask(settings, tile, visible_until, *position)
    arrays = (*floats, mask.visible_until, mask.position, *mask.of_keys)
    grid = (mask.visible_until.shape[1] // tile.keys, batch * kv_heads)
    d_k, d_v = _call(settings, gradients_gpu.key_gradient_kernel, arrays, [_like(k), _like(v)], grid, tile)
    return d_q, d_k, d_v


def _call(
    settings: Settings,
    kernel: Any,
    arrays: tuple[Array, ...],
    outputs: list[jax.ShapeDtypeStruct],
    grid: tuple[int, int],
    tile: Tile,
) -> tuple[Array, ...]:
    """Return the outputs of a kernel; the first arrays are q and k, the fourth from the end is `position`."""
    q, k, position = arrays[0], arrays[1], arrays[-4]
    return triton_call.call(
        kernel,
        arrays,
        outputs,
        grid,
        warps=tile.warps,
        stages=tile.stages,
        TOKENS=q.shape[1],
        PADDED=position.shape[1],
        HEADS=q.shape[2],
        KV_HEADS=k.shape[2],
        WIDTH=q.shape[3],
        W=_width(q),
        QUERIES=tile.queries,
        KEYS=tile.keys,
        SCALE=settings.scale,
        CAP=settings.logit_soft_cap or 0.0,
        WINDOW=settings.window or 0,
        # TF32 keeps ten bits of a float32; the contract is float32.
        PRECISION="ieee",
    )


def _mask(settings: Settings, tile: Tile, visible_until: Array, *position: Array) -> _Mask:
    """Pad the mask to whole tiles with 0, which is padding by the formula, and list the visible tiles."""
    largest = max(tile.queries, tile.keys)
    ends = ((0, 0), (0, -visible_until.shape[1] % largest))
    until = jnp.pad(visible_until, ends)
    # Without a window nothing is read there.
    place = jnp.pad(position[0], ends) if position else until
    window = settings.window if position else None
    return _Mask(until, place, *tile_lists(until, place, window, tile.queries, tile.keys))


def _width(q: Array) -> int:
    """Return the width of a head inside: a power of two that the matrix units take."""
    return max(16, 1 << (q.shape[3] - 1).bit_length())


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
