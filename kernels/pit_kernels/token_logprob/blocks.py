"""The block of each array that a step of the TPU kernels' grid sees: what lies in VMEM, and when it is fetched."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pit_kernels.token_logprob.plan import Plan
from pit_kernels.token_logprob.settings import Settings

_ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)


class Blocks(NamedTuple):
    """Blocks over the grid (core, block of rows, step), whose index maps also see the extent: the number of live rows
    and the last block of rows that holds one. Past that block no index changes, so nothing moves.
    """

    settings: Settings
    cut: Plan
    has_bias: bool

    @property
    def table_shape(self) -> tuple[int, int]:
        """Shape of a tile of the table."""
        return self._as_stored(self.cut.vocab_tile, self.cut.width)

    def forward_in(self) -> list[pl.BlockSpec | None]:
        """Return the target, hidden states, table, bias."""
        return [self._rows(1), self._hidden(), pl.BlockSpec(self.table_shape, self._table), self._bias()]

    def forward_out(self) -> pl.BlockSpec:
        """Return the four partial results of each row, by core."""
        return pl.BlockSpec((None, 4, self.cut.rows), lambda core, block, step, extent: (core, 0, block))

    def backward_in(self, facts: int) -> list[pl.BlockSpec | None]:
        """Return the target, `facts` numbers known per row, hidden states, table, bias."""
        target, *rest = self.forward_in()
        return [target, self._rows(facts), *rest]

    def backward_out(self, narrow: bool) -> list[pl.BlockSpec | None]:
        """Return the gradients: hidden states, running table, table where it is not the running one, bias."""
        return [
            _ANYWHERE,
            _ANYWHERE if self.cut.blocks > 1 or not narrow else None,
            pl.BlockSpec(self.table_shape, self._d_table) if narrow else None,
            pl.BlockSpec((None, 1, self.cut.vocab_tile), self._d_bias) if self.has_bias else None,
        ]

    def _as_stored(self, vocabulary: Any, width: Any) -> tuple[Any, Any]:
        return (vocabulary, width) if self.settings.layout == "vd" else (width, vocabulary)

    def _rows(self, count: int) -> pl.BlockSpec:
        return pl.BlockSpec((count, self.cut.rows), self._row)

    def _hidden(self) -> pl.BlockSpec:
        # One buffer: it changes once in a sweep, and a second one would halve the rows that fit.
        return pl.BlockSpec((self.cut.width, self.cut.rows), self._row, pipeline_mode=pl.Buffered(1))

    def _bias(self) -> pl.BlockSpec | None:
        if not self.has_bias:
            return None
        return pl.BlockSpec((1, self.cut.vocab_tile), lambda *at: (0, self._step(*at)))

    def _row(self, core: Any, block: Any, step: Any, extent: Any) -> tuple[Any, Any]:
        return 0, jnp.minimum(block, extent[1])

    def _step(self, core: Any, block: Any, step: Any, extent: Any) -> Any:
        return core * self.cut.tiles + jnp.where(block > extent[1], self.cut.tiles - 1, step)

    def _table(self, *at: Any) -> tuple[Any, Any]:
        # A core may visit one tile more than there is.
        return self._as_stored(jnp.minimum(self._step(*at), self.cut.last_tile), 0)

    def _d_table(self, core: Any, block: Any, step: Any, extent: Any) -> tuple[Any, Any]:
        # It stays at the first tile until the last block of rows, so only final tiles leave.
        return self._table(core, block, jnp.where(block < extent[1], 0, step), extent)

    def _d_bias(self, core: Any, block: Any, step: Any, extent: Any) -> tuple[Any, Any, Any]:
        return jnp.minimum(block, extent[1]), 0, self._step(core, block, step, extent)
