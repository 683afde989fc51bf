"""Log-probabilities of chosen tokens in plain XLA: rows in chunks, so that M x V logits never live at once.

The gradient is written out (softmax minus one-hot, and its twin for the entropy), so that the gradient of the table
accumulates over the chunks in float32 whatever the dtype of the table.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import numerics

LOGITS_AT_ONCE = 2**24
"""Most logits (rows x vocabulary) of one chunk: 64 MiB in float32."""

Layout = Literal["vd", "dv"]


class Settings(NamedTuple):
    """Static settings: logits z = soft_cap(h.w + b) / temperature; the rows are cut into `chunks` equal parts."""

    layout: Layout
    temperature: float
    logit_soft_cap: float | None
    chunks: int


class _Rows(NamedTuple):
    """Rows of one chunk, or of all chunks with a leading axis n. An invalid row holds zeros and target 0."""

    hidden: Float[Array, "*n M D"]
    target: Int32[Array, "*n M"]
    valid: Bool[Array, "*n M"]


_Triple = tuple[Array, Array, Array]
_Residuals = tuple[Array, Array, Array | None, Array, Array, Array, Array]
_TableGradients = tuple[Array, Array | None]


def chunk_count(rows: int, vocabulary: int) -> int:
    """Chunks that keep a chunk's logits within LOGITS_AT_ONCE: a power of two, so that round row counts fit."""
    chunks = 1
    while rows * vocabulary > chunks * LOGITS_AT_ONCE and chunks < rows:
        chunks *= 2
    return chunks


