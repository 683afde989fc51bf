"""The one chooser of a backend: which implementations an operation has, and why a named one cannot serve.

Operations ask `choose`; nothing else in the package decides what runs, and nothing decides by catching an exception.
"""

from typing import Literal, get_args

Implementation = Literal["auto", "pallas_tpu", "triton_gpu", "xla"]
"""What a caller may ask for; "auto" is the best backend that exists for the platform that is lowered for."""

Operation = Literal["three_way_attention", "cached_attention", "token_logprob", "gap_reward"]
"""The operations of this package; each is a folder of that name."""

Backend = Literal["pallas_tpu", "triton_gpu", "xla"]
"""What `choose` resolves to: a file of that name in the operation's folder."""

_AVAILABLE: dict[Operation, tuple[Backend, ...]] = {
    "three_way_attention": ("xla",),
    "cached_attention": ("xla",),
    "token_logprob": ("xla",),
    "gap_reward": ("xla",),
}


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
      >>> print(unsupported_reason("token_logprob", "pallas_tpu"))
      token_logprob has no pallas_tpu backend; available: xla
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


def choose(operation: Operation, implementation: Implementation) -> Backend:
    """Resolves an implementation to the backend that will run.

    "auto" resolves to "xla" on every platform: no operation has another backend yet.

    Raises:
      UnsupportedImplementationError: if a backend is named that cannot serve the operation.
      ValueError: if a name is unknown.

    Example:
      >>> choose("cached_attention", "auto")
      'xla'
    """
    reason = unsupported_reason(operation, implementation)
    if reason is not None:
        raise UnsupportedImplementationError(f'{reason}. Ask for implementation="auto" to take what there is')
    return "xla" if implementation == "auto" else implementation
