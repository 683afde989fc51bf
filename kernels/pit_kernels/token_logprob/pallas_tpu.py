"""Log-probabilities of chosen tokens on a TPU: the logits live in VMEM only, one tile at a time.

Forward: a block of rows stays in VMEM while the vocabulary passes by once, in an online log-sum-exp. Backward: one
sweep yields both gradients. That of the block of rows stays in VMEM in float32; that of the table lies in HBM in
float32, and a tile of it is fetched, added to and put back while its neighbours are computed. The logits are recomputed
once. Valid rows are first gathered to the front, so invalid rows cost nothing.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import device
from pit_kernels.dispatch import Backend, Interpret, one_by_one
from pit_kernels.token_logprob.blocks import Blocks
from pit_kernels.token_logprob.kernels_tpu import backward_kernel, forward_kernel
from pit_kernels.token_logprob.plan import (
    LANES,
    SUBLANES,
    Plan,
    backward_traffic,
    backward_vmem,
    forward_traffic,
    forward_vmem,
    plan,
)
from pit_kernels.token_logprob.ring import SLOTS
from pit_kernels.token_logprob.settings import Partials, RowGradients, Settings
from pit_kernels.token_logprob.tiles import Tiles, default


@dataclass(frozen=True)
class Options:
    """Static options of the kernels.

    tiles: blocks and tiles.
    cores: cores that share the vocabulary.
    vmem: bytes of VMEM that a kernel may take.
    interpret: whether to run in the interpreter, and how.
    """

    tiles: Tiles
    cores: int
    vmem: int
    interpret: Interpret


def refuses(
    settings: Settings, hidden: Array, weight: Array, target: Array, valid: Array, bias: Array | None
) -> str | None:
    """Return why the kernels cannot serve a call, or None; the arrays are those of all shards together."""
    rows, width, vocabulary = _shape(settings, hidden, weight)
    split, dtype = settings.partition, hidden.dtype
    shape = rows // split.shards("r"), width, vocabulary // split.shards("c")
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"the arrays are {dtype}, and it takes bfloat16 and float32"
    if 0 in shape:
        return f"there is nothing to compute in {shape[0]} rows of width {shape[1]} and {shape[2]} columns"
    if settings.tiles is None and default(width, dtype) is None:
        return f"the table of tiles has none for a width of {width} in {dtype} on {device.kind()}; give tiles"
    options = options_of(settings, width, dtype)
    needed = max(
        forward_vmem(forward_plan(options, shape), dtype.itemsize),
        backward_vmem(backward_plan(options, shape), dtype.itemsize),
    )
    if needed > options.vmem:
        return (
            f"{options.tiles} take about {needed / 2**20:.0f} MiB of VMEM at a width of {width}, and {device.kind()} "
            f"lends {options.vmem / 2**20:.0f}; give smaller tiles"
        )
    return None


def options_of(settings: Settings, width: int, dtype: jnp.dtype) -> Options:
    """Return the options for the kind of TPU that the program is traced for; `refuses` has checked the tiles."""
    tiles = settings.tiles or default(width, dtype)
    assert tiles is not None
    return Options(tiles, device.cores(), device.vmem_bytes(), settings.interpret)


def forward(
    settings: Settings,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
) -> Partials:
    """Return the statistics of each row over this part of the vocabulary; arguments as in `autodiff.logprob`."""
    options = options_of(settings, hidden.shape[1], hidden.dtype)
    return run_forward(settings, options, hidden, weight, target, valid, bias)


def backward(
    settings: Settings,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    gradients: RowGradients,
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of hidden states and bias, in float32, and of this part of the table."""
    options = options_of(settings, hidden.shape[1], hidden.dtype)
    run = one_by_one(functools.partial(run_backward, settings, options))
    return run(hidden, weight, target, valid, bias, gradients)


BACKEND = Backend("pallas_tpu", ("tpu",), refuses, forward, backward, interpreted=True)


