"""Bodies of the TPU kernels of the leaf scores: they fetch the leaf rows themselves and use them as they arrive.

Values per leaf are lane vectors, [1, N]; where rows need them, a transpose gives one value per sublane.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pit_kernels.gap_reward.leaves import ABSENT, Settings
from pit_kernels.gap_reward.tiles import Tiles

LANES = 128

SLOTS = 2
"""Blocks of rows in VMEM: one arrives while the other is read."""


def _column(row_1N: Array) -> Array:
    """Return a lane vector as columns [N, lanes]: the value of a leaf in every lane of the leaf's sublane."""
    return jnp.transpose(jnp.broadcast_to(row_1N, (LANES, row_1N.shape[1])))


class Rows:
    """The rows of one block of leaves: fetched, and read in float32."""

    def __init__(
        self,
        tiles: Tiles,
        hidden_ref: Any,
        token_ref: Any,
        buffer_ref: Any,
        shift_ref: Any,
        mask_ref: Any,
        arrive: Any,
    ):
        self.hidden_ref, self.token_ref, self.buffer_ref = hidden_ref, token_ref, buffer_ref
        self.shift_ref, self.mask_ref, self.arrive = shift_ref, mask_ref, arrive
        self.pack = 4 // hidden_ref.dtype.itemsize
        self.block, self.group = tiles.block, tiles.group
        self.step, self.steps = pl.program_id(1), pl.num_programs(1)

    def _groups(self, step: Any, leaves: int) -> Any:
        """Return the groups of a block that hold a leaf."""
        first = (pl.program_id(0) * self.steps + step) * self.block
        return (jnp.clip(leaves - first, 0, self.block) + self.group - 1) >> (self.group.bit_length() - 1)

    def _arriving(self, group: Any, slot: Any) -> Any:
        size = self.group * self.pack
        return self.buffer_ref.at[slot, pl.ds(pl.multiple_of(group * size, size), size)]

    def _start(self, token_ref: Any, step: Any, leaves: int) -> None:
        slot, pack = lax.rem(step, SLOTS), self.pack

        def ask(group: Any, carry: None) -> None:
            group_ref = self._arriving(group, slot)
            # Written out, so that where a row goes within its group costs no arithmetic.
            for i in range(self.group):
                # An absent leaf reads the first token: all leaves of a group copy, so that one wait suffices.
                token = jnp.maximum(token_ref[0, group * self.group + i], 0)
                rows = pl.ds(pl.multiple_of(token & -pack, pack), pack)
                place = group_ref.at[pl.ds(i * pack, pack)]
                pltpu.make_async_copy(self.hidden_ref.at[rows], place, self.arrive.at[slot]).start()

        lax.fori_loop(0, self._groups(step, leaves), ask, None)

    def fetch(self, here_ref: Any, next_ref: Any, leaves: int) -> None:
        """Wait for the rows of this step, and ask for those of the next.

        Args:
          here_ref: tokens of this step, as scalars.
          next_ref: tokens of the next.
          leaves: leaves of all steps; the padding of the last step is not fetched.
        """

        @pl.when(self.step == 0)
        def _first() -> None:
            self._start(here_ref, self.step, leaves)

        @pl.when(self.step + 1 < self.steps)
        def _ahead() -> None:
            self._start(next_ref, self.step + 1, leaves)

        token_NL = _column(self.token_ref[...])
        if self.pack == 2:
            self.shift_ref[...] = jnp.where(token_NL & 1 == 0, 16, 0)
        self.mask_ref[...] = jnp.where(token_NL >= 0, jnp.int32(-(2**16) if self.pack == 2 else -1), 0)
        self.slot = lax.rem(self.step, SLOTS)

        def wait(group: Any, carry: None) -> None:
            arrived = self._arriving(group, self.slot)
            pltpu.make_async_copy(arrived, arrived, self.arrive.at[self.slot]).wait()

        lax.fori_loop(0, self._groups(self.step, leaves), wait, None)

    def read(self, group: Any, lanes: Any) -> Float[Array, "n lanes"]:
        """Return the rows of a group of leaves, a register wide; zeros for absent leaves."""
        here = pl.ds(pl.multiple_of(group * self.group, self.group), self.group)
        packed = pl.ds(pl.multiple_of(group * self.group * self.pack, self.group), self.group * self.pack)
        bits = pltpu.bitcast(self.buffer_ref[self.slot, packed, lanes], jnp.int32)
        if self.pack == 2:
            bits = bits << self.shift_ref[here]
        return pltpu.bitcast(bits & self.mask_ref[here], jnp.float32)

    def measure(self, head_ref: Any, square_ref: Any, along_ref: Any) -> tuple[Array, Array]:
        """Return the mean of h^2 and sum of h.head of each leaf, as lane vectors."""
        width = self.buffer_ref.shape[2]

        def add(group: Any, carry: None) -> None:
            square, along = (jnp.zeros((self.group, LANES), jnp.float32) for _ in range(2))
            for first in range(0, width, LANES):
                lanes = pl.ds(first, LANES)
                row = self.read(group, lanes)
                square, along = square + row * row, along + row * head_ref[:, lanes]
            here = pl.ds(pl.multiple_of(group * self.group, self.group), self.group)
            square_ref[here], along_ref[here] = square, along

        lax.fori_loop(0, self.block // self.group, add, None)
        square, along = (jnp.sum(jnp.transpose(ref[...]), axis=0, keepdims=True) for ref in (square_ref, along_ref))
        return square / width, along


def forward_kernel(
    here_ref: Any,
    next_ref: Any,
    bias_ref: Any,
    token_ref: Any,
    head_ref: Any,
    hidden_ref: Any,
    score_ref: Any,
    *scratch: Any,
    settings: Settings,
    tiles: Tiles,
    leaves: int,
) -> None:
    """Score a block of leaves."""
    square_ref, along_ref, *fetching = scratch
    rows = Rows(tiles, hidden_ref, token_ref, *fetching)
    rows.fetch(here_ref, next_ref, leaves)
    square, along = rows.measure(head_ref, square_ref, along_ref)
    score = along * lax.rsqrt(square + settings.eps) + bias_ref[0]
    token = token_ref[...]
    score_ref[...] = jnp.where(token >= 0, score, jnp.where(token == ABSENT, 0.0, jnp.nan))


def backward_kernel(
    here_ref: Any,
    next_ref: Any,
    token_ref: Any,
    d_score_ref: Any,
    head_ref: Any,
    hidden_ref: Any,
    d_row_ref: Any,
    d_head_ref: Any,
    *scratch: Any,
    settings: Settings,
    tiles: Tiles,
    leaves: int,
) -> None:
    """Write the gradients of the rows of a block of leaves, and add to that of the head."""
    square_ref, along_ref, *fetching = scratch
    rows = Rows(tiles, hidden_ref, token_ref, *fetching)
    rows.fetch(here_ref, next_ref, leaves)
    square, along = rows.measure(head_ref, square_ref, along_ref)
    token, width = token_ref[...], hidden_ref.shape[1]
    inverse_rms = lax.rsqrt(square + settings.eps)
    # score = r h.u with r = (mean(h^2) + eps)^-1/2 and u = gain * weight: d score / d h = r u - r^3 (h.u) h / D.
    d_scaled = jnp.where(token >= 0, d_score_ref[...] * inverse_rms, jnp.where(token == ABSENT, 0.0, jnp.nan))
    # The sums of a leaf have been read: their places take what its row is multiplied by.
    to_head_ref, to_row_ref = square_ref, along_ref
    to_head_ref[...] = _column(d_scaled)
    to_row_ref[...] = _column(-d_scaled * along * inverse_rms * inverse_rms / width)

    @pl.when(rows.step == 0)
    def _start() -> None:
        d_head_ref[...] = jnp.zeros(d_head_ref.shape, jnp.float32)

    def spread(i: Any, carry: None) -> None:
        lanes = pl.ds(pl.multiple_of(i * LANES, LANES), LANES)
        head, d_head = head_ref[:, lanes], d_head_ref[:, lanes]
        for group in range(tiles.block // tiles.group):
            here = slice(group * tiles.group, (group + 1) * tiles.group)
            row, d_scaled = rows.read(group, lanes), to_head_ref[here]
            d_row_ref[here, lanes] = (d_scaled * head + to_row_ref[here] * row).astype(d_row_ref.dtype)
            d_head = d_head + d_scaled * row
        d_head_ref[:, lanes] = d_head

    lax.fori_loop(0, width // LANES, spread, None)
