"""Losses on labelled pairs without a reward model: DPO for a policy, SRPO's loss of the improver.

Sources: Rafailov et al., "Direct Preference Optimization" (arXiv 2305.18290); Choi et al., "Self-Improving Robust
Preference Optimization" (arXiv 2406.01660). A ratio is log p(answer | its path), less the same under the anchor, nats.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from pit.losses.total import Total, masked
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW


def output_sums(
    values: Float32[Array, "R T"],
    weight: Float32[Array, "R T"],
    previous: Int32[Array, "R T"],
    leaf: Int32[Array, "G L 2"],
) -> Float32[Array, "G L"]:
    """Return the sum of the weighted values over the tokens of each output segment, 0 for absent ones.

    Args:
        values: a value per token.
        weight: weight of each token; only outputs have any, and each is a leaf.
        previous: index of the token before each on its path.
        leaf: row and index of the last token of each output.

    >>> import jax.numpy as jnp
    >>> previous = jnp.array([[0, 0, 1, 0, 3]])  # token 0, then outputs 1, 2 and 3, 4
    >>> weight = jnp.array([[0.0, 1.0, 1.0, 1.0, 1.0]])
    >>> output_sums(jnp.array([[9.0, 1.0, 2.0, 3.0, 4.0]]), weight, previous, jnp.array([[[0, 2], [0, 4]]])).tolist()
    [[3.0, 7.0]]
    """
    rows, tokens = values.shape
    index = jnp.arange(tokens, dtype=jnp.int32)[None, :]
    before = jnp.pad(weight[:, :-1], ((0, 0), (1, 0)))
    # An output begins where the token before it in the row is another segment's.
    begins = (previous != index - 1) | (before == 0)
    segment = jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    counted = jnp.where(weight > 0, weight * jnp.where(weight > 0, values, jnp.float32(0.0)), jnp.float32(0.0))
    sums = jnp.zeros_like(values).at[row, segment].add(counted)
    at = jnp.maximum(leaf, 0)
    of_leaf = sums[at[..., 0], segment[at[..., 0], at[..., 1]]]
    return jnp.where(leaf[..., 0] >= 0, of_leaf, jnp.float32(0.0))


def dpo(ratio: Float32[Array, "G 2"], present: Bool[Array, " G"], beta: float) -> Total:
    r"""Return -log sigmoid(beta (ratio_w - ratio_l)), summed over trees; beta in units per nat.

    >>> import jax.numpy as jnp
    >>> round(float(dpo(jnp.array([[3.0, 3.0]]), jnp.array([True]), 0.1).sum), 4)
    0.6931
    """
    return masked(-jax.nn.log_sigmoid(jnp.float32(beta) * (ratio[:, 0] - ratio[:, 1])), present)


def srpo_improvement(ratio: Float32[Array, "G 4"], present: Bool[Array, " G"], beta: float) -> Total:
    r"""Return SRPO's loss of the improver, summed over trees; leaf (answer, reference) as of the gap tree.

    With the KL to the anchor the best improver of a reference has p(y > ref | x) - 1/2 = beta (ratio(y | ref) -
    ratio(ref | ref)). Labels are taken as certain, p = 1 for the better answer, and both orders of a pair count half:

        1/2 (beta (r(w, l) - r(l, l)) - 1/2)^2 + 1/2 (beta (r(l, w) - r(w, w)) + 1/2)^2

    >>> import jax.numpy as jnp
    >>> float(srpo_improvement(jnp.zeros((1, 4)), jnp.array([True]), 0.1).sum)
    0.25
    """
    mended = jnp.float32(beta) * (ratio[:, GAP_WL] - ratio[:, GAP_LL])
    spoilt = jnp.float32(beta) * (ratio[:, GAP_LW] - ratio[:, GAP_WW])
    return masked(0.5 * (mended - 0.5) ** 2 + 0.5 * (spoilt + 0.5) ** 2, present)