class _Gathered(NamedTuple):
    """Rows with the valid ones first.

    slot: slot of each row; any slot for an invalid one.
    order: row of each slot.
    live: slots that hold a valid row.
    """

    slot: Int32[Array, " M"]
    order: Int32[Array, " P"]
    live: Int32[Array, ""]

    def to_slots(self, x: Array, fill: Any) -> Array:
        """Turn [M, ...] to [P, ...], with `fill` where there is no valid row."""
        here = jnp.arange(self.order.shape[0], dtype=jnp.int32) < self.live
        return jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), x[self.order], jnp.asarray(fill, x.dtype))


def _gather(valid: Bool[Array, " M"], slots: int) -> _Gathered:
    order = jnp.argsort(~valid, stable=True).astype(jnp.int32)
    slot = jnp.cumsum(valid.astype(jnp.int32), dtype=jnp.int32) - 1
    return _Gathered(jnp.maximum(slot, 0), jnp.pad(order, (0, slots - order.shape[0])), slot[-1] + 1)


def forward_plan(options: Options, shape: tuple[int, int, int]) -> Plan:
    """Return the blocks of the forward kernel for M rows, width D and V columns."""
    sizes = options.tiles.rows, options.tiles.row_tile, options.tiles.vocab_tile
    return plan(shape, sizes, options.cores)


def backward_plan(options: Options, shape: tuple[int, int, int]) -> Plan:
    """Return the blocks of the backward kernel for M rows, width D and V columns."""
    sizes = options.tiles.grad_rows, options.tiles.grad_row_tile, options.tiles.grad_vocab_tile
    return plan(shape, sizes, options.cores)


def run_forward(
    settings: Settings,
    options: Options,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
) -> Partials:
    """Return the statistics of each row over this part of the vocabulary; arguments as in `autodiff.logprob`."""
    cut = forward_plan(options, _shape(settings, hidden, weight))
    blocks, width = Blocks(settings, cut, bias is not None), cut.width
    gathered = _gather(valid, cut.padded_rows)

    state = pltpu.VMEM((SUBLANES, cut.rows), jnp.float32)
    out = pl.pallas_call(
        functools.partial(forward_kernel, settings=settings, cut=cut),
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
    """Return M, D and V."""
    rows, width = hidden.shape
    return rows, width, weight.shape[settings.vocabulary_axis]


def _cost(cut: Plan, products: int, bytes_accessed: int) -> pl.CostEstimate:
    """Return the cost of a sweep with `products` products of rows, columns and width, as if every row were valid."""
    logits = cut.padded_rows * cut.vocabulary
    return pl.CostEstimate(
        flops=2 * products * logits * cut.width, transcendentals=logits, bytes_accessed=bytes_accessed
    )


def _extent(gathered: _Gathered, cut: Plan) -> Int32[Array, "2"]:
    """Return the live slots, and the last block that holds one."""
    return jnp.stack([gathered.live, jnp.maximum((gathered.live - 1) // cut.rows, 0)])


def _bias_row(bias: Float[Array, " V"], cut: Plan) -> Float[Array, "1 P"]:
    return jnp.pad(bias.astype(jnp.float32), (0, cut.padded_vocabulary - cut.vocabulary))[None]


_NO_ROW = 1e37
"""Log-sum-exp of a slot without a row: every probability is 0 then, whatever the bias."""


def run_backward(
    settings: Settings,
    options: Options,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    gradients: RowGradients,
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of hidden states and bias, in float32, and of this part of the table."""
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
    table_dtype = settings.table_gradient_dtype(weight, gradients.lse)
    narrow = table_dtype != jnp.float32
    d_hidden, running, d_table, d_bias = pl.pallas_call(
        functools.partial(backward_kernel, settings=settings, cut=cut),
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
        visited = jnp.arange(cut.blocks, dtype=jnp.int32) <= (gathered.live - 1) // cut.rows
        d_bias = jnp.sum(jnp.where(visited[:, None], d_bias[:, 0, :vocabulary], 0), axis=0)
    return d_rows, d_table, d_bias
