"""KL of the policy to its anchor: estimates from sampled tokens, the exact KL over the vocabulary, and the loss terms.

Source: Schulman, "Approximating KL divergence" (2020); Tang and Munos (arXiv 2506.09477) and Liu et al. (arXiv
2510.01555) on the gradients of the estimators. Arrays are [G, N, C]: trees, samples of a tree, tokens of a sample;
docs/concepts/rl.md compares the estimators.
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


class FactoredLogits(NamedTuple):
    """Logits as two factors, hidden states after the final norm and the output table: logits = hidden @ table.T."""

    hidden: Float[Array, "M D"]
    table: Float[Array, "V D"]


def token_kl(estimator: KlEstimator, log_ratio: Float[Array, "*b"]) -> Float[Array, "*b"]:
    r"""Return an estimate of KL(p || q), nats, from one token sampled from p, with x = log p(token) - log q(token).

    k1 = x and k3 = exp(-x) - 1 + x have the KL as their expectation. The expectation of k2 = x^2 / 2 differs from the
    KL and is near it where p is near q (Schulman 2020). All three are exactly 0 at x = 0.

    Raises:
        ValueError: The estimator is "full", which needs the whole distribution; see `vocabulary_kl`.

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
        raise ValueError("estimator = 'full' needs the whole distribution, not one token; call vocabulary_kl")
    assert_never(estimator)


def vocabulary_kl(
    policy: FactoredLogits,
    anchor: FactoredLogits,
    valid: Bool[Array, " M"],
    *,
    temperature: float = 1.0,
    logit_soft_cap: float | None = None,
) -> Float[Array, " M"]:
    r"""Return KL(p || q) = sum_v p(v) (log p(v) - log q(v)) of each row, nats; 0 in invalid rows.

    Rows are computed in chunks, forward and backward, so that only one chunk of an M x V array exists at a time. The
    result is differentiable in all four arrays, and exactly 0 where policy and anchor hold the same bits. Log-probs
    are those of `pit_kernels.token_logprob`: the log-softmax of soft_cap(hidden . table) / temperature.

    Args:
        policy: Logits of p.
        anchor: Logits of q, of the same shapes.
        valid: Rows to compute; the contents of other rows reach neither the result nor a gradient.
        temperature: Divisor of the logits.
        logit_soft_cap: c of the cap c tanh(z / c), applied before the temperature (Gemma 2).

    >>> import jax.numpy as jnp
    >>> table = jnp.log(jnp.array([[0.5], [0.25], [0.25]]))
    >>> p, q = FactoredLogits(jnp.ones((1, 1)), table), FactoredLogits(jnp.zeros((1, 1)), table)
    >>> round(float(vocabulary_kl(p, q, jnp.array([True]))[0]), 4)  # log 3 less the entropy, 1.5 log 2
    0.0589
    """
    rows, vocabulary = policy.hidden.shape[0], policy.table.shape[0]
    chunks = chunk_count(2 * rows, vocabulary)

    def logits(hidden: Float[Array, "m D"], table: Float[Array, "V D"]) -> Float[Array, "m V"]:
        return jnp.einsum("md,vd->mv", hidden, table, preferred_element_type=numerics.accumulator(hidden))

    @jax.checkpoint
    def chunk_kl(hidden: tuple[Float[Array, "m D"], Float[Array, "m D"]]) -> Float[Array, " m"]:
        # Both sides in one array between barriers: one loop computes them, and equal inputs give equal bits.
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

    kl_nm = lax.map(chunk_kl, (split(policy.hidden), split(anchor.hidden)))
    return jnp.where(valid, kl_nm.swapaxes(0, 1).reshape(-1)[:rows], 0.0)


def kl_cost(
    estimator: KlEstimator,
    place: KlPlace,
    logp: Float[Array, "G N C"],
    anchor: Float[Array, "G N C"],
    sampled: Bool[Array, "G N C"],
) -> Float[Array, "G N"]:
    r"""Return the KL of each sample as a term of the loss, nats.

    With place "loss" the term has the whole gradient; its expectation is the gradient of KL(policy || anchor):

    =========  ==========================  ================================
    estimator  differentiated              weight in the score term
    =========  ==========================  ================================
    k1         nothing: E[grad x] = 0      x_t, t >= s
    k2         x^2 / 2: E[x grad log p]    x_t, t > s
    k3         k3                          k3_t, t >= s
    full       KL over the vocabulary      KL_t, t > s
    =========  ==========================  ================================

    With place "reward" the reward already holds the estimate, and REINFORCE gives the score term. The term returned
    here adds the differentiated part alone, without which k3 and full would have a wrong gradient. Together they have
    the gradient of the expected estimate, which for k2 is E[sum_t x_t^2 / 2] and not the KL.

    Args:
        estimator: Estimator of the KL.
        place: Whether the reward or the loss is charged the KL.
        logp: Log-probs of the policy, nats, differentiable.
        anchor: Log-probs of the anchor; with "full" the `vocabulary_kl` at each token, differentiable.
        sampled: Whether each of the C places holds a token.

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
    return expected_cost(cost, scored, logp, sampled, include_current=estimator in ("k1", "k3"))
