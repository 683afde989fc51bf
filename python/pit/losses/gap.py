"""Losses of the two reward models: Bradley-Terry on pairs of answers, and PIT's ordered pairs of gaps.

Source: Bradley and Terry (1952); PIT, section 3.3, equation 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from pit.losses.total import Total, masked
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW

ORDERED_PAIRS = (
    (GAP_WL, GAP_WW),
    (GAP_WL, GAP_LL),
    (GAP_WL, GAP_LW),
    (GAP_WW, GAP_LW),
    (GAP_LL, GAP_LW),
)
"""Indices (higher, lower) of r(w,l) >= r(w,w) ~ r(l,l) >= r(l,w); the order of (w,w) and (l,l) is left open."""


def pairwise(score: Float32[Array, "G 2"], present: Bool[Array, " G"]) -> Total:
    r"""Return -log sigmoid(r(x, y_w) - r(x, y_l)), summed over trees: the loss of R_P.

    >>> import jax.numpy as jnp
    >>> round(float(pairwise(jnp.array([[1.0, 1.0]]), jnp.array([True])).sum), 4)
    0.6931
    """
    return masked(-jax.nn.log_sigmoid(score[:, 0] - score[:, 1]), present)


def five_pairs(score: Float32[Array, "G 4"], present: Bool[Array, " G"]) -> Total:
    r"""Return the sum over `ORDERED_PAIRS` of -log sigmoid(r_higher - r_lower), summed over trees (PIT, equation 3).

    Equal scores cost 5 log 2 per tree:

    >>> import jax.numpy as jnp
    >>> round(float(five_pairs(jnp.zeros((1, 4)), jnp.array([True])).sum), 4)
    3.4657
    """
    higher = jnp.stack([score[:, h] for h, _ in ORDERED_PAIRS], axis=1)
    lower = jnp.stack([score[:, low] for _, low in ORDERED_PAIRS], axis=1)
    return masked(-jnp.sum(jax.nn.log_sigmoid(higher - lower), axis=1), present)


def antisymmetric(score: Float32[Array, "G 4"], present: Bool[Array, " G"]) -> Total:
    r"""Return -log sigmoid(g), g = (r(w,l) - r(l,w)) / 2, summed over trees: the logistic loss of the symmetric gap.

    g changes its sign where answer and reference are exchanged, whatever the scores are, and is the log-odds of the
    label at the optimum; `one_pair` is the same function of 2 g.

    >>> import jax.numpy as jnp
    >>> round(float(antisymmetric(jnp.array([[9.0, 0.0, 2.0, -9.0]]), jnp.array([True])).sum), 4)  # log(1 + 1 / e)
    0.3133
    """
    return masked(-jax.nn.log_sigmoid((score[:, GAP_WL] - score[:, GAP_LW]) / 2), present)


def one_pair(score: Float32[Array, "G 4"], present: Bool[Array, " G"]) -> Total:
    r"""Return -log sigmoid(r(w,l) - r(l,w)), summed over trees: the ablation that leaves (w,w) and (l,l) unranked.

    >>> import jax.numpy as jnp
    >>> round(float(one_pair(jnp.array([[9.0, 1.0, 1.0, -9.0]]), jnp.array([True])).sum), 4)
    0.6931
    """
    return masked(-jax.nn.log_sigmoid(score[:, GAP_WL] - score[:, GAP_LW]), present)
