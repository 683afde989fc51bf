"""The C++ part of the package, which the distribution pit-jax builds; the pure wheel of pit-kernels has none."""

from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array

try:
    from pit_kernels import _native
except ImportError:
    _MODULE: ModuleType | None = None
else:
    _MODULE = _native
    jax.ffi.register_ffi_target("pit_attention_forward", _native.forward(), platform="cpu")
    jax.ffi.register_ffi_target("pit_attention_backward", _native.backward(), platform="cpu")
    jax.ffi.register_ffi_target("pit_cached_attention", _native.cached(), platform="cpu")

MISSING = None if _MODULE else "this install of pit_kernels has no C++ part, which pip install pit-jax builds"
"""Why the C++ part cannot serve; None where it is there."""


def refusal(q: Array) -> str | None:
    """Return why the C++ part cannot serve queries; None where it can."""
    if MISSING is None and q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its inputs are {q.dtype}, and it computes in bfloat16 and float32"
    return MISSING


def instructions() -> str | None:
    """Return the instructions that the C++ part uses here ("avx512", "avx2", "baseline"); None without it."""
    return None if _MODULE is None else str(_MODULE.instructions())
