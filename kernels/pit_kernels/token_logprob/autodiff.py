"""The derivative of the operation, and how parts of the vocabulary merge: the same for every backend.

One custom derivative is outermost. Inside it a backend sees its shard's rows and its shard's part of the vocabulary and
says what that part holds; the parts merge here in log-sum-exp form, by collectives over the mesh axes that split the
vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import dispatch, partition
from pit_kernels.token_logprob import pallas_tpu, xla
from pit_kernels.token_logprob.settings import RowGradients, Settings

_Triple = tuple[Array, Array, Array]
_Backends = dict[dispatch.Backend, Callable[..., Any]]


class Call(NamedTuple):
    """All that is static.

    settings: what is computed.
    route: which backend computes it where.
    split: mesh axes that split rows and vocabulary, restricted to the mesh in context.
    options: of the TPU kernels; None where they do not serve.
    """

    settings: Settings
    route: dispatch.Route
    split: partition.Partition
    options: pallas_tpu.Options | None

    @property
    def table(self) -> str:
        """Letters of the table's axes, for `partition.split`."""
        return "c." if self.settings.layout == "vd" else ".c"


@functools.partial(jax.jit, static_argnames="call")
def logprob(
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    call: Call,
) -> tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " M"]]:
    """Log-probability, log-sum-exp and entropy; the contract is that of `api.token_logprob`."""
    # Selection before any product, as in attention: a NaN of an invalid row reaches nothing, forward or backward.
    hidden = jnp.where(valid[:, None], hidden, 0)
    target = jnp.where(valid, target, 0)
    logp, lse, entropy = _logprob(hidden, weight, bias, target, valid, call)
    return jnp.where(valid, logp, 0), jnp.where(valid, lse, 0), jnp.where(valid, entropy, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _logprob(hidden: Array, weight: Array, bias: Array | None, target: Array, valid: Array, call: Call) -> _Triple:
    function = functools.partial(_local_forward, call)
    ins = ("r.", call.table, "r", "r", "c")
    logp, lse, entropy = partition.split(function, call.split, ins, ("r",) * 3)(hidden, weight, target, valid, bias)
    return logp, lse, entropy


def _logprob_fwd(hidden: Any, weight: Any, bias: Any, target: Any, valid: Any, call: Call) -> tuple[_Triple, Any]:
    # Each array comes as a pair of its value and whether it is differentiated (symbolic_zeros).
    hidden, weight, target, valid = (x.value for x in (hidden, weight, target, valid))
    bias = None if bias is None else bias.value
    logp, lse, entropy = _logprob(hidden, weight, bias, target, valid, call)
    return (logp, lse, entropy), (hidden, weight, bias, target, valid, lse, entropy)


def _logprob_bwd(
    call: Call, residuals: tuple[Any, ...], cotangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Array, Array | None, None, None]:
    hidden, weight, bias, target, valid, lse, entropy = residuals
    d_logp, d_lse = (
        jnp.zeros_like(lse) if isinstance(d, SymbolicZero) else jnp.where(valid, d, 0) for d in cotangents[:2]
    )
    # Most losses use no entropy: nothing of it is then computed in the backward pass.
    d_entropy = None if isinstance(cotangents[2], SymbolicZero) else jnp.where(valid, cotangents[2], 0)
    function = functools.partial(_local_backward, call)
    ins = ("r.", call.table, "r", "r", "c", *("r",) * 5)
    d_hidden, d_weight, d_bias = partition.split(function, call.split, ins, ("r.", call.table, "c"))(
        hidden, weight, target, valid, bias, lse, entropy, d_logp, d_lse, d_entropy
    )
    return d_hidden, d_weight, d_bias, None, None


_logprob.defvjp(_logprob_fwd, _logprob_bwd, symbolic_zeros=True)


def _here(target: Array, weight: Array, call: Call) -> tuple[Array, Array]:
    """The targets as indices into this shard's part of the vocabulary, -1 elsewhere; which are in the vocabulary."""
    columns, size = call.split.columns, weight.shape[call.settings.vocabulary_axis]
    first, shards = jnp.int32(0), 1
    if columns:
        first, shards = lax.axis_index(columns) * size, lax.axis_size(columns)
    # Subtraction wraps around, so that the range is checked before.
    inside = (target >= first) & (target < first + size)
    return jnp.where(inside, target - first, -1), (target >= 0) & (target < size * shards)


def _local_forward(
    call: Call, hidden: Array, weight: Array, target: Array, valid: Array, bias: Array | None
) -> _Triple:
    here, inside = _here(target, weight, call)
    backends: _Backends = {"xla": functools.partial(xla.forward, call.settings)}
    if call.options is not None:
        backends["pallas_tpu"] = functools.partial(pallas_tpu.forward, call.settings, call.options)
    part = dispatch.run(call.route, backends, hidden, weight, here, valid, bias)
    columns = call.split.columns
    if columns:
        largest, added = (functools.partial(reduce, axis_name=columns) for reduce in (lax.pmax, lax.psum))
        part = part.merged(largest, added)
    peak, total, chosen, weighted = part
    log_total = jnp.log(total)
    # The difference of shifted logits keeps what logit - lse would round away when logits are large.
    logp = jnp.where(inside, (chosen - peak) - log_total, jnp.nan)
    return logp, peak + log_total, log_total - weighted / total


def _local_backward(
    call: Call, hidden: Array, weight: Array, target: Array, valid: Array, bias: Array | None, *gradients: Any
) -> tuple[Array, Array, Array | None]:
    here, _ = _here(target, weight, call)
    rows, columns = call.split.rows, call.split.columns
    # Parts of the table's gradient are added up across shards in float32, whatever the dtype of the table.
    lse: Array = gradients[0]
    table_dtype = lse.dtype if rows else weight.dtype
    backends: _Backends = {"xla": functools.partial(xla.backward, call.settings, table_dtype)}
    if call.options is not None:
        backends["pallas_tpu"] = dispatch.one_by_one(
            functools.partial(pallas_tpu.backward, call.settings, call.options, table_dtype)
        )
    d_hidden, d_weight, d_bias = dispatch.run(
        call.route, backends, hidden, weight, here, valid, bias, RowGradients(*gradients)
    )
    if columns:
        d_hidden = lax.psum(d_hidden, columns)
    if rows:
        d_weight, d_bias = lax.psum((d_weight, d_bias), rows)
    d_bias = None if bias is None or d_bias is None else d_bias.astype(bias.dtype)
    return d_hidden.astype(hidden.dtype), d_weight.astype(weight.dtype), d_bias
