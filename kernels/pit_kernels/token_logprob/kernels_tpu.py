"""Bodies of the TPU kernels of token log-probabilities: one sweep over the vocabulary each.

Everything is transposed: a tile of logits is [V, M], rows of the batch on lanes. A value per row is then a lane vector,
a maximum over the vocabulary is a maximum of registers, and no tile of logits is ever transposed.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pit_kernels.token_logprob.plan import LANES, SUBLANES, Plan
from pit_kernels.token_logprob.ring import Ring
from pit_kernels.token_logprob.settings import LOWEST, Settings, floor_shift


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    # The matrix unit multiplies bfloat16; a float32 product takes several passes.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def _logits(
    table_VD: Array, hidden_DM: Array, bias_ref: Any, column_VM: Array, settings: Settings, cut: Plan
) -> tuple[Array, Array | None]:
    """Return logits over the temperature, -inf beyond the vocabulary, and the slope of the cap where there is one."""
    z_VM, slope_VM = _dot(table_VD, hidden_DM, (1, 0)), None
    if bias_ref is not None:
        z_VM = z_VM + bias_ref[...]
    if settings.logit_soft_cap is not None:
        tanh_VM = jnp.tanh(z_VM * (1 / settings.logit_soft_cap))
        z_VM, slope_VM = settings.logit_soft_cap * tanh_VM, 1 - tanh_VM * tanh_VM
    if settings.temperature != 1:
        z_VM = z_VM * (1 / settings.temperature)
    if cut.padded_vocabulary != cut.vocabulary:
        z_VM = jnp.where(column_VM < cut.vocabulary, z_VM, -jnp.inf)
    return z_VM, slope_VM


def _column(tile: Array, cut: Plan) -> Array:
    """Return the index in the vocabulary of each element of a tile of logits."""
    return lax.broadcasted_iota(jnp.int32, (cut.vocab_tile, cut.row_tile), 0) + tile * cut.vocab_tile


def _each_row_tile(live: Array, cut: Plan, body: Any) -> None:
    """Run `body` on the slice of each tile of rows that holds a live one."""

    def step(i: Array, _: None) -> None:
        body(pl.ds(pl.multiple_of(i * cut.row_tile, cut.row_tile), cut.row_tile))

    lax.fori_loop(0, pl.cdiv(live, cut.row_tile), step, None)


def _fill_bias(bias_ref: Any, filled_ref: Any, cut: Plan) -> None:
    """Write a tile of the bias, repeated over the rows, once for all tiles of rows."""
    filled_ref[...] = jnp.transpose(jnp.broadcast_to(bias_ref[...], (cut.row_tile, cut.vocab_tile)))


def forward_kernel(
    extent_ref: Any,
    target_ref: Any,
    hidden_ref: Any,
    table_ref: Any,
    bias_ref: Any,
    out_ref: Any,
    peak_ref: Any,
    total_ref: Any,
    chosen_ref: Any,
    weighted_ref: Any,
    filled_ref: Any,
    turned_ref: Any,
    *,
    settings: Settings,
    cut: Plan,
) -> None:
    """Add a tile of the vocabulary to the running statistics of a block of rows."""
    core, block, step = (pl.program_id(axis) for axis in range(3))
    tile = core * cut.tiles + step
    live = jnp.clip(extent_ref[0] - block * cut.rows, 0, cut.rows)
    table_VD_ref = table_ref if settings.layout == "vd" else turned_ref
    by_sublane = (cut.vocab_tile // SUBLANES, SUBLANES, cut.row_tile)

    @pl.when(step == 0)
    def _start() -> None:
        # A running value for each sublane: a tile is reduced register by register, and across sublanes once at the end.
        peak_ref[...] = jnp.full(peak_ref.shape, LOWEST, jnp.float32)
        for ref in (total_ref, chosen_ref, weighted_ref):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def add_rows(here: Any) -> None:
        column_VM = _column(tile, cut)
        z_VM, _ = _logits(table_VD_ref[...], hidden_ref[:, here], filled_ref, column_VM, settings, cut)
        chosen = jnp.where(column_VM == target_ref[:, here], z_VM, 0).reshape(by_sublane)
        z = z_VM.reshape(by_sublane)
        before, total = peak_ref[:, here], total_ref[:, here]
        peak = jnp.maximum(before, jnp.max(z, axis=0))
        shifted = z - peak[None]
        if bias_ref is not None or cut.padded_vocabulary != cut.vocabulary:
            # Only then may a logit be -inf; elsewhere this would be a fifth of the work that is not multiplication.
            shifted = floor_shift(shifted)
        p = jnp.exp(shifted)
        moved = floor_shift(before - peak)
        shrink = jnp.exp(moved)
        peak_ref[:, here] = peak
        total_ref[:, here] = shrink * total + jnp.sum(p, axis=0)
        weighted_ref[:, here] = shrink * (weighted_ref[:, here] + total * moved) + jnp.sum(p * shifted, axis=0)
        chosen_ref[:, here] = chosen_ref[:, here] + jnp.sum(chosen, axis=0)

    @pl.when(live > 0)
    def _add() -> None:
        if bias_ref is not None:
            _fill_bias(bias_ref, filled_ref, cut)
        if turned_ref is not None:
            turned_ref[...] = jnp.transpose(table_ref[...])
        _each_row_tile(live, cut, add_rows)

    @pl.when(step == cut.tiles - 1)
    def _finish() -> None:
        peak = jnp.max(peak_ref[...], axis=0, keepdims=True)
        moved = floor_shift(peak_ref[...] - peak)
        shrink = jnp.exp(moved)
        out_ref[0:1, :] = peak
        out_ref[1:2, :] = jnp.sum(total_ref[...] * shrink, axis=0, keepdims=True)
        out_ref[2:3, :] = jnp.sum(chosen_ref[...], axis=0, keepdims=True)
        weighted = shrink * (weighted_ref[...] + total_ref[...] * moved)
        out_ref[3:4, :] = jnp.sum(weighted, axis=0, keepdims=True)


def backward_kernel(
    extent_ref: Any,
    target_ref: Any,
    facts_ref: Any,
    hidden_ref: Any,
    table_ref: Any,
    bias_ref: Any,
    d_hidden_hbm_ref: Any,
    running_ref: Any,
    d_table_ref: Any,
    d_bias_ref: Any,
    d_hidden_ref: Any,
    slot_ref: Any,
    filled_ref: Any,
    turned_ref: Any,
    by_lane_ref: Any,
    arrive: Any,
    leave: Any,
    done: Any,
    *,
    settings: Settings,
    cut: Plan,
) -> None:
    """Add a tile of the vocabulary to the gradient of a block of rows, and the rows to the gradient of the tile."""
    core, block, step = (pl.program_id(axis) for axis in range(3))
    last_block = extent_ref[1]
    live = jnp.clip(extent_ref[0] - block * cut.rows, 0, cut.rows)
    time, last = block * cut.tiles + step, (last_block + 1) * cut.tiles - 1
    tile = core * cut.tiles + step
    table_VD_ref, table_DV_ref = (table_ref, turned_ref) if settings.layout == "vd" else (turned_ref, table_ref)

    def written(step: Any) -> Any:
        # The last block of rows adds straight into the result, where that is narrower than float32.
        return (step >= 0) & (step < last_block * cut.tiles if d_table_ref is not None else step <= last)

    ring = Ring(running_ref, slot_ref, arrive, leave, settings, cut, written)

    def add_rows(here: Any) -> None:
        column_VM = _column(tile, cut)
        hidden_DM = hidden_ref[:, here]
        z_VM, slope_VM = _logits(table_VD_ref[...], hidden_DM, filled_ref, column_VM, settings, cut)
        lse, spread, d_logp = (facts_ref[i : i + 1, here] for i in range(3))
        log_p_VM = z_VM - lse
        p_VM = jnp.exp(log_p_VM)
        # d logp = onehot - p; d lse = p; d entropy = -p (log p + entropy).
        if facts_ref.shape[0] > 3:
            entropy, d_entropy = (facts_ref[i : i + 1, here] for i in range(3, 5))
            spread = spread - d_entropy * (floor_shift(log_p_VM) + entropy)
        d_z_VM = p_VM * spread
        d_z_VM = jnp.where(column_VM == target_ref[:, here], d_z_VM + d_logp, d_z_VM)
        if slope_VM is not None:
            d_z_VM = d_z_VM * slope_VM
        if by_lane_ref is not None:
            by_lane_ref[...] += sum(d_z_VM[:, i : i + LANES] for i in range(0, cut.row_tile, LANES))
        d_low_VM = d_z_VM.astype(table_ref.dtype)
        left, right = (d_low_VM, hidden_DM) if settings.layout == "vd" else (hidden_DM, d_low_VM)
        slot = ring.slot(time)
        slot[...] += _dot(left, right, (1, 1))
        d_hidden_ref[:, here] += _dot(table_DV_ref[...], d_low_VM, (1, 0))

    @pl.when(block <= last_block)
    def _visit() -> None:
        ring.begin(time, last)

        @pl.when(step == 0)
        def _start() -> None:
            d_hidden_ref[...] = jnp.zeros(d_hidden_ref.shape, jnp.float32)

        tail = cut.vocabulary % cut.vocab_tile
        if tail:

            @pl.when(tile >= cut.last_tile)
            def _clean() -> None:
                # Values beyond the table are arbitrary, NaN included, and 0 x NaN is not 0.
                if settings.layout == "vd":
                    table_ref[tail:, :] = jnp.zeros((cut.vocab_tile - tail, cut.width), table_ref.dtype)
                else:
                    table_ref[:, tail:] = jnp.zeros((cut.width, cut.vocab_tile - tail), table_ref.dtype)

        turned_ref[...] = jnp.transpose(table_ref[...])
        if bias_ref is not None:
            _fill_bias(bias_ref, filled_ref, cut)
            by_lane_ref[...] = jnp.zeros(by_lane_ref.shape, jnp.float32)
        _each_row_tile(live, cut, add_rows)
        if d_bias_ref is not None:
            d_bias_ref[...] = jnp.sum(jnp.transpose(by_lane_ref[...]), axis=0, keepdims=True)
        if d_table_ref is not None:

            @pl.when((block == last_block) & (tile <= cut.last_tile))
            def _result() -> None:
                d_table_ref[...] = ring.slot(time)[...].astype(d_table_ref.dtype)

        ring.end(time, last)

        @pl.when(step == cut.tiles - 1)
        def _finish() -> None:
            rows = pl.ds(pl.multiple_of(block * cut.rows, cut.rows), cut.rows)
            copy = pltpu.make_async_copy(d_hidden_ref, d_hidden_hbm_ref.at[core, :, rows], done)
            copy.start()
            copy.wait()
