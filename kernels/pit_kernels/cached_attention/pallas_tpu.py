"""A pass of decode-time attention on a TPU, in Pallas: only blocks of keys that some slot holds cross HBM.

A grid step takes one block of keys of a few groups, with all their heads if they fit, in an online softmax. Blocks that
some slot holds are listed first; the others are neither fetched nor computed.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pit_kernels import device
from pit_kernels.cached_attention.passes import Partial, attend, held_entries, lowest
from pit_kernels.cached_attention.settings import Settings
from pit_kernels.dispatch import Backend

LANES, SUBLANES = 128, 8

KEYS = (512, 384, 256, 128)
"""Candidate sizes of a block of keys, largest first; a cache of at most the first size is one block."""

_SHARE = 0.5
"""Fraction of VMEM for the blocks of keys and values, two of each."""

_LOWEST = -1e30
"""Initial peak, finite: exp(-inf - peak) is then 0, while -inf - -inf would be NaN."""


def block_keys(capacity: int) -> int | None:
    """Return the keys of a block of a cache, or None where it cannot be cut.

    Example:
      >>> block_keys(511), block_keys(1024), block_keys(640), block_keys(700)
      (511, 512, 128, None)
    """
    if capacity <= KEYS[0]:
        return capacity
    return next((keys for keys in KEYS if capacity % keys == 0), None)


def refuses(settings: Settings, q: Array, prefix_k: Array, *arrays: Array) -> str | None:
    """Return why the kernel cannot serve a call, or None; arguments as of `passes.attend`."""
    suffix_k = arrays[2]
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"its inputs are {jnp.dtype(q.dtype).name}, and it computes in bfloat16 and float32"
    for name, cache in (("prefix", prefix_k), ("suffix", suffix_k)):
        capacity = cache.shape[2]
        if capacity == 0 or block_keys(capacity) is None:
            return f"{name} caches have {capacity} entries, and it takes 1 to {KEYS[0]}, or a multiple of {KEYS[-1]}"
    return None


class _Pass(NamedTuple):
    """Static settings of a pass.

    groups, heads: of a grid step; keys: of a block; capacity: entries of a cache.
    """

    groups: int
    heads: int
    keys: int
    capacity: int
    scale: float
    logit_soft_cap: float | None


def over(
    q: Float[Array, "G K M H"],
    k: Float[Array, "G K C H"],
    v: Float[Array, "G K C H"],
    start: Int32[Array, " G"],
    length: Int32[Array, " G"],
    settings: Settings,
    first: Int32[Array, "G M"] | None = None,
) -> Partial:
    """Return the normalised attention of each group's queries over its held entries."""
    count, kv_heads, queries, width = q.shape
    capacity = k.shape[2]
    rows = -(-queries // SUBLANES) * SUBLANES
    q = jnp.pad(q, ((0, 0), (0, 0), (0, rows - queries), (0, 0)))
    keys = block_keys(capacity)
    assert keys is not None
    # Two windows of keys and two of values, in whole lanes.
    groups, heads = _step(count, kv_heads, 4 * keys * -(-width // LANES) * LANES * k.dtype.itemsize)
    one = _Pass(groups, heads, keys, capacity, settings.scale, settings.logit_soft_cap)
    start, length = start % capacity, jnp.clip(length, 0, capacity)
    listed, number = _held_blocks(start, length, first, one)
    if first is not None:
        # A row that was added sees nothing. One number per row of queries, a column as the mask's.
        first = jnp.pad(first, ((0, 0), (0, rows - queries)), constant_values=capacity)[:, None, :, None]
    grid = count // groups, kv_heads // heads, capacity // keys

    def block(i: Any, h: Any, j: Any, listed_ref: Any, number_ref: Any, *_: Any) -> Any:
        # Past the last listed block the index stays, and nothing is fetched.
        return i, h, listed_ref[i, jnp.minimum(j, jnp.maximum(number_ref[i] - 1, 0))], 0

    def query_block(i: Any, h: Any, j: Any, *_: Any) -> Any:
        return i, h, 0, 0

    block_rows = groups, heads, rows
    out, lse = pl.pallas_call(
        functools.partial(_kernel, one=one),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=grid,
            in_specs=[
                pl.BlockSpec((*block_rows, width), query_block),
                pl.BlockSpec((groups, heads, keys, width), block),
                pl.BlockSpec((groups, heads, keys, width), block),
                None if first is None else pl.BlockSpec((groups, 1, rows, 1), lambda i, h, j, *_: (i, 0, 0, 0)),
            ],
            out_specs=[
                pl.BlockSpec((*block_rows, width), query_block),
                pl.BlockSpec((1, 1, 1, math.prod(block_rows)), query_block),
            ],
            scratch_shapes=[
                pltpu.VMEM((*block_rows, LANES), jnp.float32),
                pltpu.VMEM((*block_rows, LANES), jnp.float32),
                pltpu.VMEM((*block_rows, width), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((count, kv_heads, rows, width), jnp.float32),
            jax.ShapeDtypeStruct((*grid[:2], 1, math.prod(block_rows)), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=device.vmem_bytes()
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * count * kv_heads * rows * capacity * width,
            transcendentals=count * kv_heads * rows * capacity,
            bytes_accessed=2 * k.size * k.dtype.itemsize + 2 * out_bytes(count, kv_heads, rows, width),
        ),
        name="cached_attention",
        interpret=settings.interpret,
    )(listed, number, start, length, q, k, v, first)
    lse = lse.reshape(*grid[:2], *block_rows).swapaxes(1, 2).reshape(count, kv_heads, rows)
    out, lse = out[:, :, :queries], lse[:, :, :queries]
    return Partial(out, jnp.maximum(lse, lowest(q)), None)


def out_bytes(count: int, kv_heads: int, rows: int, width: int) -> int:
    """Return the bytes of the results of a pass."""
    return count * kv_heads * rows * (width + 1) * 4


def _step(count: int, kv_heads: int, nbytes: int) -> tuple[int, int]:
    """Return the groups and heads of a grid step: as many heads as fit, then groups by powers of two.

    The groups divide `count` and the heads divide `kv_heads`; where a device has two cores, an even number of steps is
    left, of other groups or else of other heads.

    Args:
      count: groups.
      kv_heads: heads.
      nbytes: VMEM of one head of one group.
    """
    room, cores = int(_SHARE * device.vmem_bytes()) // nbytes, device.cores()
    most = min(room, kv_heads if count % cores == 0 else kv_heads // cores)
    heads = max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n <= max(most, 1))
    groups = 1
    while heads == kv_heads and count % (2 * groups * cores) == 0 and 2 * groups * heads <= room:
        groups *= 2
    return groups, heads


def _held_blocks(
    start: Int32[Array, " G"], length: Int32[Array, " G"], first: Int32[Array, "G M"] | None, one: _Pass
) -> tuple[Int32[Array, "n b"], Int32[Array, " n"]]:
    """Return the blocks of each grid row of groups, those with an entry that a query sees first, and their number."""
    held, blocks = held_entries(start, length, one.capacity), one.capacity // one.keys
    if first is not None:
        held = held & (jnp.arange(one.capacity, dtype=jnp.int32)[None] >= jnp.min(first, axis=1)[:, None])
    needed = jnp.any(held.reshape(-1, one.groups, blocks, one.keys), axis=(1, 3))
    listed = jnp.argsort(~needed, axis=1, stable=True).astype(jnp.int32)
    return listed, jnp.sum(needed, axis=1, dtype=jnp.int32)


def _kernel(
    listed_ref: Any,
    number_ref: Any,
    start_ref: Any,
    length_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    first_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    peak_ref: Any,
    total_ref: Any,
    sum_ref: Any,
    *,
    one: _Pass,
) -> None:
    i, j = pl.program_id(0), pl.program_id(2)

    @pl.when(j == 0)
    def _() -> None:
        peak_ref[...] = jnp.full(peak_ref.shape, _LOWEST, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    @pl.when(j < number_ref[i])
    def _() -> None:
        first = listed_ref[i, j] * one.keys
        for g in range(one.groups):
            start, length = start_ref[i * one.groups + g], length_ref[i * one.groups + g]
            held = _held(first + lax.broadcasted_iota(jnp.int32, (1, 1, one.keys), 2), start, length, one)
            if first_ref is not None:
                # With a window the cache starts at entry 0.
                held = held & (first + lax.broadcasted_iota(jnp.int32, (1, 1, one.keys), 2) >= first_ref[g])
            alive = _held(first + lax.broadcasted_iota(jnp.int32, (1, one.keys, 1), 1), start, length, one)
            logits = _dot(q_ref[g], k_ref[g], 2) * one.scale
            if one.logit_soft_cap is not None:
                logits = one.logit_soft_cap * jnp.tanh(logits / one.logit_soft_cap)
            logits = jnp.where(held, logits, -jnp.inf)
            before = peak_ref[g][:, :, :1]
            peak = jnp.maximum(before, jnp.max(logits, axis=2, keepdims=True))
            p, kept = jnp.exp(logits - peak), jnp.exp(before - peak)
            total = total_ref[g][:, :, :1] * kept + jnp.sum(p, axis=2, keepdims=True)
            sum_ref[g] = sum_ref[g] * kept + _dot(p.astype(v_ref.dtype), jnp.where(alive, v_ref[g], 0), 1)
            peak_ref[g] = jnp.broadcast_to(peak, peak_ref.shape[1:])
            total_ref[g] = jnp.broadcast_to(total, total_ref.shape[1:])

    @pl.when(j == pl.num_programs(2) - 1)
    def _() -> None:
        total = total_ref[...][:, :, :, :1]
        out_ref[...] = sum_ref[...] / jnp.where(total > 0, total, 1)
        # One number per row, rows on lanes: a column would take a register of 128 lanes for each eight of them.
        lse = (peak_ref[...] + jnp.log(total_ref[...])).reshape(-1, LANES)
        lse_ref[...] = lse.T[:1].reshape(lse_ref.shape)


def _held(entry: Array, start: Array, length: Array, one: _Pass) -> Array:
    """Return whether entries of a cache, by their place, are among the `length` ones from `start` on."""
    number = entry - start
    return jnp.where(number < 0, number + one.capacity, number) < length


def _dot(a: Array, b: Array, contracted: int) -> Array:
    """Return the products of the last dimension of `a` with one of `b`, head by head, in float32."""
    precision = lax.Precision.HIGHEST if b.dtype == jnp.float32 else lax.Precision.DEFAULT
    numbers = (((2,), (contracted,)), ((0,), (0,)))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


BACKEND = Backend("pallas_tpu", ("tpu",), refuses, functools.partial(attend, over), interpreted=True)
