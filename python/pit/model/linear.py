"""Linear projections that accumulate in float32, forward and backward, whatever the dtype of their operands.

An accelerator's matrix unit does so by itself. A CPU's (AMX) is used by XLA only for a product that says so: 5 times
the speed of a bfloat16 product that does not, and then only where the first operand is not read across its rows.
"""

import math

import jax.numpy as jnp
from jax import custom_vjp, lax
from jaxtyping import Array, Float

from pit.model.bits import on_cpu


def linear(x: Float[Array, "..."], weight: Float[Array, "..."], inputs: int = 1) -> Float[Array, "..."]:
    """Return the product of x and a weight over the last `inputs` axes of x and the first ones of the weight.

    The result has the dtype of x, to which the weight is cast; the gradient of the weight has the weight's own dtype
    and is never rounded to that of x.
    """
    if x.dtype != jnp.bfloat16 and not on_cpu():
        return jnp.tensordot(x, weight.astype(x.dtype), axes=inputs)
    # As matrices: of more axes, XLA's CPU backend has not every bfloat16 product with float32 sums, and it transposes
    # d_out in memory for a weight's gradient, which takes as long as all products of the layer.
    rows, outputs = x.shape[: x.ndim - inputs], weight.shape[inputs:]
    width = math.prod(weight.shape[:inputs])
    product = _accumulated if x.dtype == jnp.bfloat16 else _plain
    return product(x.reshape(-1, width), weight.reshape(width, -1)).reshape(*rows, *outputs)


def _plain(x: Float[Array, "m d"], weight: Float[Array, "d n"]) -> Float[Array, "m n"]:
    return jnp.dot(x, weight.astype(x.dtype))


@custom_vjp
def _accumulated(x: Float[Array, "m d"], weight: Float[Array, "d n"]) -> Float[Array, "m n"]:
    return _product(x, weight.astype(x.dtype), 1, 0).astype(x.dtype)


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _accumulated(x, weight), (x, weight)


def _backward(operands: tuple[Array, Array], d_out: Float[Array, "m n"]) -> tuple[Array, Array]:
    x, weight = operands
    d_x = _product(d_out, weight.astype(x.dtype), 1, 1)
    return d_x.astype(x.dtype), _summed_over_rows(x, d_out).astype(weight.dtype)


_accumulated.defvjp(_forward, _backward)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _summed_over_rows(x: Float[Array, "m d"], y: Float[Array, "m n"]) -> Float[Array, "d n"]:
    """Return the transpose of x times y."""
    if not on_cpu():
        return _product(x, y, 0, 0)
    if x.shape[1] <= y.shape[1]:
        return _product(_transposed(x), y, 1, 0)
    # Without the barrier XLA would turn this into the product that it has no matrix unit for.
    flipped: Array = lax.optimization_barrier(_product(_transposed(y), x, 1, 0))
    return flipped.T


def _transposed(x: Float[Array, "m d"]) -> Float[Array, "d m"]:
    """Return x transposed in memory, by a product: XLA would have the next product read x across its rows."""
    identity = lax.optimization_barrier(jnp.eye(x.shape[1], dtype=x.dtype))
    return _product(identity, x, 1, 1).astype(x.dtype)
