"""The pair every loss and metric is summed up in, so that means are taken once, over microbatches and devices alike."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


class Total(NamedTuple):
    """A sum and the weight it is to be divided by, in float32 (float64 where a reference run is in it)."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


def masked(values: Float32[Array, "*b"], present: Bool[Array, "*b"]) -> Total:
    """Sum of the values that are present, and their number."""
    return Total(
        jnp.sum(jnp.where(present, values, jnp.float32(0.0))),
        jnp.sum(present.astype(jnp.float32)),
    )
