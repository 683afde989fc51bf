"""Log-probabilities of chosen tokens on a TPU: the logits live in VMEM only, a tile at a time.

Forward: a block of rows stays in VMEM while the vocabulary passes by once, in an online log-sum-exp. Backward: one
sweep yields both gradients. That of the block of rows stays in VMEM in float32; that of the table lies in HBM in
float32, and a tile of it is fetched, added to and put back while its neighbours are computed. The logits are recomputed
once.

Everything is transposed: a tile of logits is [V, M], rows of the batch on lanes. What is known per row is then a lane
vector, a maximum over the vocabulary is a maximum of registers, and no tile of logits is ever transposed.

Valid rows are gathered to the front first, so that the others cost nothing, wherever they are.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels.dispatch import Interpret
from pit_kernels.token_logprob.blocks import Blocks
from pit_kernels.token_logprob.plan import LANES, SUBLANES, Plan, backward_traffic, forward_traffic, plan
from pit_kernels.token_logprob.ring import SLOTS, Ring
from pit_kernels.token_logprob.settings import LOWEST, Partials, RowGradients, Settings, floor_shift
from pit_kernels.token_logprob.tiles import Tiles


@dataclass(frozen=True)
class Options:
    """What the kernels are compiled with.

    tiles: blocks and tiles.
    cores: cores that share the vocabulary.
    vmem: bytes of VMEM that a kernel may take.
    interpret: whether to run in the interpreter, and how.
    """

    tiles: Tiles
    cores: int
    vmem: int
    interpret: Interpret


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    # The matrix unit multiplies bfloat16; float32 is what its caller asked for, so it is made of several passes.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def _logits(
    table_VD: Array, hidden_DM: Array, bias_ref: Any, column_VM: Array, settings: Settings, cut: Plan
) -> tuple[Array, Array | None]:
    """Logits over the temperature, -inf beyond the vocabulary, and the slope of the cap where there is one."""
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
    """Index in the vocabulary of each element of a tile of logits."""
    return lax.broadcasted_iota(jnp.int32, (cut.vocab_tile, cut.row_tile), 0) + tile * cut.vocab_tile


def _each_row_tile(live: Array, cut: Plan, body: Any) -> None:
    """Runs `body` on the slice of each tile of rows that holds a live one."""

    def step(i: Array, _: None) -> None:
        body(pl.ds(pl.multiple_of(i * cut.row_tile, cut.row_tile), cut.row_tile))

    lax.fori_loop(0, pl.cdiv(live, cut.row_tile), step, None)


def _fill_bias(bias_ref: Any, filled_ref: Any, cut: Plan) -> None:
    """Writes a tile of the bias, repeated over the rows, once for all tiles of rows."""
    filled_ref[...] = jnp.transpose(jnp.broadcast_to(bias_ref[...], (cut.row_tile, cut.vocab_tile)))


def _forward_kernel(
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


class _Gathered(NamedTuple):
    """Rows with the valid ones first.

    slot: where each row went; any slot for an invalid one.
    order: which row is in each slot.
    live: slots that hold a valid row.
    """

    slot: Int32[Array, " M"]
    order: Int32[Array, " P"]
    live: Int32[Array, ""]

    def to_slots(self, x: Array, fill: Any) -> Array:
        """[M, ...] to [P, ...], `fill` where no valid row is."""
        here = jnp.arange(self.order.shape[0], dtype=jnp.int32) < self.live
        return jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), x[self.order], jnp.asarray(fill, x.dtype))


def _gather(valid: Bool[Array, " M"], slots: int) -> _Gathered:
    order = jnp.argsort(~valid, stable=True).astype(jnp.int32)
    slot = jnp.cumsum(valid.astype(jnp.int32), dtype=jnp.int32) - 1
    return _Gathered(jnp.maximum(slot, 0), jnp.pad(order, (0, slots - order.shape[0])), slot[-1] + 1)


def forward_plan(options: Options, shape: tuple[int, int, int]) -> Plan:
    """Blocks of the forward kernel for M rows, width D and V columns."""
    sizes = options.tiles.rows, options.tiles.row_tile, options.tiles.vocab_tile
    return plan(shape, sizes, options.cores)


def backward_plan(options: Options, shape: tuple[int, int, int]) -> Plan:
    """Blocks of the backward kernel for M rows, width D and V columns."""
    sizes = options.tiles.grad_rows, options.tiles.grad_row_tile, options.tiles.grad_vocab_tile
    return plan(shape, sizes, options.cores)


def forward(
    settings: Settings,
    options: Options,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
) -> Partials:
    """What this part of the vocabulary says of each row; arguments as in `autodiff.logprob`."""
    cut = forward_plan(options, _shape(settings, hidden, weight))
    blocks, width = Blocks(settings, cut, bias is not None), cut.width
    gathered = _gather(valid, cut.padded_rows)

    state = pltpu.VMEM((SUBLANES, cut.rows), jnp.float32)
    out = pl.pallas_call(
        functools.partial(_forward_kernel, settings=settings, cut=cut),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(cut.cores, cut.blocks, cut.tiles),
            in_specs=blocks.forward_in(),
            out_specs=blocks.forward_out(),
            scratch_shapes=[
                *(state,) * 4,
                None if bias is None else pltpu.VMEM((cut.vocab_tile, cut.row_tile), jnp.float32),
                None if settings.layout == "vd" else pltpu.VMEM((cut.vocab_tile, width), weight.dtype),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((cut.cores, 4, cut.padded_rows), jnp.float32),
        compiler_params=_compiler_params(options),
        cost_estimate=_cost(cut, 1, forward_traffic(cut, weight.dtype.itemsize, bias is not None).total),
        interpret=options.interpret,
        name="token_logprob_forward",
    )(
        _extent(gathered, cut),
        gathered.to_slots(target, -1)[None],
        gathered.to_slots(hidden, 0).T,
        weight,
        None if bias is None else _bias_row(bias, cut),
    )
    parts = Partials(*out[:, :, gathered.slot].swapaxes(0, 1))
    whole = parts.merged(
        functools.partial(jnp.max, axis=0, keepdims=True), functools.partial(jnp.sum, axis=0, keepdims=True)
    )
    return Partials(*(jnp.where(valid, x[0], 0) for x in whole))


def _compiler_params(options: Options) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=options.vmem
    )


def _shape(settings: Settings, hidden: Array, weight: Array) -> tuple[int, int, int]:
    """M, D and V."""
    rows, width = hidden.shape
    return rows, width, weight.shape[settings.vocabulary_axis]


def _cost(cut: Plan, products: int, bytes_accessed: int) -> pl.CostEstimate:
    """Cost of a sweep with so many products of rows, columns and width, as if every row were valid."""
    logits = cut.padded_rows * cut.vocabulary
    return pl.CostEstimate(
        flops=2 * products * logits * cut.width, transcendentals=logits, bytes_accessed=bytes_accessed
    )


def _extent(gathered: _Gathered, cut: Plan) -> Int32[Array, "2"]:
    """Live slots, and the last block that holds one."""
    return jnp.stack([gathered.live, jnp.maximum((gathered.live - 1) // cut.rows, 0)])


def _bias_row(bias: Float[Array, " V"], cut: Plan) -> Float[Array, "1 P"]:
    return jnp.pad(bias.astype(jnp.float32), (0, cut.padded_vocabulary - cut.vocabulary))[None]


_NO_ROW = 1e37
"""Log-sum-exp of a slot without a row: every probability is 0 then, whatever the bias."""


def _backward_kernel(
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
    core, block, step = (pl.program_id(axis) for axis in range(3))
    last_block = extent_ref[1]
    live = jnp.clip(extent_ref[0] - block * cut.rows, 0, cut.rows)
    time, last = block * cut.tiles + step, (last_block + 1) * cut.tiles - 1
    tile = core * cut.tiles + step
    table_VD_ref, table_DV_ref = (table_ref, turned_ref) if settings.layout == "vd" else (turned_ref, table_ref)

    def written(step: Any) -> Any:
        # What the last block of rows adds goes straight into the result, where that is narrower than float32.
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
                # What lies beyond the table is anything, NaN too, and 0 x NaN is no 0.
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


def backward(
    settings: Settings,
    options: Options,
    table_dtype: Any,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    gradients: RowGradients,
) -> tuple[Array, Array, Array | None]:
    """Gradients of hidden states and bias, in float32, and of the table, in `table_dtype`, of this part of it."""
    cut = backward_plan(options, _shape(settings, hidden, weight))
    blocks, width, vocabulary = Blocks(settings, cut, bias is not None), cut.width, cut.vocabulary
    gathered = _gather(valid, cut.padded_rows)
    per_temperature = 1 / settings.temperature
    facts = [
        gathered.to_slots(gradients.lse, _NO_ROW),
        gathered.to_slots((gradients.d_lse - gradients.d_logp) * per_temperature, 0),
        gathered.to_slots(gradients.d_logp * per_temperature, 0),
    ]
    if gradients.d_entropy is not None:
        facts += [gathered.to_slots(gradients.entropy, 0), gathered.to_slots(gradients.d_entropy * per_temperature, 0)]

    padded_table = (cut.padded_vocabulary, width) if settings.layout == "vd" else (width, cut.padded_vocabulary)
    narrow = table_dtype != jnp.float32
    d_hidden, running, d_table, d_bias = pl.pallas_call(
        functools.partial(_backward_kernel, settings=settings, cut=cut),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(cut.cores, cut.blocks, cut.tiles),
            in_specs=blocks.backward_in(len(facts)),
            out_specs=blocks.backward_out(narrow),
            scratch_shapes=[
                pltpu.VMEM((width, cut.rows), jnp.float32),
                pltpu.VMEM((SLOTS, *blocks.table_shape), jnp.float32),
                None if bias is None else pltpu.VMEM((cut.vocab_tile, cut.row_tile), jnp.float32),
                pltpu.VMEM(blocks.table_shape[::-1], weight.dtype),
                None if bias is None else pltpu.VMEM((cut.vocab_tile, LANES), jnp.float32),
                pltpu.SemaphoreType.DMA((SLOTS,)),
                pltpu.SemaphoreType.DMA((SLOTS,)),
                pltpu.SemaphoreType.DMA(()),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((cut.cores, width, cut.padded_rows), jnp.float32),
            jax.ShapeDtypeStruct(padded_table, jnp.float32) if cut.blocks > 1 or not narrow else None,
            jax.ShapeDtypeStruct(weight.shape, table_dtype) if narrow else None,
            None if bias is None else jax.ShapeDtypeStruct((cut.blocks, 1, cut.padded_vocabulary), jnp.float32),
        ],
        compiler_params=_compiler_params(options),
        cost_estimate=_cost(
            cut, 3, backward_traffic(cut, weight.dtype.itemsize, narrow, len(facts), bias is not None).total
        ),
        interpret=options.interpret,
        name="token_logprob_backward",
    )(
        _extent(gathered, cut),
        gathered.to_slots(target, -1)[None],
        jnp.stack(facts),
        gathered.to_slots(hidden, 0).T,
        weight,
        None if bias is None else _bias_row(bias, cut),
    )
    d_rows = jnp.where(valid[:, None], jnp.sum(d_hidden, axis=0).T[gathered.slot], 0)
    if not narrow:
        d_table = running[:vocabulary] if settings.layout == "vd" else running[:, :vocabulary]
    if bias is not None:
        seen = jnp.arange(cut.blocks, dtype=jnp.int32) <= (gathered.live - 1) // cut.rows
        d_bias = jnp.sum(jnp.where(seen[:, None], d_bias[:, 0, :vocabulary], 0), axis=0)
    return d_rows, d_table, d_bias
