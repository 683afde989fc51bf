"""The operations of this package by name, each with the list of its backends.

Every operation is a folder of that name; its list is `backends.py` in the folder.
"""

from collections.abc import Mapping

from pit_kernels.cached_attention.backends import BACKENDS as CACHED_ATTENTION
from pit_kernels.dispatch import Backend, missing_reason
from pit_kernels.gap_reward.backends import BACKENDS as GAP_REWARD
from pit_kernels.three_way_attention.backends import BACKENDS as THREE_WAY_ATTENTION
from pit_kernels.token_logprob.backends import BACKENDS as TOKEN_LOGPROB

BACKENDS: Mapping[str, tuple[Backend, ...]] = {
    "three_way_attention": THREE_WAY_ATTENTION,
    "cached_attention": CACHED_ATTENTION,
    "token_logprob": TOKEN_LOGPROB,
    "gap_reward": GAP_REWARD,
}
"""Backends of each operation, best first."""


def unsupported_reason(operation: str, implementation: str) -> str | None:
    """Return why an operation has no backend of that name, or None where it has one or the name is "auto".

    Args:
      operation: name of the operation.
      implementation: "auto" or the name of a backend.

    Raises:
      ValueError: if the package has no such operation.

    Example:
      >>> unsupported_reason("token_logprob", "xla") is None
      True
      >>> print(unsupported_reason("token_logprob", "sparse"))
      token_logprob has no sparse backend; available: pallas_tpu, triton_gpu, xla
    """
    if operation not in BACKENDS:
        raise ValueError(f"operation is {operation!r}; it must be one of {', '.join(BACKENDS)}")
    return missing_reason(operation, BACKENDS[operation], implementation)
