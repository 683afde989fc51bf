"""Scores of leaves in plain XLA: gather the leaf rows, then norm and head on those rows alone."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pit_kernels import numerics


def leaf_scores(
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None,
    eps: float,
    offset_norm: bool,
) -> Float[Array, "G L"]:
    """Scores of the leaves; the contract is that of `api.leaf_scores`."""
    accumulator = numerics.accumulator(hidden)
    present_GL = jnp.all(leaf >= 0, axis=-1)
    row_GL, index_GL = (jnp.where(present_GL, leaf[..., axis], 0) for axis in (0, 1))
    leaf_GLD = hidden.at[row_GL, index_GL].get(mode="fill", fill_value=jnp.nan)
    leaf_GLD = jnp.where(present_GL[..., None], leaf_GLD, 0).astype(accumulator)
    mean_square_GL1 = jnp.mean(leaf_GLD**2, axis=-1, keepdims=True)
    gain_D = norm_scale.astype(accumulator) + (1 if offset_norm else 0)
    normed_GLD = leaf_GLD * lax.rsqrt(mean_square_GL1 + eps) * gain_D[None, None, :]
    score_GL = jnp.sum(normed_GLD * head_weight.astype(accumulator)[None, None, :], axis=-1)
    if head_bias is not None:
        score_GL = score_GL + head_bias.astype(accumulator)
    return jnp.where(present_GL, score_GL, 0)
