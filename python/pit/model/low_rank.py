"""Low-rank terms of projections (LoRA, Hu et al., arXiv 2106.09685), and the modules that may hold them.

`pit.model.adapters` decides which projections of a decoder get one.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt32

from pit.config import AdapterConfig
from pit.model.linear import linear


def draw_a(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return an initial A of inputs x rank: uniform within 1 / sqrt(inputs), as PEFT draws it."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)


class LowRank(nnx.Module):
    """The term scale x A B of a projection; A is random (see `draw_a`), and B is 0.

    Args:
        inputs: axes of x that the projection reads, A's first ones.
        outputs: axes that it writes, B's last ones.
        config: rank, scale and dropout.
        rngs: source of A.
    """

    key: UInt32[Array, "2"] | None = None
    """Random key of the dropout of one forward pass; None without dropout."""

    def __init__(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], config: AdapterConfig, rngs: nnx.Rngs
    ) -> None:
        self.a = nnx.Param(draw_a(rngs.params(), (*inputs, config.rank)))
        self.b = nnx.Param(jnp.zeros((config.rank, *outputs), jnp.float32))
        self.scale, self.dropout = config.scale, config.dropout

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the term for x, in its dtype; the last axes of x are the inputs."""
        if self.key is not None and self.dropout:
            keep = jax.random.bernoulli(jax.random.wrap_key_data(self.key), 1.0 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1.0 - self.dropout), jnp.zeros((), x.dtype))
        low = linear(x, self.a[...], self.a[...].ndim - 1)
        return linear(low * self.scale, self.b[...])


class Adaptable(nnx.Module):
    """A module whose projections may have low-rank terms, by the name of the projection."""

    adapters: nnx.Dict[LowRank] | None = None

    def with_term(self, name: str, x: Float[Array, "..."], projected: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return what a projection made of x, and its low-rank term if it has one."""
        if self.adapters is None or name not in self.adapters:
            return projected
        return projected + self.adapters[name](x)
