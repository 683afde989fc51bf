"""The obvious log-probabilities: all M x V logits, then a log-softmax, in the dtype of the inputs."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def token_logprob(
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    *,
    layout: Literal["vd", "dv"] = "vd",
    valid: Bool[Array, " M"] | None = None,
    temperature: float = 1.0,
    logit_soft_cap: float | None = None,
    bias: Float[Array, " V"] | None = None,
) -> tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " M"]]:
    """Return the log-probability, log-sum-exp and entropy by the definition; arguments as in `api.token_logprob`."""
    valid = jnp.ones(target.shape, bool) if valid is None else valid
    hidden = jnp.where(valid[:, None], hidden, 0)
    logits_MV = hidden @ (weight.T if layout == "vd" else weight)
    if bias is not None:
        logits_MV = logits_MV + bias[None, :]
    if logit_soft_cap is not None:
        logits_MV = logit_soft_cap * jnp.tanh(logits_MV / logit_soft_cap)
    logits_MV = logits_MV / temperature
    log_p_MV = jax.nn.log_softmax(logits_MV, axis=-1)
    logp = jnp.take_along_axis(log_p_MV, jnp.where(valid, target, 0)[:, None], axis=1)[:, 0]
    lse = jax.nn.logsumexp(logits_MV, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p_MV) * log_p_MV, axis=-1)
    return jnp.where(valid, logp, 0), jnp.where(valid, lse, 0), jnp.where(valid, entropy, 0)
