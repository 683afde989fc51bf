"""Calls of Triton kernels from JAX: the one place that knows triton's and jax-triton's interfaces.

Both are imported when a kernel is first called. With TRITON_INTERPRET=1 in the environment of the process, kernels run
in Triton's interpreter, in NumPy on any machine.
"""

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels import gpu

REMEDY = "pip install 'pit-jax[gpu]'"
"""Command that installs what GPU kernels need."""

ASSEMBLER_VARIABLE = "TRITON_PTXAS_BLACKWELL_PATH"
"""Environment variable with the path of the ptxas that Triton writes PTX for, from compute capability 9.0 on."""

TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32"}
"""Triton's name of each dtype that the kernels take."""


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: everything that its machine code and its grid depend on.

    function: kernel, as `jit` returned it.
    inputs, outputs: shapes and dtypes of its pointers, in the order of its arguments.
    grid: programs along each axis.
    warps: warps of a program.
    stages: buffers of the software pipeline.
    constants: other arguments, which are compiled in.
    """

    function: Any
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    grid: tuple[int, ...]
    warps: int
    stages: int
    constants: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.function.fn.__name__)

    @property
    def signature(self) -> dict[str, str]:
        """Triton's type of each argument by name."""
        names = list(inspect.signature(self.function.fn).parameters)
        pointers = [f"*{TYPES[jnp.dtype(x.dtype).name]}" for x in (*self.inputs, *self.outputs)]
        signature = dict(zip(names, pointers, strict=False))
        return {name: "constexpr" if name in self.constants else signature[name] for name in names}


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches of a context in the place of running them: their results are zeros.

    Example:
      >>> with recorded() as launches:
      ...     pass
      >>> launches
      []
    """
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def interpreting() -> bool:
    """Return whether this process runs Triton kernels in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def absent_reason() -> str | None:
    """Return why this process can run no Triton kernel, with the remedy, or None where it can."""
    needed = {"triton": "triton"}
    if not interpreting() and _recorded.get() is None:
        needed |= {"jax_triton": "jax-triton"}
        if not any(_installed(f"jax_cuda{version}_plugin") for version in (12, 13)):
            return f"JAX has no CUDA plugin here; install it: {REMEDY}"
    missing = [package for module, package in needed.items() if not _installed(module)]
    are = "is not installed; install it" if len(missing) == 1 else "are not installed; install them"
    return f"{' and '.join(missing)} {are}: {REMEDY}" if missing else None


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def unsupported_dtype(name: str, dtype: Any) -> str | None:
    """Return why kernels cannot compute with floats of a dtype here, or None."""
    short = jnp.dtype(dtype).name
    if short not in ("bfloat16", "float16", "float32"):
        return f"{name} has dtype {short}, and it computes in bfloat16, float16 and float32"
    if short == "bfloat16" and interpreting():
        return f"{name} has dtype bfloat16, which Triton's interpreter computes wrongly; use float32 or float16"
    return None


def jit(function: Callable[..., Any]) -> Any:
    """Return a function in Triton's language as a kernel, or as a part of one."""
    # Run-time type checks wrap functions, and Triton reads the globals of the function itself.
    return compiler().jit(inspect.unwrap(function))


@functools.cache
def compiler() -> Any:
    """Return the module triton, told to write PTX that the assembler of CUDA 12 reads.

    From Hopper on Triton writes PTX for its own second assembler, of CUDA 13, and JAX passes it to the one of its CUDA:
    with `jax[cuda12]` that is at most 12.9, which refuses it. Set TRITON_PTXAS_BLACKWELL_PATH to choose another one.
    """
    import triton

    nvidia = triton.knobs.nvidia
    if not os.environ.get(ASSEMBLER_VARIABLE):
        nvidia.ptxas_blackwell = nvidia.ptxas.path
    return triton


def call(
    function: Any,
    arrays: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    *,
    warps: int,
    stages: int,
    **constants: Any,
) -> tuple[jax.Array, ...]:
    """Return the outputs of a kernel; its arguments are the arrays, the outputs and the constants by name.

    Args:
      function: kernel, as `jit` returned it.
      arrays: inputs.
      outputs: shapes and dtypes of the results.
      grid: programs along each axis.
      warps: warps of a program.
      stages: buffers of the software pipeline.
      constants: arguments that are compiled in.
    """
    inputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
    launch = Launch(function, inputs, tuple(outputs), grid, warps, stages, constants)
    launches = _recorded.get()
    if launches is not None:
        launches.append(launch)
        return tuple(jnp.zeros(x.shape, x.dtype) for x in outputs)
    if interpreting():
        results = jax.pure_callback(functools.partial(_interpret, launch), tuple(outputs), *arrays)
    else:
        results = _on_gpu(launch, arrays)
    return tuple(results)


def _on_gpu(launch: Launch, arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
    import jax_triton

    # The name of this argument changed in jax-triton 0.4.
    parameters = inspect.signature(jax_triton.triton_call).parameters
    out = "out_type" if "out_type" in parameters else "out_shape"
    results: Sequence[jax.Array] = jax_triton.triton_call(
        *arrays,
        kernel=launch.function,
        grid=launch.grid,
        num_warps=launch.warps,
        num_stages=launch.stages,
        # Triton's own default changes with its version.
        enable_fp_fusion=True,
        compute_capability=gpu.capability(),
        **{out: list(launch.outputs)},
        **launch.constants,
    )
    return results


def _interpret(launch: Launch, *arrays: Any) -> tuple[np.ndarray, ...]:
    """Run a launch on NumPy arrays, in Triton's interpreter."""
    # What a kernel does not write must show: NaN, or the least integer.
    outputs = [np.full(x.shape, _unwritten(x.dtype), x.dtype) for x in launch.outputs]
    tensors = [_Tensor(np.ascontiguousarray(x)) for x in arrays] + [_Tensor(x) for x in outputs]
    launch.function[launch.grid](*tensors, **launch.constants)
    return tuple(outputs)


def _unwritten(dtype: Any) -> float | int:
    return int(np.iinfo(dtype).min) if np.issubdtype(dtype, np.integer) else float("nan")


class _Tensor:
    """A NumPy array with the methods of a PyTorch tensor that Triton's interpreter calls."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.dtype = TYPES[array.dtype.name]

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def untyped_storage(self) -> "_Storage":
        return _Storage(self._array)

    def new_empty(self, size: Any, device: str | None = None) -> "_Tensor":
        return _Tensor(self._array)

    def set_(self, *arguments: Any) -> "_Tensor":
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self._array.shape

    def stride(self) -> tuple[int, ...]:
        return ()

    def element_size(self) -> int:
        return self._array.itemsize


class _Storage:
    """The memory of a `_Tensor`, which is never copied."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def size(self) -> int:
        return self._array.nbytes

    def cpu(self) -> "_Storage":
        return self

    def copy_(self, other: "_Storage") -> None:
        assert other._array is self._array, "host and device are one"
