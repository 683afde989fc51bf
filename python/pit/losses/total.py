"""The pair (sum, weight) that every loss and metric returns.

Pairs are added over microbatches and devices, and the mean is taken once, at the end.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


class Total(NamedTuple):
    """A sum and the weight to divide it by, in float32 (float64 in a reference run)."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


def added(updates: Sequence[Mapping[str, Total]]) -> dict[str, Total]:
    """Return the totals of several updates that report the same, name by name; those of one as they are.

    >>> import jax.numpy as jnp
    >>> one, two = ({"loss": Total(jnp.float32(x), jnp.float32(1))} for x in (1.0, 4.0))
    >>> [float(x) for x in added([one, two])["loss"]]
    [5.0, 2.0]
    """
    first, *others = updates
    result = dict(first)
    for totals in others:
        result = {name: Total(a.sum + totals[name].sum, a.weight + totals[name].weight) for name, a in result.items()}
    return result


def masked(values: Float32[Array, "*b"], present: Bool[Array, "*b"]) -> Total:
    """Return the sum of the values that are present, and their number.

    >>> import jax.numpy as jnp
    >>> [float(x) for x in masked(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False]))]
    [3.0, 2.0]
    """
    return Total(
        jnp.sum(jnp.where(present, values, jnp.float32(0.0))),
        jnp.sum(present.astype(jnp.float32)),
    )
