"""Linear projections that accumulate in float32, forward and backward, whatever the dtype of their operands.

An accelerator's matrix unit does so by itself. A CPU's (AMX) is used by XLA only for a product that says so: 5 times
the speed of a bfloat16 product that does not.
"""

import math

import jax.numpy as jnp
from jax import custom_vjp, lax
from jaxtyping import Array, Float


def linear(x: Float[Array, "..."], weight: Float[Array, "..."], inputs: int = 1) -> Float[Array, "..."]:
    """Return the product of x and a weight over the last `inputs` axes of x and the first ones of the weight.

    The result has the dtype of x, to which the weight is cast; the gradient of the weight has the weight's own dtype
    and is never rounded to that of x.
    """
    if x.dtype != jnp.bfloat16:
        return jnp.tensordot(x, weight.astype(x.dtype), axes=inputs)
    # As matrices: XLA's CPU backend has no bfloat16 product with float32 sums for every arrangement of more axes.
    rows, outputs = x.shape[: x.ndim - inputs], weight.shape[inputs:]
    width = math.prod(weight.shape[:inputs])
    return _accumulated(x.reshape(-1, width), weight.reshape(width, -1)).reshape(*rows, *outputs)


@custom_vjp
def _accumulated(x: Float[Array, "m d"], weight: Float[Array, "d n"]) -> Float[Array, "m n"]:
    return _product(x, weight.astype(x.dtype), 1, 0).astype(x.dtype)


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _accumulated(x, weight), (x, weight)


def _backward(operands: tuple[Array, Array], d_out: Float[Array, "m n"]) -> tuple[Array, Array]:
    x, weight = operands
    d_x = _product(d_out, weight.astype(x.dtype), 1, 1)
    return d_x.astype(x.dtype), _product(x, d_out, 0, 0).astype(weight.dtype)


_accumulated.defvjp(_forward, _backward)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
