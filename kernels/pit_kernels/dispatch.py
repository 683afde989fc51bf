"""The one chooser of a backend: which implementations an operation has, and why a named one cannot serve.

Operations ask `choose`; nothing else in the package decides what runs, and nothing decides by catching an exception.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.pallas import tpu as pltpu

Implementation = Literal["auto", "pallas_tpu", "triton_gpu", "xla"]
"""What a caller may ask for; "auto" is the best backend that exists for the platform that is lowered for."""

Operation = Literal["three_way_attention", "cached_attention", "token_logprob", "gap_reward"]
"""The operations of this package; each is a folder of that name."""

Backend = Literal["pallas_tpu", "triton_gpu", "xla"]
"""What `choose` resolves to: a file of that name in the operation's folder."""

_AVAILABLE: dict[Operation, tuple[Backend, ...]] = {
    "three_way_attention": ("pallas_tpu", "xla"),
    "cached_attention": ("pallas_tpu", "xla"),
    "token_logprob": ("pallas_tpu", "xla"),
    "gap_reward": ("pallas_tpu", "xla"),
}

Interpret = bool | pltpu.InterpretParams
"""Whether, and with what parameters, Pallas' TPU interpreter runs a kernel on any platform."""

Result = TypeVar("Result")


class Route(NamedTuple):
    """Where which backend runs, decided by the platform that a program is lowered for."""

    tpu: Backend
    default: Backend


class UnsupportedImplementationError(ValueError):
    """A named backend cannot serve an operation; the message says why and what to ask for instead."""


def unsupported_reason(operation: Operation, implementation: Implementation) -> str | None:
    """Says why `implementation` cannot serve `operation`, or None when it can.

    Args:
      operation: name of the operation.
      implementation: "auto" or the name of a backend.

    Raises:
      ValueError: if either name is not one this package knows.

    Example:
      >>> unsupported_reason("token_logprob", "xla") is None
      True
      >>> print(unsupported_reason("token_logprob", "triton_gpu"))
      token_logprob has no triton_gpu backend; available: pallas_tpu, xla
    """
    if operation not in _AVAILABLE:
        raise ValueError(f"operation is {operation!r}; it must be one of {', '.join(get_args(Operation))}")
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation is {implementation!r}; it must be one of {', '.join(get_args(Implementation))}"
        )
    available = _AVAILABLE[operation]
    if implementation == "auto" or implementation in available:
        return None
    return f"{operation} has no {implementation} backend; available: {', '.join(available)}"


def choose(
    operation: Operation,
    implementation: Implementation,
    *,
    refusals: Mapping[Backend, str | None] | None = None,
    interpret: Interpret = False,
) -> Route:
    """Resolves an implementation to the backends that will run.

    "auto" is the TPU kernel where a program is lowered for a TPU and plain XLA elsewhere, and where the TPU kernel
    does not serve the arguments. With `interpret` it is the TPU kernel everywhere.

    Args:
      operation: name of the operation.
      implementation: "auto" or the name of a backend.
      refusals: why a backend cannot serve these arguments; None where it can.
      interpret: whether the caller asks for the interpreter, which runs TPU kernels on any platform.

    Raises:
      UnsupportedImplementationError: if a backend is named that cannot serve the operation or the arguments.
      ValueError: if a name is unknown.

    Example:
      >>> choose("three_way_attention", "auto")
      Route(tpu='pallas_tpu', default='xla')
    """
    reason = unsupported_reason(operation, implementation)
    if interpret and reason is None:
        if implementation not in ("auto", "pallas_tpu"):
            reason = f"interpret is for TPU kernels, and implementation is {implementation!r}"
        implementation = "pallas_tpu"
        reason = reason or unsupported_reason(operation, implementation)
    refusals = refusals or {}
    if reason is None and implementation != "auto":
        refused = refusals.get(implementation)
        reason = refused and f"{operation}: {implementation} cannot serve this call: {refused}"
    if reason is not None:
        raise UnsupportedImplementationError(f'{reason}. Ask for implementation="auto" to take what there is')
    if implementation != "auto":
        return Route(implementation, implementation)
    serves_tpu = "pallas_tpu" in _AVAILABLE[operation] and refusals.get("pallas_tpu") is None
    return Route("pallas_tpu" if serves_tpu else "xla", "xla")


def interpreter(interpret: Interpret) -> Interpret:
    """What `pallas_call` is told: True is the TPU interpreter, not Pallas' generic one, which has no DMAs."""
    return pltpu.InterpretParams() if interpret is True else interpret


def run(route: Route, backends: Mapping[Backend, Callable[..., Result]], *arrays: Any) -> Result:
    """Calls the backend of the platform that the program is lowered for; others are traced but not compiled."""
    if route.tpu == route.default:
        return backends[route.default](*arrays)
    result: Result = lax.platform_dependent(*arrays, tpu=backends[route.tpu], default=backends[route.default])
    return result


def one_by_one(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, which `jax.vmap` runs in a loop: Mosaic refuses a batch of an array that a kernel fetches from."""
    looped: Callable[..., Result] = sequential_vmap(function)
    return looped
