"""Forward kernel: one block of queries a grid step, the keys of its row resident in VMEM.

The heads of a group are stacked, so that 128 tokens of queries fill 512 rows of a product and the grain of what is
skipped is 128 tokens both ways. A block of queries reads a list of 128-key blocks; any `wide` of them, wherever they
lie, are gathered into one tile. Short trees see few blocks: then there is one tile, and no running maximum.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pit_kernels import versions
from pit_kernels.three_way_attention.pallas_tpu import shared
from pit_kernels.three_way_attention.pallas_tpu.shared import UNSEEN, Kernel
from pit_kernels.three_way_attention.visible_blocks import KEYS


class _Running(NamedTuple):
    """State of an online softmax over [rows]: peak and total as [rows, 128], the total not yet summed over lanes."""

    peak: Array
    total: Array
    acc: Array


class _Refs(NamedTuple):
    block: Any
    count: Any
    q: Any
    k: Any
    v: Any
    until: Any
    window: Any
    out: Any
    lse: Any
    peak: Any
    total: Any
    acc: Any
    bits: Any
    position: Any


def kernel(*refs: Any, kernel: Kernel, head_axis: int) -> None:
    """Return the body of a grid step: a row, a key/value head and a block of queries, the last two axes of the grid."""
    r = _Refs(*refs)
    head, i = pl.program_id(head_axis), pl.program_id(head_axis + 1)

    if not kernel.stretch:

        @pl.when((head == 0) & (i == 0))
        def _() -> None:
            shared.fill_bits(r.until, r.bits, kernel)

    if kernel.windowed:
        for d in range(kernel.tiles.queries // KEYS):
            r.position[d * KEYS : (d + 1) * KEYS, :] = shared.column(r.window.position[0, d])

    number = r.count[0, 0, i]

    @pl.when(number == shared.DEAD)
    def _() -> None:
        r.out[...] = jnp.zeros(r.out.shape, r.out.dtype)
        r.lse[...] = jnp.full(r.lse.shape, -jnp.inf, jnp.float32)

    def straight(count: int) -> None:
        listed = [r.block[0, i, place] for place in range(count)]
        _finish(r, kernel, i, _tile(r, kernel, i, listed, None, masked=True, diagonal=True))

    shared.straight(number, _counts(kernel), straight)

    if kernel.short < kernel.shape.key_blocks - kernel.diagonal:
        pl.when(number > kernel.short)(functools.partial(_long, r, kernel, i))


def _counts(kernel: Kernel) -> list[int]:
    """Return the numbers of listed blocks that get a body.

    The width of their tiles is a power of two: others leave matrix units idle.
    """
    widths = (2**power for power in range(kernel.short.bit_length() + kernel.diagonal.bit_length() + 1))
    counts = {kernel.short, *(w - kernel.diagonal for w in widths if 0 <= w - kernel.diagonal <= kernel.short)}
    # Of a stretch at least one block is listed, or the block of queries is skipped.
    return sorted(counts - {0} if kernel.stretch else counts)


def _long(r: _Refs, kernel: Kernel, i: Array) -> None:
    """Take more keys than one tile in an online softmax: whole blocks, then masked ones, the diagonal last."""
    r.peak[...] = jnp.full(r.peak.shape, UNSEEN, jnp.float32)
    r.total[...] = jnp.zeros(r.total.shape, jnp.float32)
    r.acc[...] = jnp.zeros(r.acc.shape, jnp.float32)

    def trip(first: Array, tiles: int, masked: bool) -> None:
        state = _Running(r.peak[...], r.total[...], r.acc[...])
        for tile in range(tiles):
            at = first + tile * kernel.wide
            listed = [r.block[0, i, at + place] for place in range(kernel.wide)]
            state = _tile(r, kernel, i, listed, state, masked=masked, diagonal=False)
        r.peak[...], r.total[...], r.acc[...] = state

    for first, trips, tiles, masked in shared.loops(r.count, kernel, i):

        def body(t: Array, _: None, first: Array = first, tiles: int = tiles, masked: bool = masked) -> None:
            trip(first + t * (tiles * kernel.wide), tiles, masked)

        lax.fori_loop(0, trips, body, None)
    state = _Running(r.peak[...], r.total[...], r.acc[...])
    if not kernel.stretch:
        state = _tile(r, kernel, i, [], state, masked=True, diagonal=True)
    _finish(r, kernel, i, state)


def _tile(
    r: _Refs, kernel: Kernel, i: Array, listed: list[Array], state: _Running | None, *, masked: bool, diagonal: bool
) -> _Running:
    """Take one step of the softmax over the listed blocks of keys and, with `diagonal`, the blocks on the diagonal."""
    last = kernel.shape.key_blocks - 1
    blocks = listed + [i * kernel.diagonal + d for d in range(kernel.diagonal)] if diagonal else listed
    # The block that nothing sees has no keys; any will do, because its `visible_until` is 0.
    starts = [jnp.minimum(block, last) * KEYS for block in blocks]
    k, v = shared.gather(r.k, starts), shared.gather(r.v, starts)
    add = kernel.shape.group > 2
    if masked and not kernel.stretch:
        v = shared.alive_only(v, r.bits, starts, KEYS)
        k = shared.alive_only(k, r.bits, starts, KEYS) if add else k
    logits = kernel.cap(kernel.dot(shared.stack(r.q[0]), k, shared.NT))
    if masked:
        visible = _visible(r, kernel, i, listed, diagonal)
        if add:
            # One mask serves the heads of a group: converting it to numbers and adding them is cheaper than selecting.
            bias = jnp.concatenate([jnp.where(x, jnp.float32(0), jnp.float32(UNSEEN)) for x in visible], axis=1)
            logits = logits + jnp.concatenate([bias] * kernel.shape.group, axis=0)
        else:
            logits = jnp.where(jnp.concatenate([jnp.concatenate(visible, axis=1)] * kernel.shape.group), logits, UNSEEN)
    peak = jnp.broadcast_to(jnp.max(logits, axis=1, keepdims=True), (kernel.rows, KEYS))
    if state is not None:
        peak = jnp.maximum(state.peak, peak)
    weights = jnp.exp2(logits - shared.across(peak, logits.shape[1]))
    total = functools.reduce(jnp.add, jnp.split(weights, weights.shape[1] // KEYS, axis=1))
    acc = kernel.dot(weights.astype(v.dtype), v, shared.NN)
    if state is not None:
        fade = jnp.exp2(state.peak - peak)
        total = state.total * fade + total
        acc = state.acc * shared.across(fade, acc.shape[1]) + acc
    return _Running(peak, total, acc)


def _visible(r: _Refs, kernel: Kernel, i: Array, listed: list[Array], diagonal: bool) -> list[Array]:
    """Return whether each token of the block of queries sees each key, [queries, 128] for each block of keys."""
    queries, last = kernel.tiles.queries, kernel.shape.key_blocks - 1
    query = shared.first_query(r.count, kernel, i) + lax.broadcasted_iota(jnp.int32, (queries, KEYS), 0)
    lane = lax.broadcasted_iota(jnp.int32, (1, KEYS), 1)

    def inside(visible: Array, block: Array) -> Array:
        """Return what the window leaves of a mask."""
        return visible & (r.position[...] <= r.window.last[0, block]) if kernel.windowed else visible

    visible = []
    for block in listed:
        real = jnp.minimum(block, last)
        seen = query < jnp.where(block <= last, r.until[0, real], 0)
        # A stretch lists its diagonal too.
        visible.append(inside(seen & (query >= block * KEYS + lane) if kernel.stretch else seen, real))
    for d in range(kernel.diagonal if diagonal else 0):
        block = i * kernel.diagonal + d
        visible.append(inside((query < r.until[0, block]) & (query >= block * KEYS + lane), block))
    return visible


def _finish(r: _Refs, kernel: Kernel, i: Array, state: _Running) -> None:
    """Divide, and write the output and the log-sum-exp; of living queries only, where the whole row is at hand."""
    queries, group, width = kernel.tiles.queries, kernel.shape.group, kernel.shape.width
    first = i * queries
    total = jnp.broadcast_to(jnp.sum(state.total, axis=1, keepdims=True), (kernel.rows, KEYS))
    out = (state.acc * shared.across(_inverse(total, r.out.dtype), width)).astype(r.out.dtype)
    if not kernel.stretch:
        out = shared.alive_only(out, r.bits, [first] * group, queries)
    r.out[0] = out.reshape(group, queries, width)
    for head in range(group):
        for d in range(queries // KEYS):
            at = slice(head * queries + d * KEYS, head * queries + (d + 1) * KEYS)
            lse = (_row(state.peak[at]) + jnp.log2(_row(total[at]))) * (1 / shared.LOG2_E)
            if not kernel.stretch:
                token = first + d * KEYS + lax.broadcasted_iota(jnp.int32, (1, KEYS), 1)
                lse = jnp.where(r.until[0, i * kernel.diagonal + d] > token, lse, -jnp.inf)
            r.lse[0, 0, head, 0, :, d * KEYS : (d + 1) * KEYS] = lse


def _inverse(x: Array, dtype: Any) -> Array:
    """Return 1 / x to the precision of `dtype`: for bfloat16 one Newton step after the hardware's estimate."""
    if dtype != jnp.bfloat16:
        return 1 / x
    estimate = versions.reciprocal(x, approx=True)
    refined: Array = estimate * (2 - x * estimate)
    return refined


def _row(columns: Array) -> Array:
    """Turn [128, 128] with equal columns to a row."""
    eye = lax.broadcasted_iota(jnp.int32, (KEYS, KEYS), 0) == lax.broadcasted_iota(jnp.int32, (KEYS, KEYS), 1)
    return jnp.sum(jnp.where(eye, columns, 0.0), axis=0, keepdims=True)


def scratch(kernel: Kernel) -> list[Any]:
    """Return the scratch buffers, in the order of the kernel's last arguments."""
    return [
        pltpu.VMEM((kernel.rows, KEYS), jnp.float32),
        pltpu.VMEM((kernel.rows, KEYS), jnp.float32),
        pltpu.VMEM((kernel.rows, kernel.shape.width), jnp.float32),
        shared.bits_scratch(kernel),
        pltpu.VMEM((kernel.tiles.queries, KEYS), jnp.int32) if kernel.windowed else None,
    ]
