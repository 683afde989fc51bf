"""Scores of leaves on a TPU: one kernel fetches the leaf rows itself, and norms and scores them as they arrive.

A grid step is a block of leaves. While it computes, the rows of the next block are on their way. The smallest thing
that can be copied is a 32-bit sublane, so that of bfloat16 a leaf's row comes with its neighbour, the other half of the
same words; shift and mask take the right half, and make the row of no leaf zeros, before anything is multiplied.

What is known per leaf is a lane vector, [1, N]; where rows need it, a transpose turns it to one value a sublane.
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

from pit_kernels.dispatch import Interpret
from pit_kernels.gap_reward.leaves import ABSENT, Settings, gain, tokens
from pit_kernels.gap_reward.scatter_tpu import NOWHERE, scatter, vmem_bytes
from pit_kernels.gap_reward.tiles import Tiles

LANES = 128

_SLOTS = 2
"""Blocks of rows in VMEM: one arrives while the other is read."""


class Options(NamedTuple):
    """What the kernels are compiled with.

    tiles: sizes of blocks.
    cores: cores that share the leaves.
    vmem: bytes of VMEM that a kernel may take.
    interpret: whether to run in the interpreter, and how.
    """

    tiles: Tiles
    cores: int
    vmem: int
    interpret: Interpret


def refusal(options: Options, shape: tuple[int, ...], leaves: int, dtype: jnp.dtype) -> str | None:
    """Why the kernels cannot serve hidden states of `shape` [B T D] and so many leaves, or None."""
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"hidden is {dtype}, and it takes bfloat16 and float32"
    if 0 in shape or leaves == 0:
        return f"there is nothing to read in hidden states of shape {shape} at {leaves} leaves"
    if shape[2] % LANES:
        return f"hidden has width {shape[2]}, and it takes multiples of {LANES}"
    tile = 32 // dtype.itemsize
    if shape[1] % tile:
        # The rows of a batch would not lie one behind the other, and to flatten them would copy all of them.
        return f"hidden has rows of {shape[1]} tokens, and in {dtype} it takes multiples of {tile}"
    # Arriving rows, outgoing gradients twice, and a little per lane and width; or what the scatter takes.
    block, tiles = options.tiles.block, options.tiles
    rows = shape[2] * (_SLOTS * block * 4 + 2 * block * dtype.itemsize + 2 * tiles.group * 4)
    needed = max(rows, vmem_bytes(shape[2], dtype.itemsize, tiles.tokens, block)) + 2**20
    if needed > options.vmem:
        return (
            f"hidden has width {shape[2]}, for which it takes about {needed / 2**20:.0f} MiB of VMEM, more than the "
            f"{options.vmem / 2**20:.0f} that there are"
        )
    return None


def _column(row_1N: Array) -> Array:
    """[N, lanes]: what a lane vector says of a leaf, in every lane of the leaf's sublane."""
    return jnp.transpose(jnp.broadcast_to(row_1N, (LANES, row_1N.shape[1])))


