"""The settings and the leaves of the operation, and the work around the leaf rows that backends share."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels.dispatch import Interpret
from pit_kernels.gap_reward.tiles import Tiles
from pit_kernels.partition import WHOLE, Partition

ABSENT = -1
"""Token of a leaf that is not there: it scores 0."""

OUTSIDE = -2
"""Token of a leaf outside the rows: it scores NaN."""


class Settings(NamedTuple):
    """Static settings of a call.

    eps: term added to the mean square.
    offset_norm: whether the gain is 1 + norm_scale.
    tiles: block sizes of the TPU kernels; None for those of the committed table.
    interpret: False, or the parameters of the interpreter.
    partition: mesh axes that split rows and trees, restricted to the mesh in context.
    """

    eps: float
    offset_norm: bool
    tiles: Tiles | None = None
    interpret: Interpret = False
    partition: Partition = WHOLE


def tokens(shape: tuple[int, ...], leaf: Int32[Array, "G L 2"]) -> Int32[Array, " N"]:
    """Return the index of each leaf into the flattened tokens of `shape` [B T D], or ABSENT or OUTSIDE."""
    row_N, index_N = leaf[..., 0].reshape(-1), leaf[..., 1].reshape(-1)
    inside_N = (row_N < shape[0]) & (index_N < shape[1])
    token_N = jnp.where(inside_N, row_N * shape[1] + index_N, OUTSIDE)
    return jnp.where((row_N < 0) | (index_N < 0), ABSENT, token_N)


def gain(settings: Settings, norm_scale: Float[Array, " D"], dtype: jnp.dtype) -> Float[Array, " D"]:
    """Return the factor of the norm, in `dtype`."""
    return norm_scale.astype(dtype) + (1 if settings.offset_norm else 0)


def scatter(shape: tuple[int, ...], token: Int32[Array, " N"], d_row: Float[Array, "N D"]) -> Float[Array, "B T D"]:
    """Return the gradients of the tokens, of the shape and dtype of the hidden states, from those of the leaf rows."""
    beyond = shape[0] * shape[1]
    d_hidden = jnp.zeros((beyond, shape[2]), d_row.dtype)
    # Leaves of one token add up. An absent leaf gets an index past the last token and is dropped.
    return d_hidden.at[jnp.where(token < 0, beyond, token)].add(d_row, mode="drop").reshape(shape)
