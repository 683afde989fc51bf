"""Leave-one-out REINFORCE (RLOO) with a KL penalty in the reward, on the samples of a tree.

Source: Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free" (2019); Ahmadian et al., "Back to
basics" (arXiv 2402.14740). Arrays are [G, N, C]: trees, samples of a tree, tokens of a sample.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from pit.losses.total import Total


def sequence_kl(
    logp: Float32[Array, "G N C"], anchor_logp: Float32[Array, "G N C"], sampled: Bool[Array, "G N C"]
) -> Float32[Array, "G N"]:
    """Monte Carlo estimate (k1) of KL(policy || anchor) of each sample, nats: the sum of log p - log p_anchor.

    Exactly 0 when the two agree bit for bit; unbiased under the policy that sampled.
    """
    return jnp.sum(jnp.where(sampled, logp - anchor_logp, jnp.float32(0.0)), axis=-1)


def shaped_reward(
    score: Float32[Array, "G N"],
    kl_nats: Float32[Array, "G N"],
    finished: Bool[Array, "G N"],
    *,
    beta: float,
    no_eos_penalty: float,
) -> Float32[Array, "G N"]:
    """Score - beta * KL, less a penalty where the sample was cut off before it ended.

    >>> import jax.numpy as jnp
    >>> half, zero, done = jnp.full((1, 2), 0.5), jnp.zeros((1, 2)), jnp.array([[True, False]])
    >>> shaped_reward(half, zero, done, beta=0.1, no_eos_penalty=1.0).tolist()
    [[0.5, -0.5]]
    """
    penalty = jnp.where(finished, jnp.float32(0.0), jnp.float32(no_eos_penalty))
    reward: Array = score - jnp.float32(beta) * kl_nats - penalty
    return reward


def leave_one_out(reward: Float32[Array, "G N"]) -> Float32[Array, "G N"]:
    """Each sample's reward less the mean of its siblings' rewards; sums to 0 over the samples of a tree.

    >>> import jax.numpy as jnp
    >>> leave_one_out(jnp.array([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]
    """
    n = jnp.float32(reward.shape[1])
    advantage: Array = (reward - jnp.mean(reward, axis=1, keepdims=True)) * (n / (n - jnp.float32(1.0)))
    return advantage


def reinforce(
    logp: Float32[Array, "G N C"],
    advantage: Float32[Array, "G N"],
    sampled: Bool[Array, "G N C"],
    present: Bool[Array, " G"],
) -> Total:
    """-advantage * log p(sample), summed over the samples of all trees; the weight counts samples."""
    sample_logp = jnp.sum(jnp.where(sampled, logp, jnp.float32(0.0)), axis=-1)
    loss = -jax.lax.stop_gradient(advantage) * sample_logp
    samples = jnp.sum(present.astype(jnp.float32)) * jnp.float32(advantage.shape[1])
    return Total(jnp.sum(jnp.where(present[:, None], loss, jnp.float32(0.0))), samples)
