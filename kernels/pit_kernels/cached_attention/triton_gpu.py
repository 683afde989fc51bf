"""A pass of decode-time attention for GPUs, in Triton: every held entry is read once for all queries of its group.

Where groups are few, a cache is cut into pieces, as in Flash-Decoding (Dao et al., 2023), and the pieces merge by their
peaks. No GPU has run it yet; docs/gpu.md says what has been checked without one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels import gpu, triton_call
from pit_kernels import tiles as table
from pit_kernels.cached_attention.passes import Partial, attend, lowest
from pit_kernels.cached_attention.settings import Settings
from pit_kernels.dispatch import Backend, one_by_one

WIDEST = 256
"""Widest head."""


class Tile(NamedTuple):
    """Sizes of the kernel: most queries and entries of a tile, warps of a program, buffers of its pipeline."""

    queries: int
    entries: int
    warps: int
    stages: int


def refuses(settings: Settings, q: Array, *caches: Array) -> str | None:
    """Return why this kernel cannot serve a call, or None."""
    reason = triton_call.absent_reason() or gpu.unsupported_reason() or triton_call.unsupported_dtype("q", q.dtype)
    if reason is not None:
        return reason
    if q.shape[2] > WIDEST:
        return f"q has width {q.shape[2]}, and it takes heads of at most {WIDEST}"
    if 0 in q.shape:
        return f"q has shape {q.shape}, and it takes no empty arrays"
    return None


def tile_of(width: int, itemsize: int) -> Tile:
    """Return the sizes of the kernel on the GPU at hand.

    Args:
      width: width of a head inside.
      itemsize: bytes of a number.
    """
    name = f"pass-h{max(width, 64)}-b{itemsize}"
    entry = table.load("cached_attention", gpu.architecture(), name, file="tiles_gpu.json")
    assert entry is not None, f"tiles_gpu.json lacks {name}"
    return Tile(**entry)


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
    if 0 in q.shape or 0 in k.shape:
        rows = jnp.zeros(q.shape[:3], jnp.float32)
        return Partial(jnp.zeros(q.shape, jnp.float32), jnp.full_like(rows, lowest(q)), rows)
    run = one_by_one(functools.partial(_over, settings))
    weighted, peak, total = run(q, k, v, start, length, *(() if first is None else (first,)))
    return Partial(weighted, peak, total)


def pieces(programs: int, capacity: int, entries: int) -> tuple[int, int]:
    """Return the number of pieces of a cache and the entries of each, whole tiles.

    There are as many as give each multiprocessor two programs, and none is shorter than four tiles.

    Args:
      programs: programs without pieces.
      capacity: entries of a cache.
      entries: entries of a tile.
    """
    wanted = max(1, 2 * gpu.multiprocessors() // programs)
    tiles = -(-capacity // entries)
    each = max(-(-tiles // wanted), min(4, tiles))
    return -(-tiles // each), each * entries


def _over(
    settings: Settings, q: Array, k: Array, v: Array, start: Array, length: Array, *first: Array
) -> tuple[Array, Array, Array]:
    from pit_kernels.cached_attention import kernels_gpu

    groups, kv_heads, rows, width = q.shape
    capacity = k.shape[2]
    inner = max(16, 1 << (width - 1).bit_length())
    tile = tile_of(inner, q.dtype.itemsize)
    queries = min(tile.queries, max(16, 1 << (rows - 1).bit_length()))
    blocks = -(-rows // queries)
    number, piece = pieces(blocks * groups * kv_heads, capacity, tile.entries)
    outputs = [
        jax.ShapeDtypeStruct((number, groups, kv_heads, rows, width), jnp.float32),
        jax.ShapeDtypeStruct((number, groups, kv_heads, rows), jnp.float32),
        jax.ShapeDtypeStruct((number, groups, kv_heads, rows), jnp.float32),
    ]
    weighted, peak, total = triton_call.call(
        kernels_gpu.pass_kernel,
        # Without a window nothing is read in the place of `first`.
        (q, k, v, start % capacity, length, first[0] if first else length),
        outputs,
        (blocks, groups * kv_heads, number),
        warps=tile.warps,
        stages=tile.stages,
        GROUPS=groups,
        KV_HEADS=kv_heads,
        ROWS=rows,
        CAPACITY=capacity,
        WIDTH=width,
        W=inner,
        QUERIES=queries,
        ENTRIES=tile.entries,
        PIECE=piece,
        SCALE=settings.scale,
        CAP=settings.logit_soft_cap or 0.0,
        WINDOW=bool(first),
        PRECISION="ieee",
    )
    if number == 1:
        return weighted[0], peak[0], total[0]
    highest = jnp.max(peak, axis=0)
    share = jnp.exp(peak - highest[None])
    return jnp.sum(weighted * share[..., None], axis=0), highest, jnp.sum(total * share, axis=0)


BACKEND = Backend("triton_gpu", ("cuda",), refuses, functools.partial(attend, over))
