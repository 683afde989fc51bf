"""Floating-point operations of a traced program: products of matrices, and kernels by their own estimate."""

import math
from collections.abc import Callable, Iterator
from typing import Any


def flops(jaxpr: Any, *, loop_steps: int = 1, platform: str = "tpu") -> float:
    """Return the floating-point operations of a program on all devices together.

    Products count two per multiply-add; element-wise operations are left out. A scan counts all of its steps. Of code
    that depends on the platform only that of `platform` counts, of other branches the costliest. Code that is mapped
    over a mesh counts once per part.

    Args:
        jaxpr: closed or open jaxpr, with the shapes of whole arrays.
        loop_steps: trips of loops without a fixed number.
        platform: platform that the program is compiled for.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((4, 8))
        >>> flops(jax.make_jaxpr(lambda x: x @ x.T)(x))  # 2 x 4 x 8 x 4
        256.0
    """
    equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return float(sum(_of_equation(equation, loop_steps, platform) for equation in equations))


def _of_equation(equation: Any, loop_steps: int, platform: str) -> float:
    name, parameters = equation.primitive.name, equation.params

    def of(jaxpr: Any) -> float:
        return flops(jaxpr, loop_steps=loop_steps, platform=platform)

    if name == "dot_general":
        return _product(equation)
    if name == "pallas_call":
        estimate = parameters["cost_estimate"]
        return 0.0 if estimate is None else float(estimate.flops)
    if name == "scan":
        return int(parameters["length"]) * of(parameters["jaxpr"])
    if name == "while":
        return loop_steps * of(parameters["body_jaxpr"])
    if name == "cond":
        return _branch(equation, of, platform)
    if name == "shard_map":
        sizes = parameters["mesh"].shape
        parts: int = math.prod(sizes[axis] for axis in parameters["newly_manual_axes"])
        return parts * of(parameters["jaxpr"])
    return float(sum(map(of, _called(parameters))))


def _branch(equation: Any, of: Callable[[Any], float], platform: str) -> float:
    """Return the operations of the branch of a platform, or else of the costliest."""
    branches = equation.params["branches"]
    platforms = equation.params.get("branches_platforms")
    if platforms is not None:
        for names, branch in zip(platforms, branches, strict=True):
            # The default's names are None.
            if names is None or platform in names:
                return of(branch)
    return max(map(of, branches))


def _product(equation: Any) -> float:
    """Return the operations of a dot_general: two per element of its result and of the contracted axes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    terms: int = math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    return 2.0 * terms


def _called(parameters: Any) -> Iterator[Any]:
    """Yield the jaxprs that an equation calls: of jit, of checkpoint, of custom derivatives."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns") or hasattr(getattr(each, "jaxpr", None), "eqns"):
                yield each
