"""Shaped rewards: the score of each sample, less the KL to the anchor where it is charged here, less penalties."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from pit.config import RlConfig
from pit.losses.kl import token_kl
from pit.losses.rl import sample_sum, shaped_reward


# Eight arguments: the score, the coefficient, three readings and two facts of each sample.
@jax.jit(static_argnames="config")
def shaped(
    config: RlConfig,
    scores: Float32[Array, "G N"],
    beta: Float32[Array, ""],
    logp: Float32[Array, "G N C"],
    anchor_logp: Float32[Array, "G N C"],
    kl: Float32[Array, "G N C"],
    finished: Bool[Array, "G N"],
    length: Int32[Array, "G N"],
) -> tuple[Array, Array, Array, Array]:
    """Return the KL by k1, the KL by the estimator, the entropy, and the shaped reward of each sample."""
    sampled = jnp.arange(logp.shape[2], dtype=jnp.int32)[None, None, :] < length[:, :, None]
    log_ratio = logp - anchor_logp
    estimate = kl if config.kl.estimator == "full" else token_kl(config.kl.estimator, log_ratio)
    penalty = sample_sum(estimate, sampled)
    reward = shaped_reward(
        scores,
        penalty if config.kl.place == "reward" else jnp.zeros_like(penalty),
        finished,
        length,
        beta=beta,
        no_eos_penalty=config.no_eos_penalty,
        length_cost=config.length_cost,
        length_free=config.length_free,
    )
    return sample_sum(log_ratio, sampled), penalty, sample_sum(-logp, sampled), reward
