"""Attention of one new token a slot over a prefix that many slots share and over the slot's own suffix.

This is the attention of every decode step: N samples of one (x, reference) keep one copy of its keys and values.
"""

from typing import Literal

from jaxtyping import Array, Float, Int32

from pit_kernels import checks, dispatch
from pit_kernels.cached_attention import xla

_NAME: Literal["cached_attention"] = "cached_attention"


def cached_attention(
    q: Float[Array, "S N H"],
    prefix_k: Float[Array, "P C0 K H"],
    prefix_v: Float[Array, "P C0 K H"],
    prefix_length: Int32[Array, " P"],
    suffix_k: Float[Array, "S C1 K H"],
    suffix_v: Float[Array, "S C1 K H"],
    suffix_length: Int32[Array, " S"],
    prefix_id: Int32[Array, " S"] | None = None,
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    slots_per_prefix: int | None = None,
    implementation: dispatch.Implementation = "auto",
) -> Float[Array, "S N H"]:
    """Softmax attention of each slot's query over the held part of its prefix and of its suffix.

    Slot s sees the first prefix_length[prefix_id[s]] entries of its prefix and the first suffix_length[s] of its
    suffix, the new token's own key included if the caller has written it. Either may be empty (length <= 0; a length
    beyond the cache counts as all of it); a slot that sees nothing gets exactly 0. What lies past a length reaches
    nothing, NaN included. Products accumulate in float32 and the two passes are merged in float32 (float64 stays).

    Args:
      q: queries of S slots, N heads of width H.
      prefix_k: keys of P prefixes of at most C0 tokens; K heads, each serving N/K consecutive query heads.
      prefix_v: values of the prefixes.
      prefix_length: tokens held of each prefix.
      suffix_k: keys of the slots' own tokens, at most C1.
      suffix_v: values of the slots' own tokens.
      suffix_length: tokens held of each suffix.
      prefix_id: prefix of each slot, 0..P-1. It gathers a copy of the prefix for each slot.
      scale: factor of the logits, H**-0.5 when None.
      logit_soft_cap: c of the cap c tanh(z / c) on the scaled logits; no cap when None.
      slots_per_prefix: promise that S = P n and slot s belongs to prefix s // n: nothing is gathered, and
        `prefix_id` is not read and may be None.
      implementation: backend; see `pit_kernels.dispatch`.

    Raises:
      ValueError: if shapes or dtypes do not fit, or neither prefix_id nor slots_per_prefix is given.
      UnsupportedImplementationError: if the named backend cannot serve.

    Example:
      >>> import jax.numpy as jnp
      >>> cache, length = jnp.ones((1, 4, 1, 2)), jnp.array([3], jnp.int32)
      >>> cached_attention(jnp.ones((1, 1, 2)), cache, cache, length, cache, cache, length, slots_per_prefix=1).tolist()
      [[[1.0, 1.0]]]
    """
    checks.require_rank(_NAME, "q", q, "S N H")
    checks.require_rank(_NAME, "prefix_k", prefix_k, "P C0 K H")
    checks.require_rank(_NAME, "suffix_k", suffix_k, "S C1 K H")
    checks.require_same_float(_NAME, q=q, prefix_k=prefix_k, prefix_v=prefix_v, suffix_k=suffix_k, suffix_v=suffix_v)
    slots, heads, width = q.shape
    prefixes, prefix_capacity, kv_heads, _ = prefix_k.shape
    for name, x in (("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        checks.require_shape(_NAME, name, x, "P C0 K H", (prefixes, prefix_capacity, kv_heads, width))
    for name, x in (("suffix_k", suffix_k), ("suffix_v", suffix_v)):
        checks.require_shape(_NAME, name, x, "S C1 K H", (slots, suffix_k.shape[1], kv_heads, width))
    checks.require_grouped_heads(_NAME, heads, kv_heads)
    lengths = [("prefix_length", prefix_length, "P", prefixes), ("suffix_length", suffix_length, "S", slots)]
    if slots_per_prefix is not None:
        if slots_per_prefix * prefixes != slots:
            raise ValueError(
                f"{_NAME}: slots_per_prefix is {slots_per_prefix} with P={prefixes} prefixes and S={slots} slots; S "
                "must be P times it. Give prefix_id instead when slots are not grouped evenly"
            )
    elif prefix_id is None:
        raise ValueError(
            f"{_NAME}: prefix_id and slots_per_prefix are both None; give one, to say whose prefix a slot reads"
        )
    else:
        lengths.append(("prefix_id", prefix_id, "S", slots))
    for name, x, letter, size in lengths:
        checks.require_int32(_NAME, name, x)
        checks.require_shape(_NAME, name, x, letter, (size,))
    scale = width**-0.5 if scale is None else scale
    checks.require_positive(_NAME, "scale", scale)
    if logit_soft_cap is not None:
        checks.require_positive(_NAME, "logit_soft_cap", logit_soft_cap)

    dispatch.choose(_NAME, implementation)
    settings = xla.Settings(float(scale), None if logit_soft_cap is None else float(logit_soft_cap), slots_per_prefix)
    out: Array = xla.attend(
        q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length, prefix_id, settings
    )
    return out
