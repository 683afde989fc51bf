"""KL of the policy to its anchor: estimates from the sampled tokens, the exact one over the vocabulary, and each as a
term of the loss with its right gradient.

Source: Schulman, "Approximating KL divergence" (2020); Tang and Munos (arXiv 2506.09477) and Liu et al. (arXiv
2510.01555) on which of them may be differentiated where. Arrays are [G, N, C]: trees, samples of a tree, tokens of a
sample; docs/rl.md says which estimator to use.
"""

from typing import NamedTuple, assert_never

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from pit.config import KlEstimator, KlPlace
from pit.losses.rl import expected_cost, sample_sum
from pit_kernels import numerics
from pit_kernels.token_logprob.xla import chunk_count


class Readout(NamedTuple):
    """What a model's distribution is read off: hidden states after the final norm, and the output table."""

    hidden: Float[Array, "M D"]
    table: Float[Array, "V D"]


def token_kl(estimator: KlEstimator, log_ratio: Float[Array, "*b"]) -> Float[Array, "*b"]:
    r"""Estimate of KL(p || q), nats, from one token drawn from p, by x = log p(token) - log q(token).

    k1 = x and k3 = exp(-x) - 1 + x have the KL as their expectation; k2 = x^2 / 2 has an expectation of its own, near
    the KL where p is near q (Schulman 2020). All three are exactly 0 at x = 0.

    Raises:
        ValueError: the estimator is "full", which no sampled token gives; see `vocabulary_kl`.

    >>> import jax.numpy as jnp
    >>> [round(float(token_kl(name, jnp.array([0.5]))[0]), 4) for name in ("k1", "k2", "k3")]
    [0.5, 0.125, 0.1065]
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * jnp.square(log_ratio)
    if estimator == "k3":
        return jnp.expm1(-log_ratio) + log_ratio
    if estimator == "full":
        raise ValueError("estimator = 'full': is no function of the sampled token; use vocabulary_kl")
    assert_never(estimator)


def vocabulary_kl(
    policy: Readout,
    anchor: Readout,
    valid: Bool[Array, " M"],
    *,
    temperature: float = 1.0,
    logit_soft_cap: float | None = None,
) -> Float[Array, " M"]:
    r"""KL(p || q) = sum_v p(v) (log p(v) - log q(v)) of each row, nats, over the whole vocabulary; 0 in invalid rows.

    Rows go through in chunks, forward and backward, so that no M x V array lives beyond a chunk. Differentiable in both
    readouts; exactly 0 where they hold the same bits. Log-probs are those of `pit_kernels.token_logprob`: softmax of
    soft_cap(hidden . table) / temperature.

    Args:
        policy: of p.
        anchor: of q, of the same shapes.
        valid: rows that count; what the others hold reaches nothing.
        temperature: divides the logits.
        logit_soft_cap: c of the cap c tanh(z / c) before the temperature (Gemma 2).

    >>> import jax.numpy as jnp
    >>> table = jnp.log(jnp.array([[0.5], [0.25], [0.25]]))
    >>> p, q = Readout(jnp.ones((1, 1)), table), Readout(jnp.zeros((1, 1)), table)
    >>> round(float(vocabulary_kl(p, q, jnp.array([True]))[0]), 4)  # log 3 less the entropy, 1.5 log 2
    0.0589
    """
    rows, vocabulary = policy.hidden.shape[0], policy.table.shape[0]
    chunks = chunk_count(2 * rows, vocabulary)

    def logits(hidden: Float[Array, "m D"], table: Float[Array, "V D"]) -> Float[Array, "m V"]:
        return jnp.einsum("md,vd->mv", hidden, table, preferred_element_type=numerics.accumulator(hidden))

    @jax.checkpoint
    def of_chunk(hidden: tuple[Float[Array, "m D"], Float[Array, "m D"]]) -> Float[Array, " m"]:
        # Both sides in one array between barriers: one loop computes them, and equal readouts have equal bits.
        both = jnp.stack([logits(hidden[0], policy.table), logits(hidden[1], anchor.table)])
        both = lax.optimization_barrier(both)
        if logit_soft_cap is not None:
            both = logit_soft_cap * jnp.tanh(both / logit_soft_cap)
        log_p_MV, log_q_MV = lax.optimization_barrier(jax.nn.log_softmax(both / temperature, axis=-1))
        return jnp.sum(jnp.exp(log_p_MV) * (log_p_MV - log_q_MV), axis=-1)

    def split(hidden: Float[Array, "M D"]) -> Float[Array, "n m D"]:
        # Chunk i takes rows i, i + n, ...: where rows are sharded, every chunk has rows of every shard.
        size = -(-rows // chunks)
        padded = jnp.pad(jnp.where(valid[:, None], hidden, 0), ((0, size * chunks - rows), (0, 0)))
        return padded.reshape(size, chunks, -1).swapaxes(0, 1)

    kl_nm = lax.map(of_chunk, (split(policy.hidden), split(anchor.hidden)))
    return jnp.where(valid, kl_nm.swapaxes(0, 1).reshape(-1)[:rows], 0.0)


def kl_cost(
    estimator: KlEstimator,
    place: KlPlace,
    logp: Float[Array, "G N C"],
    anchor: Float[Array, "G N C"],
    sampled: Bool[Array, "G N C"],
) -> Float[Array, "G N"]:
    r"""The KL of each sample as a term of the loss, nats; its gradient is what the estimator at its place lacks.

    In the loss ("loss") the term carries the whole gradient, in expectation that of KL(policy || anchor):

    =========  ==========================  ================================
    estimator  differentiated              score term weighs
    =========  ==========================  ================================
    k1         nothing: E[grad x] = 0      x_t, t >= s
    k2         x^2 / 2: E[x grad log p]    x_t, t > s
    k3         k3                          k3_t, t >= s
    full       KL over the vocabulary      KL_t, t > s
    =========  ==========================  ================================

    In the reward ("reward") the score term is the reward's own (REINFORCE weighs the sample by it), and the term here
    is what is differentiated: with both the gradient is that of the expectation of the estimate, which for k2 is
    E[sum_t x_t^2 / 2] and not the KL. Without it k3 and full in the reward would have a wrong gradient.

    Args:
        estimator: which.
        place: where the KL is charged.
        logp: log-probs of the policy, nats, differentiable.
        anchor: log-probs of the anchor; with "full" the `vocabulary_kl` at each token, differentiable.
        sampled: which of the C places hold a token.

    >>> import jax, jax.numpy as jnp
    >>> logp, there = jnp.array([[[-1.0], [-2.0]]]), jnp.full((1, 2, 1), True)
    >>> kl_cost("k1", "loss", logp, jnp.full((1, 2, 1), -3.0), there).tolist()
    [[2.0, 1.0]]
    >>> jax.grad(lambda x: kl_cost("k1", "loss", x, jnp.full((1, 2, 1), -3.0), there).sum())(logp).tolist()
    [[[1.0], [-1.0]]]
    """
    if estimator == "full":
        cost = scored = anchor
    else:
        log_ratio = jnp.where(sampled, logp - lax.stop_gradient(anchor), 0.0)
        cost = token_kl(estimator, log_ratio)
        scored = log_ratio if estimator == "k2" else cost
        cost = lax.stop_gradient(cost) if estimator == "k1" else cost
    if place == "reward":
        return sample_sum(cost, sampled)
    return expected_cost(cost, scored, logp, sampled, own=estimator in ("k1", "k3"))
