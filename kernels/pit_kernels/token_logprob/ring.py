"""The table's gradient between HBM and VMEM: tiles arrive, are added to and leave at the same time."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pit_kernels.token_logprob.plan import Plan
from pit_kernels.token_logprob.settings import Settings

SLOTS = 3
"""Tiles in VMEM: one arrives, one is added to, one leaves."""


class Ring:
    """Tiles of the table's gradient on their way between HBM and VMEM.

    Step t adds to the tile in slot t mod 3. The tile of step t + 1 arrives meanwhile in the slot that the tile of step
    t - 2 has left. With fewer than three tiles a tile would be fetched before it has left, so each step then waits.

    written: whether the tile of a step is put back.
    """

    def __init__(
        self, hbm_ref: Any, slot_ref: Any, arrive: Any, leave: Any, settings: Settings, cut: Plan, written: Any
    ) -> None:
        self.hbm_ref, self.slot_ref, self.arrive, self.leave = hbm_ref, slot_ref, arrive, leave
        self.settings, self.cut, self.written = settings, cut, written
        self.core = pl.program_id(0)
        self.overlaps = cut.tiles >= SLOTS

    def slot(self, step: Any) -> Any:
        """Return the place of the tile of `step`."""
        return self.slot_ref.at[lax.rem(step, SLOTS)]

    def _copy(self, step: Any, inward: bool) -> Any:
        tile = self.core * self.cut.tiles + lax.rem(step, self.cut.tiles)
        columns = pl.ds(pl.multiple_of(tile * self.cut.vocab_tile, self.cut.vocab_tile), self.cut.vocab_tile)
        hbm_ref = self.hbm_ref.at[(columns, slice(None)) if self.settings.layout == "vd" else (slice(None), columns)]
        which = lax.rem(step, SLOTS)
        if inward:
            return pltpu.make_async_copy(hbm_ref, self.slot(step), self.arrive.at[which])
        return pltpu.make_async_copy(self.slot(step), hbm_ref, self.leave.at[which])

    def begin(self, step: Any, last: Any) -> None:
        """Make the tile of `step` ready; 0 in the first block of rows. `last` is the last step of all."""
        tiles = self.cut.tiles

        @pl.when(step < tiles)
        def _first() -> None:
            self.slot(step)[...] = jnp.zeros(self.slot_ref.shape[1:], jnp.float32)

        if self.hbm_ref is None:
            return
        if self.overlaps:

            @pl.when((step >= 2) & self.written(step - 2))
            def _left() -> None:
                self._copy(step - 2, inward=False).wait()

            @pl.when((step + 1 >= tiles) & (step < last))
            def _fetch() -> None:
                self._copy(step + 1, inward=True).start()

            @pl.when(step >= tiles)
            def _arrived() -> None:
                self._copy(step, inward=True).wait()

        else:

            @pl.when(step >= tiles)
            def _fetch() -> None:
                copy = self._copy(step, inward=True)
                copy.start()
                copy.wait()

    def end(self, step: Any, last: Any) -> None:
        """Send the tile of `step` back."""
        if self.hbm_ref is None:
            return

        @pl.when(self.written(step))
        def _send() -> None:
            copy = self._copy(step, inward=False)
            copy.start()
            if not self.overlaps:
                copy.wait()

        if self.overlaps:

            @pl.when((step == last) & self.written(step - 1))
            def _wait_before() -> None:
                self._copy(step - 1, inward=False).wait()

            @pl.when((step == last) & self.written(step))
            def _wait() -> None:
                self._copy(step, inward=False).wait()
