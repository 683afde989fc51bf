"""Scores of leaves in plain XLA: gather the leaf rows, then norm and head on those rows alone.

Leaves are one axis here, [N] = [G L]: arrays of [G, L, D] would pad L to the eight sublanes of a register.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import numerics
from pit_kernels.dispatch import OTHERS, Backend, serves_all
from pit_kernels.gap_reward.leaves import ABSENT, Settings, gain, scatter, tokens


class _Leaves(NamedTuple):
    """Leaf rows, read.

    row: hidden state; 0 for an absent leaf, NaN for one outside the rows.
    inverse_rms: 1 / sqrt(mean(h^2) + eps).
    token: index into the flattened tokens, ABSENT or OUTSIDE.
    present: whether there is a leaf.
    """

    row: Float[Array, "N D"]
    inverse_rms: Float[Array, "N 1"]
    token: Int32[Array, " N"]
    present: Bool[Array, " N"]


def _read(settings: Settings, hidden: Float[Array, "B T D"], leaf: Int32[Array, "G L 2"]) -> _Leaves:
    token_N = tokens(hidden.shape, leaf)
    present_N = token_N != ABSENT
    beyond = hidden.shape[0] * hidden.shape[1]
    row_ND = hidden.reshape(beyond, hidden.shape[2])
    row_ND = row_ND.at[jnp.where(token_N < 0, beyond, token_N)].get(mode="fill", fill_value=jnp.nan)
    row_ND = jnp.where(present_N[:, None], row_ND, 0).astype(numerics.accumulator(hidden))
    inverse_rms_N1 = lax.rsqrt(jnp.mean(row_ND**2, axis=1, keepdims=True) + settings.eps)
    return _Leaves(row_ND, inverse_rms_N1, token_N, present_N)


def forward(
    settings: Settings,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None,
) -> tuple[Float[Array, "G L"]]:
    """Return the scores of the leaves; the contract is that of `api.leaf_scores`."""
    leaves = _read(settings, hidden, leaf)
    dtype = leaves.row.dtype
    head_D = gain(settings, norm_scale, dtype) * head_weight.astype(dtype)
    score_N = jnp.sum(leaves.row * leaves.inverse_rms * head_D[None, :], axis=1)
    if head_bias is not None:
        score_N = score_N + head_bias.astype(dtype)
    return (jnp.where(leaves.present, score_N, 0).reshape(leaf.shape[:2]),)


def backward(
    settings: Settings,
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    d_score: Float[Array, "G L"],
) -> tuple[Float[Array, "B T D"], Float[Array, " D"], Float[Array, " D"], Float[Array, ""]]:
    """Return the gradients of hidden states, in their dtype, and of norm, head and bias, in float32 (float64 stays)."""
    leaves = _read(settings, hidden, leaf)
    dtype, width = leaves.row.dtype, hidden.shape[2]
    gain_D, weight_D = gain(settings, norm_scale, dtype), head_weight.astype(dtype)
    head_1D = (gain_D * weight_D)[None, :]
    d_score_N = jnp.where(leaves.present, d_score.reshape(-1), 0)
    # score = r h.u with r = (mean(h^2) + eps)^-1/2 and u = gain * weight: d score / d h = r u - r^3 (h.u) h / D.
    d_scaled_N1 = d_score_N[:, None] * leaves.inverse_rms
    along_N1 = jnp.sum(leaves.row * head_1D, axis=1, keepdims=True) * leaves.inverse_rms**2 / width
    d_row_ND = d_scaled_N1 * (head_1D - along_N1 * leaves.row)
    d_head_D = jnp.sum(d_scaled_N1 * leaves.row, axis=0)
    d_hidden = scatter(hidden.shape, leaves.token, d_row_ND.astype(hidden.dtype))
    return d_hidden, d_head_D * weight_D, d_head_D * gain_D, jnp.sum(d_score_N)


BACKEND = Backend("xla", (OTHERS,), serves_all, forward, backward)
