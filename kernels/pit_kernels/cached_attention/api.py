"""Attention of one new token per slot over a prefix that many slots share and over the slot's own suffix.

This is the attention of every decode step: N samples of one (x, reference) keep one copy of its keys and values.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels import checks, dispatch
from pit_kernels.cached_attention.backends import BACKENDS
from pit_kernels.cached_attention.settings import Settings
from pit_kernels.partition import WHOLE, Partition, split

_NAME = "cached_attention"


# Nine arrays and six settings: two caches, their held parts, and the prefix of each slot.
def cached_attention(
    q: Float[Array, "S N H"],
    prefix_k: Float[Array, "P K C0 H"],
    prefix_v: Float[Array, "P K C0 H"],
    prefix_length: Int32[Array, " P"],
    suffix_k: Float[Array, "S K C1 H"],
    suffix_v: Float[Array, "S K C1 H"],
    suffix_length: Int32[Array, " S"],
    prefix_id: Int32[Array, " S"],
    suffix_start: Int32[Array, " S"] | None = None,
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    window: int | None = None,
    slots_per_prefix: int | None = None,
    partition: Partition | None = None,
    implementation: str = "auto",
    interpret: dispatch.Interpret = False,
) -> Float[Array, "S N H"]:
    """Return the softmax attention of each slot's query over the held part of its prefix and of its suffix.

    Slot s sees the first prefix_length[prefix_id[s]] entries of its prefix and suffix_length[s] entries of its suffix,
    the new token's own key included if the caller has written it. Either may be empty (length <= 0; a length beyond the
    cache counts as all of it); a slot that sees nothing gets exactly 0. Entries that are not held have no effect,
    whatever they are, NaN too. The queries of all slots of a prefix pass over one copy of its keys. With a window, a
    slot sees the last `window` of the entries that it holds, the prefix before the suffix. Products accumulate in
    float32 and the two passes are merged in float32 (float64 stays).

    Args:
      q: queries of S slots, N heads of width H.
      prefix_k: keys of P prefixes of at most C0 tokens; K heads, each serving N/K consecutive query heads.
      prefix_v: values of the prefixes.
      prefix_length: tokens held of each prefix.
      suffix_k: keys of the slots' own tokens, at most C1.
      suffix_v: values of the slots' own tokens.
      suffix_length: tokens held of each suffix.
      prefix_id: prefix of each slot; a slot whose id is not in 0..P-1 has none.
      suffix_start: first entry of each suffix, 0 when None. A suffix continues at entry 0 after the last one, so all
        slots can write their next key at the same place, whenever they began.
      scale: factor of the logits, H**-0.5 when None.
      logit_soft_cap: c of the cap c tanh(z / c) on the scaled logits; no cap when None.
      window: entries that a slot sees at most (sliding window, Mistral), where the entries of its prefix and its suffix
        are the consecutive tokens of one path; all when None.
      slots_per_prefix: promise that no more slots than this share a prefix, wherever they are; it keeps the work on
        prefixes small. A slot too many gets NaN. S when None, which is always right.
      partition: axes of the mesh in context (`jax.set_mesh`) that split the heads N and K; rows are not split.
      implementation: backend; see `pit_kernels.dispatch`.
      interpret: run the TPU kernel in Pallas' interpreter, on any platform.

    Raises:
      ValueError: if shapes or dtypes do not fit.
      UnsupportedImplementationError: if the named backend cannot serve.

    Example:
      >>> cache, length = jnp.ones((1, 1, 4, 2)), jnp.array([3], jnp.int32)
      >>> zero = jnp.zeros(1, jnp.int32)
      >>> cached_attention(jnp.ones((1, 1, 2)), cache, cache, length, cache, cache, length, zero).tolist()
      [[[1.0, 1.0]]]
    """
    checks.require_rank(_NAME, "q", q, "S N H")
    checks.require_rank(_NAME, "prefix_k", prefix_k, "P K C0 H")
    checks.require_rank(_NAME, "suffix_k", suffix_k, "S K C1 H")
    checks.require_same_float(_NAME, q=q, prefix_k=prefix_k, prefix_v=prefix_v, suffix_k=suffix_k, suffix_v=suffix_v)
    slots, heads, width = q.shape
    prefixes, kv_heads, prefix_capacity, _ = prefix_k.shape
    for name, x in (("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        checks.require_shape(_NAME, name, x, "P K C0 H", (prefixes, kv_heads, prefix_capacity, width))
    for name, x in (("suffix_k", suffix_k), ("suffix_v", suffix_v)):
        checks.require_shape(_NAME, name, x, "S K C1 H", (slots, kv_heads, suffix_k.shape[2], width))
    checks.require_grouped_heads(_NAME, heads, kv_heads)
    suffix_start = jnp.zeros(slots, jnp.int32) if suffix_start is None else suffix_start
    for name, x, letter, size in (
        ("prefix_length", prefix_length, "P", prefixes),
        ("suffix_length", suffix_length, "S", slots),
        ("prefix_id", prefix_id, "S", slots),
        ("suffix_start", suffix_start, "S", slots),
    ):
        checks.require_int32(_NAME, name, x)
        checks.require_shape(_NAME, name, x, letter, (size,))
    scale = width**-0.5 if scale is None else scale
    checks.require_positive(_NAME, "scale", scale)
    if logit_soft_cap is not None:
        checks.require_positive(_NAME, "logit_soft_cap", logit_soft_cap)
    if window is not None:
        checks.require_window(_NAME, window)
    members = slots if slots_per_prefix is None else slots_per_prefix
    if not isinstance(members, int) or members < 1:
        raise ValueError(f"{_NAME}: slots_per_prefix is {members!r}; it must be an int of at least 1, or None")

    settings = Settings(
        scale=float(scale),
        logit_soft_cap=None if logit_soft_cap is None else float(logit_soft_cap),
        window=window,
        slots_per_prefix=min(members, slots),
        partition=Partition(columns=(partition or WHOLE).columns).here([], [heads, kv_heads]),
        interpret=dispatch.interpreter(interpret),
    )
    caches = prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, suffix_length
    arrays = q, *caches, prefix_id, suffix_start
    route = dispatch.choose(_NAME, BACKENDS, implementation, settings, *arrays, interpret=interpret)
    out: Array = _attend(*arrays, settings=settings, route=route)
    return out


# Inlined: XLA cannot split a function that several layers share, inside of another shard_map.
@functools.partial(jax.jit, static_argnames=("settings", "route"), inline=True)
def _attend(*arrays: Array, settings: Settings, route: dispatch.Route) -> Array:
    def run(*local: Array) -> tuple[Array, ...]:
        return (route.forward(settings, *local),)

    ins = (".c.", ".c..", ".c..", ".", ".c..", ".c..", ".", ".", ".")
    out: Array = split(run, settings.partition, ins, (".c.",))(*arrays)[0]
    return out
