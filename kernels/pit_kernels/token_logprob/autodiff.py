"""The derivative of the operation, and how parts of the vocabulary merge: the same for every backend.

One custom derivative is outermost. Inside it a backend sees its shard's rows and its shard's part of the vocabulary and
returns the statistics of that part; the parts merge here in log-sum-exp form, by collectives over the mesh axes that
split the vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import partition
from pit_kernels.dispatch import Route
from pit_kernels.token_logprob.settings import Partials, RowGradients, Settings

_Triple = tuple[Array, Array, Array]


# Inlined: XLA cannot split a function that several layers share, inside of another shard_map.
@functools.partial(jax.jit, static_argnames=("settings", "route"), inline=True)
def logprob(
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    settings: Settings,
    route: Route,
) -> tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " M"]]:
    """Return the log-probability, log-sum-exp and entropy; the contract is that of `api.token_logprob`."""
    # Selection before any product, as in attention: a NaN of an invalid row reaches nothing, forward or backward.
    hidden = jnp.where(valid[:, None], hidden, 0)
    target = jnp.where(valid, target, 0)
    logp, lse, entropy = _logprob(hidden, weight, bias, target, valid, settings, route)
    return jnp.where(valid, logp, 0), jnp.where(valid, lse, 0), jnp.where(valid, entropy, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _logprob(
    hidden: Array,
    weight: Array,
    bias: Array | None,
    target: Array,
    valid: Array,
    settings: Settings,
    route: Route,
) -> _Triple:
    function = functools.partial(_local_forward, settings, route)
    ins = ("r.", settings.table_letters, "r", "r", "c")
    logp, lse, entropy = partition.split(function, settings.partition, ins, ("r",) * 3)(
        hidden, weight, target, valid, bias
    )
    return logp, lse, entropy


def _logprob_fwd(
    hidden: Any, weight: Any, bias: Any, target: Any, valid: Any, settings: Settings, route: Route
) -> tuple[_Triple, Any]:
    # Each array comes as a pair of its value and whether it is differentiated (symbolic_zeros).
    hidden, weight, target, valid = (x.value for x in (hidden, weight, target, valid))
    bias = None if bias is None else bias.value
    logp, lse, entropy = _logprob(hidden, weight, bias, target, valid, settings, route)
    return (logp, lse, entropy), (hidden, weight, bias, target, valid, lse, entropy)


def _logprob_bwd(
    settings: Settings, route: Route, residuals: tuple[Any, ...], cotangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Array, Array | None, None, None]:
    hidden, weight, bias, target, valid, lse, entropy = residuals
    d_logp, d_lse = (
        jnp.zeros_like(lse) if isinstance(d, SymbolicZero) else jnp.where(valid, d, 0) for d in cotangents[:2]
    )
    # Most losses use no entropy: nothing of it is then computed in the backward pass.
    d_entropy = None if isinstance(cotangents[2], SymbolicZero) else jnp.where(valid, cotangents[2], 0)
    function = functools.partial(_local_backward, settings, route)
    ins, outs = ("r.", settings.table_letters, "r", "r", "c", *("r",) * 5), ("r.", settings.table_letters, "c")
    d_hidden, d_weight, d_bias = partition.split(function, settings.partition, ins, outs)(
        hidden, weight, target, valid, bias, lse, entropy, d_logp, d_lse, d_entropy
    )
    return d_hidden, d_weight, d_bias, None, None


_logprob.defvjp(_logprob_fwd, _logprob_bwd, symbolic_zeros=True)


def _here(target: Array, weight: Array, settings: Settings) -> tuple[Array, Array]:
    """Return the targets as indices into this shard's vocabulary, else -1, and which lie in the whole vocabulary."""
    columns, size = settings.partition.columns, weight.shape[settings.vocabulary_axis]
    first, shards = jnp.int32(0), 1
    if columns:
        first, shards = lax.axis_index(columns) * size, lax.axis_size(columns)
    # Subtraction wraps around, so that the range is checked before.
    inside = (target >= first) & (target < first + size)
    return jnp.where(inside, target - first, -1), (target >= 0) & (target < size * shards)


def _local_forward(
    settings: Settings, route: Route, hidden: Array, weight: Array, target: Array, valid: Array, bias: Array | None
) -> _Triple:
    here, inside = _here(target, weight, settings)
    part: Partials = route.forward(settings, hidden, weight, here, valid, bias)
    columns = settings.partition.columns
    if columns:
        largest, added = (functools.partial(reduce, axis_name=columns) for reduce in (lax.pmax, lax.psum))
        part = part.merged(largest, added)
    peak, total, chosen, weighted = part
    log_total = jnp.log(total)
    # The difference of shifted logits keeps what logit - lse would round away when logits are large.
    logp = jnp.where(inside, (chosen - peak) - log_total, jnp.nan)
    return logp, peak + log_total, log_total - weighted / total


def _local_backward(
    settings: Settings,
    route: Route,
    hidden: Array,
    weight: Array,
    target: Array,
    valid: Array,
    bias: Array | None,
    *gradients: Any,
) -> tuple[Array, Array, Array | None]:
    here, _ = _here(target, weight, settings)
    rows, columns = settings.partition.rows, settings.partition.columns
    d_hidden, d_weight, d_bias = route.backward(settings, hidden, weight, here, valid, bias, RowGradients(*gradients))
    if columns:
        d_hidden = lax.psum(d_hidden, columns)
    if rows:
        d_weight, d_bias = lax.psum((d_weight, d_bias), rows)
    d_bias = None if bias is None or d_bias is None else d_bias.astype(bias.dtype)
    return d_hidden.astype(hidden.dtype), d_weight.astype(weight.dtype), d_bias
