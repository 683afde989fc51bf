"""The derivative of the leaf scores: one custom derivative, outermost, and the same for every backend."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pit_kernels import partition
from pit_kernels.dispatch import Route
from pit_kernels.gap_reward.leaves import Settings

_Residuals = tuple[Array, Array, Array, Array, Array | None]
_Gradients = tuple[Array, None, Array, Array, Array | None]


# Inlined: XLA cannot split a function that several layers share, inside of another shard_map.
@functools.partial(jax.jit, static_argnames=("settings", "route"), inline=True)
def leaf_scores(
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None,
    settings: Settings,
    route: Route,
) -> Float[Array, "G L"]:
    """Return the scores of the leaves; the contract is that of `api.leaf_scores`."""
    return _leaf_scores(hidden, leaf, norm_scale, head_weight, head_bias, settings, route)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _leaf_scores(
    hidden: Array,
    leaf: Array,
    norm_scale: Array,
    head_weight: Array,
    head_bias: Array | None,
    settings: Settings,
    route: Route,
) -> Array:
    def run(hidden: Array, leaf: Array, *arrays: Array | None) -> tuple[Array, ...]:
        scores: tuple[Array, ...] = route.forward(settings, hidden, _local_leaf(settings, hidden, leaf), *arrays)
        return scores

    ins = ("r..", "r..", ".", ".", "")
    arrays = hidden, leaf, norm_scale, head_weight, head_bias
    scores: Array = partition.split(run, settings.partition, ins, ("r.",))(*arrays)[0]
    return scores


def _fwd(
    hidden: Array,
    leaf: Array,
    norm_scale: Array,
    head_weight: Array,
    head_bias: Array | None,
    settings: Settings,
    route: Route,
) -> tuple[Array, _Residuals]:
    arrays = hidden, leaf, norm_scale, head_weight, head_bias
    return _leaf_scores(*arrays, settings, route), arrays


def _bwd(settings: Settings, route: Route, residuals: _Residuals, d_score: Array) -> _Gradients:
    hidden, leaf, norm_scale, head_weight, head_bias = residuals
    rows = settings.partition.rows

    def run(hidden: Array, leaf: Array, *arrays: Array) -> tuple[Array, ...]:
        leaf = _local_leaf(settings, hidden, leaf)
        d_hidden, *d_shared = route.backward(settings, hidden, leaf, *arrays)
        # Every shard has read its own leaves with the same norm and head.
        return d_hidden, *(lax.psum(d_shared, rows) if rows else d_shared)

    ins, outs = ("r..", "r..", ".", ".", "r."), ("r..", ".", ".", "")
    d_hidden, d_scale, d_weight, d_bias = partition.split(run, settings.partition, ins, outs)(
        hidden, leaf, norm_scale, head_weight, d_score
    )
    d_bias_or_none = None if head_bias is None else d_bias.astype(head_bias.dtype)
    return d_hidden, None, d_scale.astype(norm_scale.dtype), d_weight.astype(head_weight.dtype), d_bias_or_none


_leaf_scores.defvjp(_fwd, _bwd)


def _local_leaf(settings: Settings, hidden: Array, leaf: Array) -> Array:
    """Return the leaves with rows that count from the first of this shard; other shards' point past its last."""
    if not settings.partition.rows:
        return leaf
    rows = hidden.shape[0]
    row = leaf[..., 0] - lax.axis_index(settings.partition.rows) * rows
    row = jnp.where((row < 0) | (row >= rows), rows, row)
    return jnp.stack([jnp.where(leaf[..., 0] < 0, -1, row), leaf[..., 1]], axis=-1)
