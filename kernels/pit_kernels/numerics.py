"""The precision that every operation computes in."""

import jax
import jax.numpy as jnp
import numpy as np


def accumulator(x: jax.Array) -> np.dtype:
    """Return float32 for every narrower type; float64 stays, so that a reference in float64 keeps its precision."""
    # Not promote_types: under strict promotion bfloat16 and float32 have no common type.
    return np.dtype(np.float64 if x.dtype == jnp.float64 else np.float32)
