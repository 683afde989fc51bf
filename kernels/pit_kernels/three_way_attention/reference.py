"""The obvious three-way attention: one dense T x T formula, computed in the dtype of its inputs.

In float64 it is the truth the backends are measured against; in bfloat16 it is the naive formula whose error bounds
theirs.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def three_way_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    window: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Return the output and log-sum-exp by the definition; arguments as in `api.three_way_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    index_T = jnp.arange(q.shape[1], dtype=jnp.int32)
    alive_BT = visible_until > index_T[None, :]
    q, k, v = (jnp.where(alive_BT[:, :, None, None], x, 0) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits_BNTT = jnp.einsum("btnh,bsnh->bnts", q, k) * scale
    if logit_soft_cap is not None:
        logits_BNTT = logit_soft_cap * jnp.tanh(logits_BNTT / logit_soft_cap)
    causal_TT = index_T[None, :] <= index_T[:, None]
    inside_BTT = index_T[None, :, None] < visible_until[:, None, :]
    seen_BTT = causal_TT[None] & inside_BTT & alive_BT[:, :, None]
    if window is not None and position is not None:
        seen_BTT = seen_BTT & (position[:, :, None] - position[:, None, :] < window)
    seen_B1TT = seen_BTT[:, None]
    # A row that sees nothing would be 0 / 0: it takes logits 0 through the softmax and is dropped at the end.
    alive_B1T1 = alive_BT[:, None, :, None]
    logits_BNTT = jnp.where(seen_B1TT, logits_BNTT, jnp.where(alive_B1T1, -jnp.inf, 0))
    peak_BNT1 = jnp.max(logits_BNTT, axis=-1, keepdims=True)
    unnormalised_BNTT = jnp.exp(logits_BNTT - peak_BNT1)
    total_BNT1 = jnp.sum(unnormalised_BNTT, axis=-1, keepdims=True)
    out = jnp.einsum("bnts,bsnh->btnh", unnormalised_BNTT / total_BNT1, v)
    lse_BTN = (peak_BNT1 + jnp.log(total_BNT1))[..., 0].swapaxes(1, 2)
    return jnp.where(alive_BT[:, :, None, None], out, 0), jnp.where(alive_BT[:, :, None], lse_BTN, -jnp.inf)
