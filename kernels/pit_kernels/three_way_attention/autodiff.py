"""The derivative rule of three-way attention, one for all backends, and the split of the work over the mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int32

from pit_kernels import numerics, partition
from pit_kernels.dispatch import Route
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.visible_blocks import alive

_Mask = tuple[Array, ...]
"""`visible_until`, and with a window `position`."""

ATTENTION_RESULTS = ("attention_output", "attention_log_sum_exp")
"""Names of the results that policies of `jax.checkpoint` can save, so that attention runs forward once."""

_Residuals = tuple[Array, Array, Array, _Mask, Array, Array]


# Inlined: XLA cannot split a function that several layers share, inside of another shard_map.
@functools.partial(jax.jit, static_argnames=("settings", "route"), inline=True)
def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: tuple[Int32[Array, "B T"], ...],
    settings: Settings,
    route: Route,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Return the attention output and its log-sum-exp; the contract is that of `api.three_way_attention`.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: `visible_until`, and with a window `position`.
      settings: static settings.
      route: backends.
    """
    return _attend(q, k, v, mask, settings, route)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q: Array, k: Array, v: Array, mask: _Mask, settings: Settings, route: Route) -> tuple[Array, Array]:
    run = functools.partial(route.forward, settings)
    ins, outs = ("r.c.", "r.c.", "r.c.", *("r." for _ in mask)), ("r.c.", "rc.")
    out, lse = partition.split(run, settings.partition, ins, outs)(q, k, v, *mask)
    return out, lse


def _attend_fwd(
    q: Array, k: Array, v: Array, mask: _Mask, settings: Settings, route: Route
) -> tuple[tuple[Array, Array], _Residuals]:
    out, lse = map(checkpoint_name, _attend(q, k, v, mask, settings, route), ATTENTION_RESULTS)
    return (out, lse), (q, k, v, mask, out, lse)


def _attend_bwd(
    settings: Settings, route: Route, residuals: _Residuals, cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array, None]:
    def run(*arrays: Array) -> Any:
        q, k, v, out, lse, d_out, d_lse, visible_until, *position = arrays
        alive_B1T = alive(visible_until)[:, None, :]
        accumulator = numerics.accumulator(q)
        # d logit = p (dp - sum_s p dp + d lse), and sum_s p dp = out . d out: one number per query.
        product_BTN = jnp.sum(out.astype(accumulator) * d_out.astype(accumulator), axis=-1)
        delta = jnp.where(alive_B1T, product_BTN.swapaxes(1, 2) - d_lse, 0)
        lse = jnp.where(alive_B1T, lse, 0)
        return route.backward(settings, q, k, v, visible_until, lse, delta, d_out, *position)

    *saved, mask, out, saved_lse = residuals
    ins = ("r.c.", "r.c.", "r.c.", "r.c.", "rc.", "r.c.", "rc.", *("r." for _ in mask))
    split = partition.split(run, settings.partition, ins, ("r.c.",) * 3)
    d_q, d_k, d_v = split(*saved, out, saved_lse, *cotangents, *mask)
    return d_q, d_k, d_v, None


_attend.defvjp(_attend_fwd, _attend_bwd)
