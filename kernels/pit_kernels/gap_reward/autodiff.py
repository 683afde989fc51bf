"""The derivative of the operation: one custom derivative, outermost, and the same for every backend."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pit_kernels import dispatch, partition
from pit_kernels.gap_reward import pallas_tpu, xla
from pit_kernels.gap_reward.leaves import Settings

_Backends = dict[dispatch.Backend, Callable[..., Any]]
_Residuals = tuple[Array, Array, Array, Array, Array | None]
_Gradients = tuple[Array, None, Array, Array, Array | None]


class Call(NamedTuple):
    """All that is static.

    settings: what is computed.
    route: which backend computes it where.
    split: mesh axes that split rows and trees, restricted to the mesh in context.
    options: of the TPU kernels.
    """

    settings: Settings
    route: dispatch.Route
    split: partition.Partition
    options: pallas_tpu.Options


@functools.partial(jax.jit, static_argnames="call")
def leaf_scores(
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None,
    call: Call,
) -> Float[Array, "G L"]:
    """Scores of the leaves; the contract is that of `api.leaf_scores`."""
    return _leaf_scores(hidden, leaf, norm_scale, head_weight, head_bias, call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _leaf_scores(
    hidden: Array, leaf: Array, norm_scale: Array, head_weight: Array, head_bias: Array | None, call: Call
) -> Array:
    function = functools.partial(_local_forward, call)
    ins = ("r..", "r..", ".", ".", "")
    arrays = hidden, leaf, norm_scale, head_weight, head_bias
    scores: Array = partition.split(function, call.split, ins, ("r.",))(*arrays)[0]
    return scores


def _fwd(
    hidden: Array, leaf: Array, norm_scale: Array, head_weight: Array, head_bias: Array | None, call: Call
) -> tuple[Array, _Residuals]:
    arrays = hidden, leaf, norm_scale, head_weight, head_bias
    return _leaf_scores(*arrays, call), arrays


def _bwd(call: Call, residuals: _Residuals, d_score: Array) -> _Gradients:
    hidden, leaf, norm_scale, head_weight, head_bias = residuals
    function = functools.partial(_local_backward, call)
    d_hidden, d_scale, d_weight, d_bias = partition.split(
        function, call.split, ("r..", "r..", ".", ".", "r."), ("r..", ".", ".", "")
    )(hidden, leaf, norm_scale, head_weight, d_score)
    d_bias_or_none = None if head_bias is None else d_bias.astype(head_bias.dtype)
    return d_hidden, None, d_scale.astype(norm_scale.dtype), d_weight.astype(head_weight.dtype), d_bias_or_none


_leaf_scores.defvjp(_fwd, _bwd)


def _local_leaf(call: Call, hidden: Array, leaf: Array) -> Array:
    """Leaves with rows that count from the first of this shard; those of other shards are past its last row."""
    if not call.split.rows:
        return leaf
    rows = hidden.shape[0]
    row = leaf[..., 0] - lax.axis_index(call.split.rows) * rows
    row = jnp.where((row < 0) | (row >= rows), rows, row)
    return jnp.stack([jnp.where(leaf[..., 0] < 0, -1, row), leaf[..., 1]], axis=-1)


def _local_forward(call: Call, hidden: Array, leaf: Array, *arrays: Array | None) -> tuple[Array, ...]:
    backends: _Backends = {
        "pallas_tpu": dispatch.one_by_one(functools.partial(pallas_tpu.forward, call.settings, call.options)),
        "xla": functools.partial(xla.forward, call.settings),
    }
    leaf = _local_leaf(call, hidden, leaf)
    result: tuple[Array, ...] = dispatch.run(call.route, backends, hidden, leaf, *arrays)
    return result


def _local_backward(call: Call, hidden: Array, leaf: Array, *arrays: Array) -> tuple[Array, ...]:
    backends: _Backends = {
        "pallas_tpu": dispatch.one_by_one(functools.partial(pallas_tpu.backward, call.settings, call.options)),
        "xla": functools.partial(xla.backward, call.settings),
    }
    leaf = _local_leaf(call, hidden, leaf)
    d_hidden, *d_shared = dispatch.run(call.route, backends, hidden, leaf, *arrays)
    # Every shard has read its own leaves with the same norm and head.
    return d_hidden, *(lax.psum(d_shared, call.split.rows) if call.split.rows else d_shared)
