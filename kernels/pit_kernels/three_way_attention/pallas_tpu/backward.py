"""Backward kernel: the five products of a tile in one pass, logits transposed.

With keys down and query rows across, the values per query (log-sum-exp, delta) are a row that broadcasts at no cost,
the weights need no transpose for the gradients of keys and values, and that of the queries is built transposed, from
keys that were transposed once per row. The gradients of a row's keys and values are kept in VMEM, in float32, until its
last block of queries.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pit_kernels.three_way_attention.pallas_tpu import shared
from pit_kernels.three_way_attention.pallas_tpu.shared import UNSEEN, Kernel
from pit_kernels.three_way_attention.visible_blocks import KEYS

_NEVER = int(np.iinfo(np.int32).max)
"""Index of a dead query: no key is visible until past it."""


class _Refs(NamedTuple):
    block: Any
    count: Any
    q: Any
    k: Any
    v: Any
    d_out: Any
    until: Any
    window: Any
    lse: Any
    delta: Any
    d_q: Any
    d_k: Any
    d_v: Any
    turned_k: Any
    column: Any
    last: Any
    bits: Any
    turned_d_q: Any
    sum_k: Any
    sum_v: Any


def kernel(*refs: Any, kernel: Kernel, head_axis: int) -> None:
    """Return the body of a grid step: a row, a key/value head and a block of queries, the last two axes of the grid."""
    r = _Refs(*refs)
    head, i = pl.program_id(head_axis), pl.program_id(head_axis + 1)
    key_blocks = kernel.shape.key_blocks

    @pl.when((head == 0) & (i == 0))
    def _() -> None:
        shared.fill_columns(r.until, r.column, key_blocks)
        if kernel.windowed:
            shared.fill_columns(r.window.last, r.last, key_blocks)
        if not kernel.stretch:
            shared.fill_bits(r.until, r.bits, kernel)

    @pl.when(i == 0)
    def _() -> None:
        _begin_row(r, kernel)

    number = r.count[0, 0, i]

    @pl.when(number == shared.DEAD)
    def _() -> None:
        r.d_q[...] = jnp.zeros(r.d_q.shape, r.d_q.dtype)

    def straight(count: int) -> None:
        listed = [r.block[0, i, place] for place in range(count)]
        _write_d_q(r, kernel, _tile(r, kernel, i, listed, masked=True, diagonal=True))

    shared.straight(number, range(1 if kernel.stretch else 0, kernel.short + 1), straight)

    if kernel.short < kernel.shape.key_blocks - kernel.diagonal:
        pl.when(number > kernel.short)(functools.partial(_long, r, kernel, i))

    @pl.when(i == kernel.shape.tokens // kernel.tiles.queries - 1)
    def _() -> None:
        _end_row(r, kernel)


def _begin_row(r: _Refs, kernel: Kernel) -> None:
    """Zero the sums, and transpose the row's keys; those of padding become 0."""
    r.sum_k[...] = jnp.zeros(r.sum_k.shape, jnp.float32)
    r.sum_v[...] = jnp.zeros(r.sum_v.shape, jnp.float32)

    def block(j: Array) -> None:
        start = pl.multiple_of(j * KEYS, KEYS)
        turned = r.k[0, 0, pl.ds(start, KEYS), :].T
        alive = r.until[0, j] > start + lax.broadcasted_iota(jnp.int32, (1, KEYS), 1)
        r.turned_k[j] = jnp.where(alive, turned, jnp.zeros_like(turned))

    shared.each_block(kernel.shape.key_blocks, block)


def _end_row(r: _Refs, kernel: Kernel) -> None:
    """Write the row's gradients of keys and values."""

    def block(j: Array) -> None:
        at = pl.ds(pl.multiple_of(j * KEYS, KEYS), KEYS)
        r.d_k[0, 0, at, :] = (r.sum_k[at, :] * kernel.scale).astype(r.d_k.dtype)
        r.d_v[0, 0, at, :] = r.sum_v[at, :].astype(r.d_v.dtype)

    shared.each_block(kernel.shape.key_blocks, block)


def _long(r: _Refs, kernel: Kernel, i: Array) -> None:
    """Visit whole blocks first, then masked ones, and the diagonal last."""
    r.turned_d_q[...] = jnp.zeros(r.turned_d_q.shape, jnp.float32)

    for first, trips, tiles, masked in shared.loops(r.count, kernel, i):

        def trip(t: Array, _: None, first: Array = first, tiles: int = tiles, masked: bool = masked) -> None:
            total = r.turned_d_q[...]
            for tile in range(tiles):
                at = first + (t * tiles + tile) * kernel.wide
                listed = [r.block[0, i, at + place] for place in range(kernel.wide)]
                total = total + _tile(r, kernel, i, listed, masked=masked, diagonal=False)
            r.turned_d_q[...] = total

        lax.fori_loop(0, trips, trip, None)
    turned = r.turned_d_q[...]
    if not kernel.stretch:
        turned = turned + _tile(r, kernel, i, [], masked=True, diagonal=True)
    _write_d_q(r, kernel, turned)


