"""The parts that the forward and the backward kernel share: the shape of a call, masks, gathered blocks of keys."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.tiles import Tiles
from pit_kernels.three_way_attention.visible_blocks import KEYS, Window, visible_blocks, visible_blocks_of_stretch

LOG2_E = math.log2(math.e)
UNSEEN = -0.7 * float(np.finfo(np.float32).max)
"""Logit of a key that is not visible: finite, so that the difference of two is not NaN."""

DEAD = -1
"""Count of blocks where a block of queries is all padding."""

NT = (((1,), (1,)), ((), ()))
NN = (((1,), (0,)), ((), ()))


class Shape(NamedTuple):
    """Sizes of a call as the kernels see it: K key/value heads, each with a group of R query heads.

    tokens: queries of a row.
    keys: keys that lie in VMEM: all of the row, or one stretch of it (see `stretches`).
    """

    batch: int
    kv_heads: int
    group: int
    tokens: int
    keys: int
    width: int
    dtype: Any

    @property
    def key_blocks(self) -> int:
        """Blocks of 128 keys."""
        return self.keys // KEYS


class Kernel(NamedTuple):
    """Everything that both kernels are specialised for.

    With a stretch of keys, indices of queries and keys count from the stretch's first key, the blocks on the diagonal
    are listed like others, and padding has been cleared from all arguments: it adds to nothing, but the results
    of padding's queries are meaningless.
    """

    shape: Shape
    tiles: Tiles
    scale: float
    logit_soft_cap: float | None
    window: int | None
    on_cpu: bool

    @property
    def stretch(self) -> bool:
        """Whether the keys are only a stretch of the row."""
        return self.shape.keys < self.shape.tokens

    @property
    def windowed(self) -> bool:
        """Whether queries see the last positions of their path only."""
        return self.window is not None

    @property
    def rows(self) -> int:
        """Rows of a block of queries: its tokens, once for each head of the group."""
        return self.shape.group * self.tiles.queries

    @property
    def wide(self) -> int:
        """Blocks of 128 keys that one step of a loop takes."""
        return self.tiles.keys // KEYS

    @property
    def diagonal(self) -> int:
        """Blocks of 128 keys on the diagonal of a block of queries that are in no list."""
        return 0 if self.stretch else self.tiles.queries // KEYS

    @property
    def short(self) -> int:
        """Most listed blocks that are served without a loop."""
        return min(self.tiles.short, self.shape.key_blocks - self.diagonal)

    @property
    def precision(self) -> lax.Precision:
        """Precision of products: float32 operands keep theirs."""
        return lax.Precision.HIGHEST if self.shape.dtype == jnp.float32 else lax.Precision.DEFAULT

    def dot(self, a: Array, b: Array, dimensions: Any) -> Array:
        """Return the product accumulated in float32."""
        if self.on_cpu:
            # XLA's CPU backend has no product of bfloat16 into float32 for every shape; this one is the same.
            a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return lax.dot_general(a, b, dimensions, precision=self.precision, preferred_element_type=jnp.float32)

    def cap(self, products: Array) -> Array:
        """Return the logits in units of log 2 from raw products."""
        if self.logit_soft_cap is None:
            return products * (self.scale * LOG2_E)
        return jnp.tanh(products * (self.scale / self.logit_soft_cap)) * (self.logit_soft_cap * LOG2_E)


def make(shape: Shape, tiles: Tiles, settings: Settings) -> Kernel:
    """Return the part of a call that shapes the bodies of its kernels."""
    return Kernel(shape, tiles, settings.scale, settings.logit_soft_cap, settings.window, bool(settings.interpret))


def lists(
    visible_until: Array, window: Window | None, kernel: Kernel, first_key: Array | None = None
) -> tuple[Array, Array]:
    """Return the list of blocks of keys of each block of queries, and the trips over it.

    Args:
      visible_until: mask of the row.
      window: sliding window of the call.
      kernel: the call.
      first_key: index of the first key of a stretch.

    Returns:
      blocks: int32[B, n, m + wide], see `VisibleBlocks`; the last trip of a loop may read so far past the list.
      counts: int32[B, 5, n]: how many blocks are listed (`DEAD` where no query is alive or no key of a stretch is
        visible); trips of the loop over whole blocks, with `unroll` tiles; trips of the loop over the rest, masked,
        with `masked` tiles each, and with one; the index of the block's first query.
    """
    queries, wide, tiles = kernel.tiles.queries, kernel.wide, kernel.tiles
    if first_key is None:
        visits = visible_blocks(visible_until, queries, window)
        busy = visits.alive == 1
    else:
        visits = visible_blocks_of_stretch(visible_until, queries, first_key, kernel.shape.keys, window)
        busy = (visits.alive == 1) & (visits.number > 0)
    whole = visits.full // (wide * tiles.unroll)
    rest = -(-(visits.number - whole * (wide * tiles.unroll)) // wide)
    many = rest // tiles.masked if tiles.masked > 1 else jnp.zeros_like(rest)
    number = jnp.where(busy, visits.number, DEAD)
    first = jnp.arange(number.shape[1], dtype=jnp.int32) * queries - (0 if first_key is None else first_key)
    blocks = jnp.pad(visits.block, ((0, 0), (0, 0), (0, wide)), constant_values=kernel.shape.key_blocks)
    trips = number, whole, many, rest - many * tiles.masked
    return blocks, jnp.stack([*trips, jnp.broadcast_to(first, number.shape)], axis=1)


def first_query(count_ref: Any, kernel: Kernel, i: Array) -> Array:
    """Return the index of the first query of a block, counted as keys are."""
    first: Array = count_ref[0, 4, i] if kernel.stretch else i * kernel.tiles.queries
    return first


def loops(count: Any, kernel: Kernel, i: Array) -> Iterator[tuple[Array, Array, int, bool]]:
    """Return the loops over a list: its first place, trips, tiles per trip, and whether tiles are masked.

    Past its end a list holds the index of the block that nothing sees, so the last masked trip needs no extra body.
    """
    first = jnp.int32(0)
    for row, tiles, masked in ((1, kernel.tiles.unroll, False), (2, kernel.tiles.masked, True), (3, 1, True)):
        if row != 2 or tiles > 1:
            trips = count[0, row, i]
            yield first, trips, tiles, masked
            first = first + trips * (tiles * kernel.wide)


def straight(number: Array, counts: Sequence[int], body: Callable[[int], None]) -> None:
    """Call `body(count)` with the smallest of the ascending counts that is at least `number`, if there is one."""
    below = -1
    for count in counts:
        pl.when((number > below) & (number <= count))(functools.partial(body, count))
        below = count


def each_block(count: int, body: Callable[[Array], None]) -> None:
    """Call `body(j)` for each of `count` blocks; several per trip, because one alone waits for its own transposes."""
    together = next(n for n in (4, 3, 2, 1) if count % n == 0)

    def trip(t: Array, _: None) -> None:
        for n in range(together):
            body(t * together + n)

    lax.fori_loop(0, count // together, trip, None)


def stack(x: Array) -> Array:
    """Turn [R, Q, H] to rows [R Q, H]."""
    return x.reshape(-1, x.shape[-1])


def across(x: Array, columns: int) -> Array:
    """Turn [n, 128] with equal columns to [n, columns]; if fewer than 128, the rest is cut off."""
    return x[:, :columns] if columns < KEYS else jnp.concatenate([x] * (columns // KEYS), axis=1)


def gather(ref: Any, starts: list[Array]) -> Array:
    """Return the blocks of 128 rows of a [1, 1, T, H] reference, one below the other."""
    parts = [ref[0, 0, pl.ds(pl.multiple_of(start, KEYS), KEYS), :] for start in starts]
    return jnp.concatenate(parts, axis=0)


def packing(dtype: Any) -> int:
    """Return the numbers of a dtype in 32 bits."""
    return 4 // int(jnp.dtype(dtype).itemsize)


def bits_scratch(kernel: Kernel) -> Any:
    """Return the scratch of `fill_bits`; none for a stretch, whose padding was cleared before."""
    rows = kernel.shape.tokens // packing(kernel.shape.dtype)
    return None if kernel.stretch else pltpu.VMEM((rows, KEYS), jnp.int32)


def fill_bits(until_ref: Any, bits_ref: Any, kernel: Kernel) -> None:
    """Write bit masks of the living tokens, [T / packing, 128]: all ones for a living token, else zeros.

    Args:
      until_ref: `visible_until` of the row, in blocks [1, m, 1, 128].
      bits_ref: destination.
      kernel: the call.
    """
    packed = packing(kernel.shape.dtype)

    def block(j: Array) -> None:
        until = column(until_ref[0, j])
        alive = jnp.where(until > j * KEYS + lax.broadcasted_iota(jnp.int32, (KEYS, KEYS), 0), -1, 0)
        bits = alive if packed == 1 else pltpu.bitcast(alive.astype(jnp.int16), jnp.int32)
        size = KEYS // packed
        bits_ref[pl.ds(pl.multiple_of(j * size, size), size), :] = bits

    each_block(kernel.shape.key_blocks, block)


def alive_only(x: Array, bits_ref: Any, starts: list[Array], length: int) -> Array:
    """Return the rows of living tokens, and zeros for the others.

    Weights of padding are 0, but 0 times a NaN is NaN. A bitwise "and" costs what a copy costs.

    Args:
      x: [rows, H], stretches of `length` tokens.
      bits_ref: masks of `fill_bits`.
      starts: first token of each stretch.
      length: tokens of a stretch, a multiple of 128.
    """
    packed = packing(x.dtype)
    size = length // packed
    parts = [bits_ref[pl.ds(pl.multiple_of(lax.div(start, jnp.int32(packed)), size), size), :] for start in starts]
    bits = across(jnp.concatenate(parts, axis=0), x.shape[1])
    return pltpu.bitcast(pltpu.bitcast(x, jnp.int32) & bits, x.dtype)


def column(row: Array) -> Array:
    """Turn [1, 128] to [128, 128] with equal columns."""
    return jnp.broadcast_to(row, (KEYS, KEYS)).T


def fill_columns(row_ref: Any, column_ref: Any, key_blocks: int) -> None:
    """Write numbers of a row's keys as [T + 128, 128] with equal columns, from their blocks [1, m, 1, 128].

    Block m of the columns is zeros: as `visible_until`, the block that nothing sees.
    """

    def block(j: Array) -> None:
        column_ref[pl.ds(pl.multiple_of(j * KEYS, KEYS), KEYS), :] = column(row_ref[0, j])

    each_block(key_blocks, block)
    column_ref[key_blocks * KEYS :, :] = jnp.zeros((KEYS, KEYS), jnp.int32)


def zero() -> Array:
    """Return a constant index for index maps: Python's 0 would be weakly typed."""
    index: Array = jnp.int32(0)
    return index


Spec = pl.BlockSpec
Struct = jax.ShapeDtypeStruct