class _Rows:
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
        """Groups of a block that hold a leaf."""
        first = (pl.program_id(0) * self.steps + step) * self.block
        return (jnp.clip(leaves - first, 0, self.block) + self.group - 1) >> (self.group.bit_length() - 1)

    def _arriving(self, group: Any, slot: Any) -> Any:
        size = self.group * self.pack
        return self.buffer_ref.at[slot, pl.ds(pl.multiple_of(group * size, size), size)]

    def _start(self, token_ref: Any, step: Any, leaves: int) -> None:
        slot, pack = lax.rem(step, _SLOTS), self.pack

        def ask(group: Any, carry: None) -> None:
            group_ref = self._arriving(group, slot)
            # Written out, so that where a row goes within its group costs no arithmetic.
            for i in range(self.group):
                # A leaf that is nowhere reads the first token: all leaves of a group copy, so that one wait suffices.
                token = jnp.maximum(token_ref[0, group * self.group + i], 0)
                rows = pl.ds(pl.multiple_of(token & -pack, pack), pack)
                place = group_ref.at[pl.ds(i * pack, pack)]
                pltpu.make_async_copy(self.hidden_ref.at[rows], place, self.arrive.at[slot]).start()

        lax.fori_loop(0, self._groups(step, leaves), ask, None)

    def fetch(self, here_ref: Any, next_ref: Any, leaves: int) -> None:
        """Waits for the rows of this step, and asks for those of the next.

        Args:
          here_ref: tokens of this step, as scalars.
          next_ref: tokens of the next.
          leaves: leaves of all steps; what pads the last of them is not fetched.
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
        self.slot = lax.rem(self.step, _SLOTS)

        def wait(group: Any, carry: None) -> None:
            arrived = self._arriving(group, self.slot)
            pltpu.make_async_copy(arrived, arrived, self.arrive.at[self.slot]).wait()

        lax.fori_loop(0, self._groups(self.step, leaves), wait, None)

    def read(self, group: Any, lanes: Any) -> Float[Array, "n lanes"]:
        """Rows of a group of leaves, a register wide; zeros where there is no leaf, whatever was fetched."""
        here = pl.ds(pl.multiple_of(group * self.group, self.group), self.group)
        packed = pl.ds(pl.multiple_of(group * self.group * self.pack, self.group), self.group * self.pack)
        bits = pltpu.bitcast(self.buffer_ref[self.slot, packed, lanes], jnp.int32)
        if self.pack == 2:
            bits = bits << self.shift_ref[here]
        return pltpu.bitcast(bits & self.mask_ref[here], jnp.float32)

    def measure(self, head_ref: Any, square_ref: Any, along_ref: Any) -> tuple[Array, Array]:
        """Mean of h^2 and sum of h.head of each leaf, as lane vectors."""
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


def _forward_kernel(
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
    square_ref, along_ref, *fetching = scratch
    rows = _Rows(tiles, hidden_ref, token_ref, *fetching)
    rows.fetch(here_ref, next_ref, leaves)
    square, along = rows.measure(head_ref, square_ref, along_ref)
    score = along * lax.rsqrt(square + settings.eps) + bias_ref[0]
    token = token_ref[...]
    score_ref[...] = jnp.where(token >= 0, score, jnp.where(token == ABSENT, 0.0, jnp.nan))


def _backward_kernel(
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
    square_ref, along_ref, *fetching = scratch
    rows = _Rows(tiles, hidden_ref, token_ref, *fetching)
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


class _Plan(NamedTuple):
    """How leaves are cut: `steps` blocks of `block` leaves a core. A leaf vector is [blocks, 1, block]."""

    cores: int
    steps: int
    leaves: int
    block: int

    def rows(self, x: Array, fill: int) -> Array:
        """A vector of all leaves in blocks; `fill` beyond the last leaf."""
        blocks = self.cores * self.steps
        return jnp.pad(x, (0, blocks * self.block - self.leaves), constant_values=fill).reshape(blocks, 1, self.block)

    def lanes(self) -> pl.BlockSpec:
        """A block of a leaf vector, on lanes."""
        return pl.BlockSpec((None, 1, self.block), lambda core, step: (core * self.steps + step, 0, 0))

    def scalars(self, ahead: int) -> pl.BlockSpec:
        """The block of a leaf vector that is so many steps ahead, as scalars."""

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
            pltpu.VMEM((_SLOTS, tiles.block * pack, width), hidden.dtype),
            pltpu.VMEM((tiles.block, LANES), jnp.int32) if pack == 2 else None,
            pltpu.VMEM((tiles.block, LANES), jnp.int32),
            pltpu.SemaphoreType.DMA((_SLOTS,)),
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


def forward(
    settings: Settings,
    options: Options,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None,
) -> tuple[Float[Array, "G L"]]:
    """Scores of the leaves; the contract is that of `api.leaf_scores`."""
    cut, width, dtype = _cut(options, leaf), hidden.shape[2], jnp.dtype(jnp.float32)
    token = cut.rows(tokens(hidden.shape, leaf), ABSENT)
    head_1D = (gain(settings, norm_scale, dtype) * head_weight.astype(dtype))[None]
    bias_1 = jnp.zeros((1,), dtype) if head_bias is None else head_bias.astype(dtype)[None]
    (score,) = _call(
        functools.partial(_forward_kernel, settings=settings, tiles=options.tiles, leaves=cut.leaves),
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


def backward(
    settings: Settings,
    options: Options,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    d_score: Float[Array, "G L"],
) -> tuple[Float[Array, "B T D"], Float[Array, " D"], Float[Array, " D"], Float[Array, ""]]:
    """Gradients of hidden states, in their dtype, and of norm, head and bias, in float32."""
    cut, width, dtype = _cut(options, leaf), hidden.shape[2], jnp.dtype(jnp.float32)
    token_N = tokens(hidden.shape, leaf)
    d_score_N = jnp.where(token_N != ABSENT, d_score.reshape(-1), 0)
    # The order in which the scatter reads rows; what is no token comes last and keeps its name.
    order_N, token_N, d_score_N = lax.sort((jnp.where(token_N < 0, NOWHERE, token_N), token_N, d_score_N), num_keys=1)
    gain_D, weight_D = gain(settings, norm_scale, dtype), head_weight.astype(dtype)
    token = cut.rows(token_N, ABSENT)
    blocks = cut.cores * cut.steps
    d_row, d_head = _call(
        functools.partial(_backward_kernel, settings=settings, tiles=options.tiles, leaves=cut.leaves),
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
