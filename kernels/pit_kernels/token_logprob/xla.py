"""Log-probabilities of chosen tokens in plain XLA: rows in chunks, so that M x V logits never live at once.

The gradient of the table accumulates over the chunks in float32 whatever the dtype of the table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import numerics
from pit_kernels.dispatch import OTHERS, Backend, serves_all
from pit_kernels.token_logprob.settings import LOWEST, Partials, RowGradients, Settings, floor_shift

LOGITS_AT_ONCE = 2**24
"""Most logits (rows x vocabulary) of one chunk: 64 MiB in float32."""


class _Rows(NamedTuple):
    """Rows of one chunk, or of all chunks with a leading axis n. An invalid row holds zeros and target 0."""

    hidden: Float[Array, "*n M D"]
    target: Int32[Array, "*n M"]
    gradients: RowGradients | None = None


_TableGradients = tuple[Array, Array | None]


def chunk_count(rows: int, vocabulary: int) -> int:
    """Return the number of chunks that keep their logits within LOGITS_AT_ONCE: a power of two, for even chunks."""
    chunks = 1
    while rows * vocabulary > chunks * LOGITS_AT_ONCE and chunks < rows:
        chunks *= 2
    return chunks


def forward(
    settings: Settings,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
) -> Partials:
    """Return the statistics of each row over this part of the vocabulary; arguments as in `autodiff.logprob`."""
    chunks = chunk_count(hidden.shape[0], weight.shape[settings.vocabulary_axis])

    def chunk(rows: _Rows) -> Partials:
        return _forward_chunk(rows, weight, bias, settings)

    rows = _Rows(_split(jnp.where(valid[:, None], hidden, 0), chunks), _split(target, chunks))
    return Partials(*(_join(x, target.shape[0]) for x in lax.map(chunk, rows)))


def backward(
    settings: Settings,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    gradients: RowGradients,
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of hidden states and bias, in float32, and of this part of the table."""
    chunks = chunk_count(hidden.shape[0], weight.shape[settings.vocabulary_axis])
    rows = jax.tree.map(lambda x: _split(x, chunks), _Rows(jnp.where(valid[:, None], hidden, 0), target, gradients))

    def chunk(carry: _TableGradients, rows: _Rows) -> tuple[_TableGradients, Array]:
        return _backward_chunk(rows, weight, bias, carry, settings)

    accumulator = gradients.lse.dtype
    start = (jnp.zeros(weight.shape, accumulator), None if bias is None else jnp.zeros(bias.shape, accumulator))
    (d_weight, d_bias), d_hidden = lax.scan(chunk, start, rows)
    return (
        _join(d_hidden, target.shape[0]),
        d_weight.astype(settings.table_gradient_dtype(weight, gradients.lse)),
        d_bias,
    )


def _split(x: Array, chunks: int) -> Array:
    """Turn [M, ...] to [n, M/n, ...], filled with zeros (invalid rows).

    Chunk i takes rows i, i + n, i + 2n, ...: where rows are sharded, every chunk then has rows of every shard, and none
    is moved.
    """
    size = -(-x.shape[0] // chunks)
    x = jnp.pad(x, ((0, size * chunks - x.shape[0]),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(size, chunks, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Array, rows: int) -> Array:
    """Undo `_split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:rows]


def _scaled_logits(
    hidden: Float[Array, "M D"], weight: Array, bias: Array | None, settings: Settings
) -> tuple[Float[Array, "M V"], Float[Array, "M V"] | None]:
    """Return the logits over the temperature, and d (capped logit) / d (raw logit) where there is a cap."""
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


def _forward_chunk(rows: _Rows, weight: Array, bias: Array | None, settings: Settings) -> Partials:
    logits_MV, _ = _scaled_logits(rows.hidden, weight, bias, settings)
    vocabulary = logits_MV.shape[1]
    peak_M = jnp.maximum(jnp.max(logits_MV, axis=1), LOWEST)
    shifted_MV = logits_MV - peak_M[:, None]
    inside_M = (rows.target >= 0) & (rows.target < vocabulary)
    chosen_M1 = jnp.take_along_axis(logits_MV, jnp.where(inside_M, rows.target, 0)[:, None], axis=1)
    # Two exps, not a kept one: both then fuse into their sums and no M x V array is written (3x faster on CPU).
    total_M = jnp.sum(jnp.exp(shifted_MV), axis=1)
    weighted_M = jnp.sum(jnp.exp(shifted_MV) * floor_shift(shifted_MV), axis=1)
    return Partials(peak_M, total_M, jnp.where(inside_M, chosen_M1[:, 0], 0), weighted_M)


def _backward_chunk(
    rows: _Rows, weight: Array, bias: Array | None, carry: _TableGradients, settings: Settings
) -> tuple[_TableGradients, Float[Array, "M D"]]:
    """Add a chunk's share to the gradients of the table and the bias, and return that of its hidden states."""
    assert rows.gradients is not None
    lse_M, entropy_M, d_logp_M, d_lse_M, d_entropy_M = rows.gradients
    d_weight, d_bias = carry
    logits_MV, slope_MV = _scaled_logits(rows.hidden, weight, bias, settings)
    log_p_MV = logits_MV - lse_M[:, None]
    p_MV = jnp.exp(log_p_MV)
    # d logp = onehot - p; d lse = p; d entropy = -p (log p + entropy).
    d_logits_MV = p_MV * (d_lse_M - d_logp_M)[:, None]
    if d_entropy_M is not None:
        d_logits_MV = d_logits_MV - d_entropy_M[:, None] * p_MV * (floor_shift(log_p_MV) + entropy_M[:, None])
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
    return (d_weight, d_bias), d_hidden


BACKEND = Backend("xla", (OTHERS,), serves_all, forward, backward)
