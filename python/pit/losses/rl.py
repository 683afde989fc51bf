"""Leave-one-out REINFORCE (RLOO) over the samples of a tree, and costs with the gradient of their expectation.

Source: Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free" (2019); Ahmadian et al., "Back to
basics" (arXiv 2402.14740). Arrays are [G, N, C]: trees, samples of a tree, tokens of a sample.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from pit.config import RatioLevel
from pit.losses.total import Total


def shaped_reward(
    score: Float[Array, "G N"],
    kl_nats: Float[Array, "G N"],
    finished: Bool[Array, "G N"],
    length: Int32[Array, "G N"],
    *,
    beta: float | Float[Array, ""],
    no_eos_penalty: float = 0.0,
    length_cost: float = 0.0,
    length_free: int = 0,
) -> Float[Array, "G N"]:
    """Return score - beta KL, less a penalty for samples that were cut off and a cost for tokens beyond the free ones.

    Args:
        score: Score of each sample by the reward model.
        kl_nats: KL of each sample that the reward is charged, a constant; zeros if the loss is charged instead.
        finished: Whether the sample ended with EOS.
        length: Tokens of the sample, EOS included.
        beta: KL coefficient, score per nat.
        no_eos_penalty: Penalty for a sample that was cut off, in units of the score.
        length_cost: Cost of every token beyond `length_free`, score per token.
        length_free: Number of tokens that cost nothing.

    >>> import jax.numpy as jnp
    >>> half, zero, done = jnp.full((1, 2), 0.5), jnp.zeros((1, 2)), jnp.array([[True, False]])
    >>> shaped_reward(half, zero, done, jnp.array([[3, 5]]), beta=0.1, no_eos_penalty=1.0).tolist()
    [[0.5, -0.5]]
    >>> shaped_reward(half, zero, done, jnp.array([[3, 5]]), beta=0.1, length_cost=0.25, length_free=4).tolist()
    [[0.5, 0.25]]
    """
    penalty = jnp.where(finished, 0.0, no_eos_penalty).astype(score.dtype)
    excess = jnp.maximum(length - length_free, 0).astype(score.dtype)
    reward: Array = score - beta * kl_nats - penalty - length_cost * excess
    return reward


def sample_sum(values: Float[Array, "G N C"], sampled: Bool[Array, "G N C"]) -> Float[Array, "G N"]:
    """Return the sum over the tokens of each sample; places without a token add nothing, even if they hold NaN.

    >>> import jax.numpy as jnp
    >>> sample_sum(jnp.array([[[1.0, 2.0, jnp.nan]]]), jnp.array([[[True, True, False]]])).tolist()
    [[3.0]]
    """
    return jnp.sum(jnp.where(sampled, values, 0.0), axis=-1)


def leave_one_out(values: Float[Array, "G N *c"]) -> Float[Array, "G N *c"]:
    """Return each sample's value less the mean of its siblings' values; the result sums to 0 over a tree.

    >>> import jax.numpy as jnp
    >>> leave_one_out(jnp.array([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]
    """
    n = values.shape[1]
    # n / (n - 1) in the precision of the values.
    factor = jnp.asarray(n, values.dtype) / jnp.asarray(n - 1, values.dtype)
    result: Array = (values - jnp.mean(values, axis=1, keepdims=True)) * factor
    return result


def expected_cost(
    cost: Float[Array, "G N C"],
    scored: Float[Array, "G N C"],
    logp: Float[Array, "G N C"],
    sampled: Bool[Array, "G N C"],
    *,
    include_current: bool,
) -> Float[Array, "G N"]:
    r"""Return the cost of each sample, with the gradient of the *expected* cost under the policy that sampled.

    The gradient of an expectation has two terms: grad E[sum_t c_t] = E[sum_t grad c_t + sum_s W_s grad log p(y_s)].
    W_s = sum_{t >= s} c_t holds the costs that token s may have caused; earlier costs cannot depend on it. The second
    term is the score term. Here the first term comes from differentiating `cost`. The second comes from `scored`, which
    is a constant, as is W. The siblings' mean of W at the same place is subtracted as a baseline, which leaves the
    expectation unchanged. The gradient is right for samples of the current policy, that is for one update per rollout.

    Args:
        cost: Cost of each token, differentiable where its gradient belongs to the first term.
        scored: Costs by which the score term weighs the tokens.
        logp: Log-prob of each token, nats.
        sampled: Whether each of the C places holds a token.
        include_current: Whether W_s includes the cost of token s itself. False if that cost does not depend on y_s
            (its part of the score term then has expectation 0) or if the gradient of `cost` already accounts for it.

    >>> import jax, jax.numpy as jnp
    >>> logp, costs, there = jnp.full((1, 2, 2), -1.0), jnp.array([[[1.0, 2.0], [0.0, 0.0]]]), jnp.full((1, 2, 2), True)
    >>> expected_cost(costs, costs, logp, there, include_current=True).tolist()
    [[3.0, 0.0]]
    >>> jax.grad(lambda x: expected_cost(costs, costs, x, there, include_current=True).sum())(logp).tolist()
    [[[3.0, 2.0], [-3.0, -2.0]]]
    """
    scored = lax.stop_gradient(jnp.where(sampled, scored, 0.0))
    to_go = jnp.flip(jnp.cumsum(jnp.flip(scored, axis=-1), axis=-1), axis=-1)
    if not include_current:
        to_go = jnp.pad(to_go[..., 1:], ((0, 0), (0, 0), (0, 1)))
    score = leave_one_out(to_go) * (logp - lax.stop_gradient(logp))
    return sample_sum(cost + score, sampled)


def reinforce(
    logp: Float[Array, "G N C"],
    advantage: Float[Array, "G N"],
    sampled: Bool[Array, "G N C"],
    present: Bool[Array, " G"],
) -> Total:
    """Return -advantage * log p(sample), summed over the samples of the trees that are present; the weight counts them.

    >>> import jax.numpy as jnp
    >>> logp, here = jnp.full((1, 2, 3), -1.0), jnp.full((1, 2, 3), True)
    >>> [float(x) for x in reinforce(logp, jnp.array([[2.0, -1.0]]), here, jnp.array([True]))]
    [3.0, 2.0]
    """
    loss = -lax.stop_gradient(advantage) * sample_sum(logp, sampled)
    samples = jnp.sum(present.astype(loss.dtype)) * advantage.shape[1]
    return Total(jnp.sum(jnp.where(present[:, None], loss, 0.0)), samples)


LARGEST_LOG_RATIO = 20.0
"""Bound on the log-ratios of `clipped`, far outside of any clip range: beyond it exp(x) could become infinite."""


# Seven parameters: what REINFORCE reads, with a ratio in the place of a log-prob, and how the ratio is clipped.
def clipped(
    log_ratio: Float[Array, "G N C"],
    advantage: Float[Array, "G N"],
    sampled: Bool[Array, "G N C"],
    present: Bool[Array, " G"],
    *,
    level: RatioLevel,
    low: float,
    high: float,
) -> tuple[Total, dict[str, Total]]:
    r"""Return -min(r A, clip(r, 1 - low, 1 + high) A), summed as `reinforce` does, and how far the policy has moved.

    r = p(.) / p_rollout(.) is of each token or of the whole answer. Where r = 1 the gradient is that of `reinforce`.
    Outside the clip range it is 0 where a larger step would raise the objective, and only there (Schulman et al., arXiv
    1707.06347; the ratio of whole answers: Ahmadian et al., arXiv 2402.14740, in TRL).

    Args:
        log_ratio: log r of each token, nats, differentiable.
        advantage: Advantage of each sample, a constant.
        sampled: Whether each of the C places holds a token.
        present: Trees that are in the batch.
        level: Whether r is of each "token" or of the "sequence".
        low: Distance of the range's lower end from 1.
        high: Distance of its upper end from 1.

    Returns:
        The loss; and "clipped", the share of tokens (or answers) whose gradient is 0, with "kl", the KL of the policy
        that sampled to this one by k3, nats per answer.

    >>> import jax.numpy as jnp
    >>> ratio = jnp.log(jnp.array([[[1.5, 0.5]], [[1.5, 0.5]]]))
    >>> there = jnp.full((2, 1, 2), True), jnp.full(2, True)
    >>> loss, moved = clipped(ratio, jnp.array([[1.0], [-1.0]]), *there, level="token", low=0.2, high=0.2)
    >>> round(float(loss.sum), 4), [float(x) for x in moved["clipped"]]  # -(1.2 + 0.5) + (1.5 + 0.8)
    (0.6, [2.0, 4.0])
    """
    moved_GNC = jnp.clip(jnp.where(sampled, log_ratio, 0.0), -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    kl = sample_sum(jnp.expm1(moved_GNC) - moved_GNC, sampled)
    if level == "sequence":
        whole = jnp.sum(moved_GNC, axis=-1, keepdims=True)
        moved_GNC = jnp.clip(whole, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        counted = sampled[:, :, :1]
    else:
        counted = sampled
    ratio, factor = jnp.exp(moved_GNC), lax.stop_gradient(advantage)[:, :, None]
    rises = factor > 0
    bounded = jnp.where(rises, jnp.minimum(ratio, 1.0 + high), jnp.maximum(ratio, 1.0 - low))
    beyond = jnp.where(rises, ratio > 1.0 + high, (ratio < 1.0 - low) & (factor < 0))
    loss = -sample_sum(factor * bounded, counted)
    samples = jnp.sum(present.astype(loss.dtype)) * advantage.shape[1]
    moved = {
        "clipped": Total(jnp.sum((beyond & counted).astype(loss.dtype)), jnp.sum(counted.astype(loss.dtype))),
        "kl": Total(jnp.sum(lax.stop_gradient(kl)), samples),
    }
    return Total(jnp.sum(jnp.where(present[:, None], loss, 0.0)), samples), moved


def adapted_beta(beta: float, kl_nats: float, *, target: float, gain: float) -> float:
    r"""Return the KL coefficient of the next step by a proportional controller (Ziegler et al. 2019, section 2.2).

    beta' = beta (1 + gain * clip(kl / target - 1, -0.2, 0.2)).

    Args:
        beta: KL coefficient of this step, score per nat.
        kl_nats: Mean KL of this step's samples.
        target: KL to hold, nats, > 0.
        gain: Gain of the controller (0.1 in the source); one step changes beta by at most a fifth of it.

    >>> [round(adapted_beta(0.5, kl, target=4.0, gain=0.1), 3) for kl in (0.0, 4.4, 99.0)]
    [0.49, 0.505, 0.51]
    """
    return beta * (1.0 + gain * min(max(kl_nats / target - 1.0, -0.2), 0.2))
