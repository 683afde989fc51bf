"""bfloat16 arrays as bits, for XLA's CPU backend.

That backend computes most of bfloat16 in float32, updates of a slice too: where one slice of an array is written, the
whole array is widened and narrowed again. As uint16 the slice is written alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pit_kernels.dispatch import platform_of_mesh


def on_cpu() -> bool:
    """Return whether what is traced now is for CPUs: by the mesh in context, without one by JAX's default."""
    return (platform_of_mesh() or jax.default_backend()) == "cpu"


def as_bits(x: jax.Array) -> jax.Array:
    """Return the bits of a bfloat16 array as uint16, and any other array as it is."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def of_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    """Return the array of a dtype that `as_bits` was given."""
    return lax.bitcast_convert_type(bits, dtype) if dtype == jnp.bfloat16 else bits


def written(array: jax.Array, part: jax.Array, at: jax.Array, axis: int) -> jax.Array:
    """Return the array with a part written into it, from an index of one axis on."""
    if not on_cpu():
        whole: jax.Array = lax.dynamic_update_slice_in_dim(array, part, at, axis)
        return whole
    bits = lax.dynamic_update_slice_in_dim(as_bits(array), as_bits(part), at, axis)
    return of_bits(bits, array.dtype)
