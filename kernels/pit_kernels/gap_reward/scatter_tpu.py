"""Gradients of leaf rows to their tokens on a TPU: every block of tokens is written once, zeros and rows together.

Leaves come sorted by token, so the leaves of a block of tokens are contiguous. A grid step is a block of
tokens with one window of leaves; a block with leaves in several windows takes several steps and stays in VMEM.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pit_kernels.dispatch import Interpret

LANES = 128

NOWHERE = 2**31 - 1
"""Token of an absent leaf among sorted leaves: it comes last and adds nothing."""

_GROUP = 16
"""Tokens that are read and written back where a row is added: a tile of bfloat16."""


class Steps(NamedTuple):
    """The work of each grid step of each core, [cores * steps].

    block: its block of tokens.
    window: its window of leaves.
    low, high: its leaves, counted from the first of all; none where they are equal.
    """

    block: Int32[Array, " S"]
    window: Int32[Array, " S"]
    low: Int32[Array, " S"]
    high: Int32[Array, " S"]


def steps(token_N: Int32[Array, " N"], blocks: int, tokens: int, window: int, cores: int) -> Steps:
    """Return the grid steps of sorted leaves; every block of `tokens` tokens has at least one."""
    share = -(-blocks // cores)
    edge = jnp.arange(blocks + 1, dtype=jnp.int32) * tokens
    before = jnp.sum(token_N[None, :] < edge[:, None], axis=1, dtype=jnp.int32)
    # Cores have equal shares; the last is filled up with blocks of no leaves.
    low, high = (jnp.pad(x, (0, cores * share - blocks)).reshape(cores, share) for x in (before[:-1], before[1:]))
    first = low // window
    number = jnp.where(high > low, (high - 1) // window - first + 1, 1)
    end = jnp.cumsum(number, axis=1, dtype=jnp.int32)
    step = jnp.arange(share + token_N.size // window, dtype=jnp.int32)
    block = jnp.sum(end[:, None, :] <= step[None, :, None], axis=2, dtype=jnp.int32)
    # Steps that are left over stay at the last block, with no leaves.
    over, block = block >= share, jnp.minimum(block, share - 1)

    def of_block(x: Array) -> Array:
        # By comparison, not by gathering: the table is small, and a gather takes a pass of its own.
        matches = block[:, :, None] == jnp.arange(share, dtype=jnp.int32)[None, None, :]
        return jnp.sum(jnp.where(matches, x[:, None, :], 0), axis=2, dtype=jnp.int32)

    at = jnp.minimum(of_block(first) + step[None] - of_block(end - number), token_N.size // window - 1)
    low = jnp.maximum(of_block(low), at * window)
    high = jnp.where(over, low, jnp.minimum(of_block(high), (at + 1) * window))
    real = jnp.minimum(block + jnp.arange(cores, dtype=jnp.int32)[:, None] * share, blocks - 1)
    return Steps(*(x.reshape(-1).astype(jnp.int32) for x in (real, at, low, jnp.maximum(high, low))))


def vmem_bytes(width: int, itemsize: int, tokens: int, window: int) -> int:
    """Return VMEM that the kernel takes: a block of tokens and a window of leaves, each twice."""
    return 2 * (tokens + window) * width * itemsize


def scatter(
    shape: tuple[int, ...],
    token: Int32[Array, " N"],
    d_row: Float[Array, "N D"],
    *,
    tokens: int,
    window: int,
    cores: int,
    vmem: int,
    interpret: Interpret,
) -> Float[Array, "B T D"]:
    """Return the gradients of the tokens, of the shape of the hidden states, from those of the leaf rows.

    Args:
      shape: of the hidden states.
      token: index of each leaf into the flattened tokens, ascending; NOWHERE for an absent leaf. Equal ones add up.
      d_row: gradients of the leaf rows.
      tokens: tokens of a block.
      window: leaves of a window; divides their number.
      cores: cores that share the blocks.
      vmem: bytes of VMEM that a kernel may take.
      interpret: whether to run in the interpreter, and how.
    """
    total, width = shape[0] * shape[1], shape[2]
    tokens = min(tokens, -(-total // _GROUP) * _GROUP)
    blocks = -(-total // tokens)
    cores = min(cores, blocks)
    plan = steps(token, blocks, tokens, window, cores)
    grid = cores, plan.block.size // cores

    def place(core: Any, step: Any) -> Any:
        return core * grid[1] + step

    call: Any = pl.pallas_call(
        functools.partial(_kernel, steps=grid[1], tokens=tokens, window=window),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(plan),
            grid=grid,
            in_specs=[
                pl.BlockSpec(
                    (None, 1, window), lambda c, s, block, at, *_: (at[place(c, s)], 0, 0), memory_space=pltpu.SMEM
                ),
                pl.BlockSpec((window, width), lambda c, s, block, at, *_: (at[place(c, s)], 0)),
            ],
            out_specs=pl.BlockSpec((tokens, width), lambda c, s, block, *_: (block[place(c, s)], 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((total, width), d_row.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem, disable_bounds_checks=True
        ),
        cost_estimate=pl.CostEstimate(
            flops=d_row.size,
            transcendentals=0,
            bytes_accessed=(math.prod(shape) + d_row.size) * d_row.dtype.itemsize + token.size * 4,
        ),
        interpret=interpret,
        name="leaf_scores_scatter",
    )
    d_hidden: Array = call(*plan, token.reshape(-1, 1, window), d_row)
    return d_hidden.reshape(shape)


def _kernel(
    block_ref: Any,
    window_ref: Any,
    low_ref: Any,
    high_ref: Any,
    token_ref: Any,
    d_row_ref: Any,
    out_ref: Any,
    *,
    steps: int,
    tokens: int,
    window: int,
) -> None:
    core, step = pl.program_id(0), pl.program_id(1)
    at = core * steps + step
    block, first = block_ref[at], window_ref[at] * window

    @pl.when((step == 0) | (block != block_ref[jnp.maximum(at - 1, 0)]))
    def _clear() -> None:
        out_ref[...] = jnp.zeros(out_ref.shape, out_ref.dtype)

    def add(leaf: Array, carry: None) -> None:
        place = leaf - first
        token = token_ref[0, place] - block * tokens
        here, there = (pl.ds(pl.multiple_of(x & -_GROUP, _GROUP), _GROUP) for x in (token, place))
        its = lax.broadcasted_iota(jnp.int32, (_GROUP, LANES), 0) == token & (_GROUP - 1)
        for lane in range(0, out_ref.shape[1], LANES):
            lanes = pl.ds(lane, LANES)
            # Only whole tiles have an address: the row is turned to where its token lies in a tile of gradients.
            rows = pltpu.roll(d_row_ref[there, lanes].astype(jnp.float32), (token - place) & (_GROUP - 1), 0)
            old = out_ref[here, lanes].astype(jnp.float32)
            out_ref[here, lanes] = jnp.where(its, old + rows, old).astype(out_ref.dtype)

    lax.fori_loop(low_ref[at], high_ref[at], add, None)