@functools.partial(jax.jit, static_argnames="settings")
def logprob(
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    settings: Settings,
) -> tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " M"]]:
    """Log-probability, log-sum-exp and entropy; the contract is that of `api.token_logprob`."""
    # Selection before any product, as in attention: a NaN of an invalid row reaches nothing, forward or backward.
    hidden = jnp.where(valid[:, None], hidden, 0)
    target = jnp.where(valid, target, 0)
    logp, lse, entropy = _logprob(hidden, weight, bias, target, valid, settings)
    return jnp.where(valid, logp, 0), jnp.where(valid, lse, 0), jnp.where(valid, entropy, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _logprob(
    hidden: Array, weight: Array, bias: Array | None, target: Array, valid: Array, settings: Settings
) -> _Triple:
    def chunk(rows: _Rows) -> _Triple:
        return _forward_chunk(rows, weight, bias, settings)

    rows = _Rows(*(_split(x, settings.chunks) for x in (hidden, target, valid)))
    logp, lse, entropy = (_join(x, target.shape[0]) for x in lax.map(chunk, rows))
    return logp, lse, entropy


def _logprob_fwd(
    hidden: Any, weight: Any, bias: Any, target: Any, valid: Any, settings: Settings
) -> tuple[_Triple, _Residuals]:
    # Each array comes as a pair of its value and whether it is differentiated (symbolic_zeros).
    hidden, weight, target, valid = (x.value for x in (hidden, weight, target, valid))
    bias = None if bias is None else bias.value
    logp, lse, entropy = _logprob(hidden, weight, bias, target, valid, settings)
    return (logp, lse, entropy), (hidden, weight, bias, target, valid, lse, entropy)


def _logprob_bwd(
    settings: Settings, residuals: _Residuals, cotangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Array, Array | None, None, None]:
    hidden, weight, bias, target, valid, lse, entropy = residuals
    d_logp, d_lse = (
        jnp.zeros_like(lse) if isinstance(d, SymbolicZero) else jnp.where(valid, d, 0) for d in cotangents[:2]
    )
    # Most losses use no entropy: nothing of it is then computed, here or in the forward pass.
    d_entropy = None if isinstance(cotangents[2], SymbolicZero) else jnp.where(valid, cotangents[2], 0)
    scanned = (hidden, target, valid, lse, entropy, d_logp, d_lse, d_entropy)
    split = jax.tree.map(lambda x: _split(x, settings.chunks), scanned)

    def chunk(carry: _TableGradients, x: tuple[Any, ...]) -> tuple[_TableGradients, Array]:
        rows, statistics, d_chunk = _Rows(*x[:3]), (x[3], x[4]), (x[5], x[6], x[7])
        return _backward_chunk(rows, weight, bias, statistics, d_chunk, carry, settings)

    start = (jnp.zeros(weight.shape, lse.dtype), None if bias is None else jnp.zeros(bias.shape, lse.dtype))
    (d_weight, d_bias), d_hidden = lax.scan(chunk, start, split)
    d_bias = None if bias is None or d_bias is None else d_bias.astype(bias.dtype)
    return _join(d_hidden, target.shape[0]), d_weight.astype(weight.dtype), d_bias, None, None


_logprob.defvjp(_logprob_fwd, _logprob_bwd, symbolic_zeros=True)


def _split(x: Array, chunks: int) -> Array:
    """[M, ...] to [n, M/n, ...], filled with zeros (invalid rows).

    Chunk i takes rows i, i + n, i + 2n, ...: where rows are sharded, every chunk then has rows of every shard, and none
    is moved.
    """
    size = -(-x.shape[0] // chunks)
    x = jnp.pad(x, ((0, size * chunks - x.shape[0]),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(size, chunks, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Array, rows: int) -> Array:
    """Inverse of `_split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:rows]


def _scaled_logits(
    hidden: Float[Array, "M D"], weight: Array, bias: Array | None, settings: Settings
) -> tuple[Float[Array, "M V"], Float[Array, "M V"] | None]:
    """Logits over the temperature, and d (capped logit) / d (raw logit) where there is a cap."""
    accumulator = numerics.accumulator(hidden)
    equation = "md,vd->mv" if settings.layout == "vd" else "md,dv->mv"
    logits_MV = jnp.einsum(equation, hidden, weight, preferred_element_type=accumulator)
    if bias is not None:
        logits_MV = logits_MV + bias.astype(accumulator)[None, :]
    slope_MV = None
    if settings.logit_soft_cap is not None:
        tanh_MV = jnp.tanh(logits_MV / settings.logit_soft_cap)
        logits_MV, slope_MV = settings.logit_soft_cap * tanh_MV, 1 - tanh_MV**2
    return logits_MV / settings.temperature, slope_MV


def _finite(log_p: Array) -> Array:
    """A forbidden token (bias -inf) has p = 0 and log p = -inf; a finite floor makes their product 0, not NaN."""
    return jnp.maximum(log_p, float(np.finfo(log_p.dtype).min))


def _forward_chunk(rows: _Rows, weight: Array, bias: Array | None, settings: Settings) -> _Triple:
    logits_MV, _ = _scaled_logits(rows.hidden, weight, bias, settings)
    vocabulary = logits_MV.shape[1]
    peak_M1 = jnp.max(logits_MV, axis=1, keepdims=True)
    shifted_MV = logits_MV - peak_M1
    log_total_M = jnp.log(jnp.sum(jnp.exp(shifted_MV), axis=1))
    # The shifted logits keep the small differences that logit - lse would round away when logits are large.
    inside_M = (rows.target >= 0) & (rows.target < vocabulary)
    chosen_M1 = jnp.take_along_axis(logits_MV, jnp.where(inside_M, rows.target, 0)[:, None], axis=1) - peak_M1
    logp_M = jnp.where(inside_M, chosen_M1[:, 0] - log_total_M, jnp.nan)
    # A second exp, not a kept one: both then fuse into their sums and no M x V array is written (3x faster on CPU).
    log_p_MV = shifted_MV - log_total_M[:, None]
    entropy_M = -jnp.sum(jnp.exp(log_p_MV) * _finite(log_p_MV), axis=1)
    return logp_M, peak_M1[:, 0] + log_total_M, entropy_M


def _backward_chunk(
    rows: _Rows,
    weight: Array,
    bias: Array | None,
    statistics: tuple[Float[Array, " M"], Float[Array, " M"]],
    cotangents: tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " M"] | None],
    carry: _TableGradients,
    settings: Settings,
) -> tuple[_TableGradients, Float[Array, "M D"]]:
    """Adds a chunk's share to the gradients of the table and the bias, and returns that of its hidden states."""
    (lse_M, entropy_M), (d_logp_M, d_lse_M, d_entropy_M), (d_weight, d_bias) = statistics, cotangents, carry
    logits_MV, slope_MV = _scaled_logits(rows.hidden, weight, bias, settings)
    log_p_MV = logits_MV - lse_M[:, None]
    p_MV = jnp.exp(log_p_MV)
    # d logp = onehot - p; d lse = p; d entropy = -p (log p + entropy).
    d_logits_MV = p_MV * (d_lse_M - d_logp_M)[:, None]
    if d_entropy_M is not None:
        d_logits_MV = d_logits_MV - d_entropy_M[:, None] * p_MV * (_finite(log_p_MV) + entropy_M[:, None])
    is_target_MV = rows.target[:, None] == jnp.arange(p_MV.shape[1], dtype=jnp.int32)[None, :]
    d_logits_MV = d_logits_MV + jnp.where(is_target_MV, d_logp_M[:, None], 0)
    if slope_MV is not None:
        d_logits_MV = d_logits_MV * slope_MV
    d_logits_MV = d_logits_MV / settings.temperature
    d_bias = None if d_bias is None else d_bias + jnp.sum(d_logits_MV, axis=0)
    d_low_MV = d_logits_MV.astype(weight.dtype)
    to_weight, to_hidden = ("mv,md->vd", "mv,vd->md") if settings.layout == "vd" else ("mv,md->dv", "mv,dv->md")
    d_weight = d_weight + jnp.einsum(to_weight, d_low_MV, rows.hidden, preferred_element_type=d_weight.dtype)
    d_hidden = jnp.einsum(to_hidden, d_low_MV, weight, preferred_element_type=d_weight.dtype)
    return (d_weight, d_bias), d_hidden.astype(rows.hidden.dtype)