def _tile(r: _Refs, kernel: Kernel, i: Array, listed: list[Array], *, masked: bool, diagonal: bool) -> Array:
    """Add a tile's gradients of keys and values to the sums; return that of the queries, [H, rows], unscaled."""
    last = kernel.shape.key_blocks - 1
    blocks = listed + [i * kernel.diagonal + d for d in range(kernel.diagonal)] if diagonal else listed
    real = [jnp.minimum(block, last) for block in blocks]
    starts = [block * KEYS for block in real]
    k, v = shared.gather(r.k, starts), shared.gather(r.v, starts)
    q, d_out = shared.stack(r.q[0]), shared.stack(r.d_out[0])
    logits = kernel.cap(kernel.dot(k, q, shared.NT))
    d_weights = kernel.dot(v, d_out, shared.NT)
    slope = None
    if kernel.logit_soft_cap is not None:
        slope = 1 - jnp.square(logits * (1 / (kernel.logit_soft_cap * shared.LOG2_E)))
    visible = None
    if masked:
        visible = jnp.concatenate([_visible(r, kernel, i, blocks, diagonal)] * kernel.shape.group, axis=1)
        logits = jnp.where(visible, logits, UNSEEN)
        if not kernel.stretch:
            starts_of_heads = [i * kernel.tiles.queries] * kernel.shape.group
            q, d_out = (shared.alive_only(x, r.bits, starts_of_heads, kernel.tiles.queries) for x in (q, d_out))
    weights = jnp.exp2(logits - _row(r.lse) * shared.LOG2_E)
    d_logits = weights * (d_weights - _row(r.delta))
    if slope is not None:
        d_logits = d_logits * slope
    if visible is not None:
        # By selection: a weight of 0 times a NaN in padding would be NaN.
        d_logits = jnp.where(visible, d_logits, 0.0)
    d_logits = d_logits.astype(q.dtype)
    d_v = kernel.dot(weights.astype(q.dtype), d_out, shared.NN)
    d_k = kernel.dot(d_logits, q, shared.NN)
    # In order, because the block that nothing sees adds its zeros to a block that may be here too.
    for place, start in enumerate(starts):
        at, part = pl.ds(pl.multiple_of(start, KEYS), KEYS), slice(place * KEYS, (place + 1) * KEYS)
        r.sum_v[at, :] += d_v[part]
        r.sum_k[at, :] += d_k[part]
    turned_k = jnp.concatenate([r.turned_k[block] for block in real], axis=1)
    return kernel.dot(turned_k, d_logits, shared.NN)


def _visible(r: _Refs, kernel: Kernel, i: Array, blocks: list[Array], diagonal: bool) -> Array:
    """Return whether each token of the block of queries sees each key, [keys, queries]: one mask for all heads."""
    query = _queries(r, kernel, i)
    position = _positions(r, kernel) if kernel.windowed else None
    parts = []
    for place, block in enumerate(blocks):
        at = pl.ds(pl.multiple_of(block * KEYS, KEYS), KEYS)
        visible = shared.across(r.column[at, :], query.shape[1]) > query
        if position is not None:
            visible = visible & (shared.across(r.last[at, :], query.shape[1]) >= position)
        if kernel.stretch or (diagonal and place >= len(blocks) - kernel.diagonal):
            visible = visible & (block * KEYS + lax.broadcasted_iota(jnp.int32, visible.shape, 0) <= query)
        parts.append(visible)
    return jnp.concatenate(parts, axis=0)


def _queries(r: _Refs, kernel: Kernel, i: Array) -> Array:
    """Return the index of each token of the block of queries, [1, queries]; past all keys for a dead token."""
    if kernel.stretch:
        # A dead query multiplies all that it sees by its zeros.
        lane = lax.broadcasted_iota(jnp.int32, (1, kernel.tiles.queries), 1)
        return shared.first_query(r.count, kernel, i) + lane
    parts = []
    for d in range(kernel.diagonal):
        index = (i * kernel.diagonal + d) * KEYS + lax.broadcasted_iota(jnp.int32, (1, KEYS), 1)
        parts.append(jnp.where(r.until[0, i * kernel.diagonal + d] > index, index, _NEVER))
    return jnp.concatenate(parts, axis=1)


def _positions(r: _Refs, kernel: Kernel) -> Array:
    """Return the position of each token of the block of queries, [1, queries]."""
    return jnp.concatenate([r.window.position[0, d] for d in range(kernel.tiles.queries // KEYS)], axis=1)


def _row(ref: Any) -> Array:
    """Turn [1, 1, R, 1, 1, Q] to [1, R Q]."""
    return jnp.concatenate([ref[0, 0, head, 0] for head in range(ref.shape[2])], axis=1)


def _write_d_q(r: _Refs, kernel: Kernel, turned: Array) -> None:
    d_q = (turned.T * kernel.scale).astype(r.d_q.dtype)
    r.d_q[0] = d_q.reshape(kernel.shape.group, kernel.tiles.queries, kernel.shape.width)


def scratch(kernel: Kernel) -> list[Any]:
    """Return the scratch buffers, in the order of the kernel's last arguments."""
    keys, width = kernel.shape.keys, kernel.shape.width
    columns = pltpu.VMEM((keys + KEYS, KEYS), jnp.int32)
    return [
        pltpu.VMEM((kernel.shape.key_blocks, width, KEYS), kernel.shape.dtype),
        columns,
        columns if kernel.windowed else None,
        shared.bits_scratch(kernel),
        pltpu.VMEM((width, kernel.rows), jnp.float32),
        pltpu.VMEM((keys, width), jnp.float32),
        pltpu.VMEM((keys, width), jnp.float32),
    ]
