"""Loss of supervised fine-tuning: the negative log-likelihood of the tokens that carry loss (PIT, section 3.2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float32

from pit.losses.total import Total


def token_nll(logp: Float32[Array, "B T"], weight: Float32[Array, "B T"]) -> Total:
    r"""Return the weighted sum of -log p(token | its path), nats, and the sum of the weights.

    For M_P the weighted tokens are y_w after x; for M_PIT they are y_w after (x, y_l).

    >>> import jax.numpy as jnp
    >>> total = token_nll(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[0.0, 1.0]]))
    >>> round(float(total.sum / total.weight), 4)
    1.3863
    """
    # Padding has weight 0 and may hold -inf or NaN; where() keeps it out of the sum and of the gradient.
    nll = jnp.where(weight > 0, -jnp.where(weight > 0, logp, jnp.float32(0.0)) * weight, jnp.float32(0.0))
    return Total(jnp.sum(nll), jnp.sum(weight))
