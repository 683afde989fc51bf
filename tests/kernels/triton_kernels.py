"""The marks of tests that need Triton: each skip names what is missing and the command that runs the test."""

import importlib.util

import pytest

from pit_kernels import triton_call

_INSTALLED = all(importlib.util.find_spec(name) for name in ("triton", "jax_triton", "jax_cuda12_plugin"))
_ABSENT = "triton, jax-triton or jax-cuda12-plugin is not installed; `make test-gpu` installs them and runs this"


def _skip(reason):
    return [] if reason is None else [pytest.mark.skip(reason=reason)]


_COMPILING = "TRITON_INTERPRET is not 1; `make test-gpu` sets it and runs this"
_INTERPRETING = "TRITON_INTERPRET is 1; the other half of `make test-gpu` runs this"

interpreted = _skip(_ABSENT if not _INSTALLED else None if triton_call.interpreting() else _COMPILING)
"""Marks of tests that run kernels in Triton's interpreter, which is on or off for a whole process."""

compiled = _skip(_ABSENT if not _INSTALLED else _INTERPRETING if triton_call.interpreting() else None)
"""Marks of tests that compile kernels for GPUs that are not attached."""
