"""Scores of leaves on a TPU: one kernel fetches the leaf rows itself, and norms and scores them as they arrive.

A grid step is a block of leaves. While it computes, the rows of the next block are on their way. The smallest unit that
can be copied is a 32-bit sublane, so a row of bfloat16 arrives with its neighbour in the other half of the same words.
A shift and a mask select the right half, and zero the rows of absent leaves, before anything is multiplied.

Values per leaf are lane vectors, [1, N]; where rows need them, a transpose gives one value per sublane.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pit_kernels import device
from pit_kernels.dispatch import Backend, Interpret, one_by_one
from pit_kernels.gap_reward.kernels_tpu import LANES, SLOTS, backward_kernel, forward_kernel
from pit_kernels.gap_reward.leaves import ABSENT, Settings, gain, tokens
from pit_kernels.gap_reward.scatter_tpu import NOWHERE, scatter, vmem_bytes
from pit_kernels.gap_reward.tiles import Tiles, default_tiles


class Options(NamedTuple):
    """Static options of the kernels.

    tiles: sizes of blocks.
    cores: cores that share the leaves.
    vmem: bytes of VMEM that a kernel may take.
    interpret: whether to run in the interpreter, and how.
    """

    tiles: Tiles
    cores: int
    vmem: int
    interpret: Interpret


def refuses(
    settings: Settings,
    hidden: Array,
    leaf: Array,
    norm_scale: Array,
    head_weight: Array,
    head_bias: Array | None,
) -> str | None:
    """Return why the kernels cannot serve a call, or None."""
    shape, leaves, dtype = hidden.shape, leaf.shape[0] * leaf.shape[1], hidden.dtype
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"hidden is {dtype}, and it takes bfloat16 and float32"
    if 0 in shape or leaves == 0:
        return f"there is nothing to read in hidden states of shape {shape} at {leaves} leaves"
    if shape[2] % LANES:
        return f"hidden has width {shape[2]}, and it takes multiples of {LANES}"
    tile = 32 // dtype.itemsize
    if shape[1] % tile:
        # The rows of a batch would not be contiguous, and flattening them would copy all of them.
        return f"hidden has rows of {shape[1]} tokens, and in {dtype} it takes multiples of {tile}"
    # Arriving rows, outgoing gradients twice, and a little per lane and width; or the scatter's blocks.
    options = _options(settings, hidden)
    block, tiles = options.tiles.block, options.tiles
    rows = shape[2] * (SLOTS * block * 4 + 2 * block * dtype.itemsize + 2 * tiles.group * 4)
    needed = max(rows, vmem_bytes(shape[2], dtype.itemsize, tiles.tokens, block)) + 2**20
    if needed > options.vmem:
        return (
            f"hidden has width {shape[2]}, for which it takes about {needed / 2**20:.0f} MiB of VMEM, more than the "
            f"{options.vmem / 2**20:.0f} available"
        )
    return None


def _options(settings: Settings, hidden: Array) -> Options:
    """Return the options for the kind of TPU that the program is traced for."""
    tiles = settings.tiles or default_tiles(hidden.shape[2], hidden.dtype)
    return Options(tiles, device.cores(), device.vmem_bytes(), settings.interpret)


def forward(
    settings: Settings,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None,
) -> tuple[Float[Array, "G L"]]:
    """Return the scores of the leaves; the contract is that of `api.leaf_scores`."""
    run = one_by_one(functools.partial(_forward, settings, _options(settings, hidden)))
    return run(hidden, leaf, norm_scale, head_weight, head_bias)


def backward(
    settings: Settings,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    d_score: Float[Array, "G L"],
) -> tuple[Float[Array, "B T D"], Float[Array, " D"], Float[Array, " D"], Float[Array, ""]]:
    """Return the gradients of hidden states, in their dtype, and of norm, head and bias, in float32."""
    run = one_by_one(functools.partial(_backward, settings, _options(settings, hidden)))
    return run(hidden, leaf, norm_scale, head_weight, d_score)


BACKEND = Backend("pallas_tpu", ("tpu",), refuses, forward, backward, interpreted=True)


class _Plan(NamedTuple):
    """A cut of leaves: `steps` blocks of `block` leaves per core. A leaf vector is [blocks, 1, block]."""

    cores: int
    steps: int
    leaves: int
    block: int

    def rows(self, x: Array, fill: int) -> Array:
        """Return a vector of all leaves in blocks; `fill` beyond the last leaf."""
        blocks = self.cores * self.steps
        return jnp.pad(x, (0, blocks * self.block - self.leaves), constant_values=fill).reshape(blocks, 1, self.block)

    def lanes(self) -> pl.BlockSpec:
        """Return a block of a leaf vector, on lanes."""
        return pl.BlockSpec((None, 1, self.block), lambda core, step: (core * self.steps + step, 0, 0))

    def scalars(self, ahead: int) -> pl.BlockSpec:
        """Return the block of a leaf vector `ahead` steps later, as scalars."""

        def index(core: Any, step: Any) -> tuple[Any, int, int]:
            return core * self.steps + jnp.minimum(step + ahead, self.steps - 1), 0, 0

        return pl.BlockSpec((None, 1, self.block), index, memory_space=pltpu.SMEM)


def _whole(width: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, width), lambda core, step: (0, 0))


def _call(
    kernel: Callable[..., None],
    options: Options,
    hidden: Array,
    cut: _Plan,
    in_specs: list[pl.BlockSpec],
    out_specs: list[pl.BlockSpec],
    out_shape: list[jax.ShapeDtypeStruct],
    name: str,
) -> Callable[..., Any]:
    width, pack = hidden.shape[2], 4 // hidden.dtype.itemsize
    tiles = options.tiles
    padded = cut.cores * cut.steps * cut.block
    written = sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in out_shape)
    call: Callable[..., Any] = pl.pallas_call(
        kernel,
        grid=(cut.cores, cut.steps),
        in_specs=[*in_specs, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            *(pltpu.VMEM((tiles.block, LANES), jnp.float32) for _ in range(2)),
            pltpu.VMEM((SLOTS, tiles.block * pack, width), hidden.dtype),
            pltpu.VMEM((tiles.block, LANES), jnp.int32) if pack == 2 else None,
            pltpu.VMEM((tiles.block, LANES), jnp.int32),
            pltpu.SemaphoreType.DMA((SLOTS,)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=options.vmem,
            # No address is out of bounds by construction, and the checks were half of the work of asking for a row.
            disable_bounds_checks=True,
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * len(out_shape) * padded * width,
            transcendentals=padded,
            bytes_accessed=padded * width * 4 + written + len(in_specs) * padded * 4,
        ),
        interpret=options.interpret,
        name=name,
    )
    return call


def _cut(options: Options, leaf: Int32[Array, "G L 2"]) -> _Plan:
    leaves = leaf.shape[0] * leaf.shape[1]
    blocks = -(-leaves // options.tiles.block)
    cores = min(options.cores, blocks)
    return _Plan(cores, -(-blocks // cores), leaves, options.tiles.block)


def _forward(
    settings: Settings,
    options: Options,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None,
) -> tuple[Float[Array, "G L"]]:
    """Return the scores of the leaves with given options."""
    cut, width, dtype = _cut(options, leaf), hidden.shape[2], jnp.dtype(jnp.float32)
    token = cut.rows(tokens(hidden.shape, leaf), ABSENT)
    head_1D = (gain(settings, norm_scale, dtype) * head_weight.astype(dtype))[None]
    bias_1 = jnp.zeros((1,), dtype) if head_bias is None else head_bias.astype(dtype)[None]
    (score,) = _call(
        functools.partial(forward_kernel, settings=settings, tiles=options.tiles, leaves=cut.leaves),
        options,
        hidden,
        cut,
        [
            *(cut.scalars(ahead) for ahead in range(2)),
            pl.BlockSpec(memory_space=pltpu.SMEM),
            cut.lanes(),
            _whole(width),
        ],
        [cut.lanes()],
        [jax.ShapeDtypeStruct(token.shape, dtype)],
        "leaf_scores_forward",
    )(token, token, bias_1, token, head_1D, hidden.reshape(-1, width))
    return (score.reshape(-1)[: cut.leaves].reshape(leaf.shape[:2]),)


def _backward(
    settings: Settings,
    options: Options,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    d_score: Float[Array, "G L"],
) -> tuple[Float[Array, "B T D"], Float[Array, " D"], Float[Array, " D"], Float[Array, ""]]:
    """Return the gradients with given options."""
    cut, width, dtype = _cut(options, leaf), hidden.shape[2], jnp.dtype(jnp.float32)
    token_N = tokens(hidden.shape, leaf)
    d_score_N = jnp.where(token_N != ABSENT, d_score.reshape(-1), 0)
    # The order in which the scatter reads rows; absent and outside leaves come last and keep their index.
    order_N, token_N, d_score_N = lax.sort((jnp.where(token_N < 0, NOWHERE, token_N), token_N, d_score_N), num_keys=1)
    gain_D, weight_D = gain(settings, norm_scale, dtype), head_weight.astype(dtype)
    token = cut.rows(token_N, ABSENT)
    blocks = cut.cores * cut.steps
    d_row, d_head = _call(
        functools.partial(backward_kernel, settings=settings, tiles=options.tiles, leaves=cut.leaves),
        options,
        hidden,
        cut,
        [*(cut.scalars(ahead) for ahead in range(2)), cut.lanes(), cut.lanes(), _whole(width)],
        [
            pl.BlockSpec((cut.block, width), lambda core, step: (core * cut.steps + step, 0)),
            pl.BlockSpec((None, options.tiles.group, width), lambda core, step: (core, 0, 0)),
        ],
        [
            jax.ShapeDtypeStruct((blocks * cut.block, width), hidden.dtype),
            jax.ShapeDtypeStruct((cut.cores, options.tiles.group, width), dtype),
        ],
        "leaf_scores_backward",
    )(token, token, token, cut.rows(d_score_N, 0), (gain_D * weight_D)[None], hidden.reshape(-1, width))
    d_hidden = scatter(
        hidden.shape,
        cut.rows(order_N, NOWHERE).reshape(-1),
        d_row,
        tokens=options.tiles.tokens,
        window=cut.block,
        cores=options.cores,
        vmem=options.vmem,
        interpret=options.interpret,
    )
    d_head_D = jnp.sum(d_head, axis=(0, 1))
    return d_hidden, d_head_D * weight_D, d_head_D * gain_D, jnp.sum(d_score_N)
