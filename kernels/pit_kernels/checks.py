"""Argument checks that the operations share: each failure is one ValueError with name, value, rule and remedy."""

import math

import jax
import jax.numpy as jnp


def require_rank(operation: str, name: str, x: jax.Array, letters: str) -> None:
    """Require one axis for each space-separated letter of `letters`; "" stands for a scalar."""
    rank = len(letters.split())
    if x.ndim != rank:
        raise ValueError(f"{operation}: {name} has shape {x.shape}; it must have rank {rank}, [{letters}]")


def require_shape(operation: str, name: str, x: jax.Array, letters: str, expected: tuple[int, ...]) -> None:
    """Require the shape that the other arguments imply."""
    if x.shape != expected:
        raise ValueError(f"{operation}: {name} has shape {x.shape}; it must be [{letters}] = {expected}")


def require_int32(operation: str, name: str, x: jax.Array) -> None:
    """Require int32."""
    if x.dtype != jnp.int32:
        raise ValueError(
            f"{operation}: {name} has dtype {x.dtype}; it must be int32: convert it with .astype(jnp.int32)"
        )


def require_same_float(operation: str, **arrays: jax.Array) -> None:
    """Require one floating dtype for all the arrays."""
    dtypes = {name: x.dtype for name, x in arrays.items()}
    listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
    if len(set(dtypes.values())) > 1 or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes.values()):
        raise ValueError(f"{operation}: dtypes are {listed}; they must be one floating dtype: cast them to the same")


def require_grouped_heads(operation: str, heads: int, kv_heads: int) -> None:
    """Require the number of query heads to be a positive multiple of the number of key/value heads."""
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{operation}: q has N={heads} heads and k has K={kv_heads}; N must be a multiple of K, "
            "so that each key/value head serves N/K query heads"
        )


def require_positive(operation: str, name: str, value: object) -> None:
    """Require a finite Python number above 0."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise ValueError(
            f"{operation}: {name} is {value!r}; it must be a Python float, finite and above 0, known when the "
            "program is compiled"
        )


def require_window(operation: str, window: object) -> None:
    """Require a positive Python int."""
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(
            f"{operation}: window is {window!r}; it must be an int of at least 1, known when the program is compiled, "
            "or None"
        )
