"""The derivative rule of three-way attention, one for all backends, and where the mesh splits the work."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels import dispatch, numerics, partition
from pit_kernels.three_way_attention import pallas_tpu, xla
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.visible_blocks import alive

_Residuals = tuple[Array, Array, Array, Array, Array, Array]


@functools.partial(jax.jit, static_argnames="settings")
def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    settings: Settings,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Attention output and its log-sum-exp; the contract is that of `api.three_way_attention`."""
    return _attend(q, k, v, visible_until, settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, visible_until: Array, settings: Settings) -> tuple[Array, Array]:
    backends: dict[dispatch.Backend, Any] = {
        "xla": functools.partial(xla.forward, settings=settings),
        "pallas_tpu": functools.partial(pallas_tpu.forward, settings=settings),
    }
    run = functools.partial(dispatch.run, settings.route, backends)
    ins, outs = ("r.c.", "r.c.", "r.c.", "r."), ("r.c.", "rc.")
    out, lse = partition.split(run, settings.partition, ins, outs)(q, k, v, visible_until)
    return out, lse


def _attend_fwd(
    q: Array, k: Array, v: Array, visible_until: Array, settings: Settings
) -> tuple[tuple[Array, Array], _Residuals]:
    out, lse = _attend(q, k, v, visible_until, settings)
    return (out, lse), (q, k, v, visible_until, out, lse)


def _attend_bwd(
    settings: Settings, residuals: _Residuals, cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array, None]:
    backends: dict[dispatch.Backend, Any] = {
        "xla": functools.partial(xla.backward, settings=settings),
        "pallas_tpu": functools.partial(pallas_tpu.backward, settings=settings),
    }

    def run(*arrays: Array) -> Any:
        q, k, v, visible_until, out, lse, d_out, d_lse = arrays
        alive_B1T = alive(visible_until)[:, None, :]
        accumulator = numerics.accumulator(q)
        # d logit = p (dp - sum_s p dp + d lse), and sum_s p dp = out . d out: one number a query.
        product_BTN = jnp.sum(out.astype(accumulator) * d_out.astype(accumulator), axis=-1)
        delta = jnp.where(alive_B1T, product_BTN.swapaxes(1, 2) - d_lse, 0)
        lse = jnp.where(alive_B1T, lse, 0)
        return dispatch.run(settings.route, backends, q, k, v, visible_until, lse, delta, d_out)

    ins = ("r.c.", "r.c.", "r.c.", "r.", "r.c.", "rc.", "r.c.", "rc.")
    d_q, d_k, d_v = partition.split(run, settings.partition, ins, ("r.c.",) * 3)(*residuals, *cotangents)
    return d_q, d_k, d_v, None


_attend.defvjp(_attend_fwd, _attend_bwd)
