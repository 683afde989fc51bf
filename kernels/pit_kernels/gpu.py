"""The architecture of the GPU that a program is traced for: that of the mesh in context, else of this machine."""

from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
"""Architectures that the kernels are compiled and tuned for: Ampere (A100), Hopper (H100, H200), Blackwell (B200)."""

DEFAULT = "sm_90"
"""Assumed where neither says."""

_SHARED_KIB = {"sm_80": 163, "sm_90": 227, "sm_100": 227}

PEAK_FLOPS = {"sm_80": 312e12, "sm_90": 989e12, "sm_100": 2250e12}
"""Published bfloat16 FLOP/s of A100, H100 (SXM) and B200, without sparsity (NVIDIA's data sheets)."""

BYTES_PER_S = {"sm_80": 2039e9, "sm_90": 3350e9, "sm_100": 8000e9}
"""Published memory bandwidth of the same: A100 of 80 GB, H100 SXM, B200."""

_MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}


def mesh_of(architecture: str) -> AbstractMesh:
    """Return a mesh of one GPU that is not attached: `jax.sharding.use_abstract_mesh` then lowers programs for it.

    Example:
      >>> with jax.sharding.use_abstract_mesh(mesh_of("sm_80")):
      ...     capability()
      80
    """
    return AbstractMesh((1,), ("gpu",), abstract_device=AbstractDevice(architecture, None, "cuda"))


def capability() -> int:
    """Return the compute capability of the GPU, as 90 for 9.0."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None and abstract.device_kind.startswith("sm_"):
        return int(abstract.device_kind.removeprefix("sm_"))
    if jax.default_backend() == "gpu":
        device: Any = jax.devices()[0]
        return int(str(device.compute_capability).replace(".", ""))
    return int(DEFAULT.removeprefix("sm_"))


def architecture() -> str:
    """Return the one of `ARCHITECTURES` whose tiles the GPU takes: the latest that is not later than its own."""
    known = [name for name in ARCHITECTURES if int(name.removeprefix("sm_")) <= capability()]
    return known[-1] if known else ARCHITECTURES[0]


def unsupported_reason() -> str | None:
    """Return why the kernels cannot run on the GPU, or None."""
    number = capability()
    if number // 10 * 10 in (80, 90, 100) and number not in (86, 87, 89):
        return None
    return (
        f"the GPU has compute capability {number / 10:.1f}, and it has tiles for 8.0, 9.0 and 10.x, with shared memory "
        "for them"
    )


def shared_bytes(architecture: str) -> int:
    """Return the shared memory that a program may take on an architecture, in bytes."""
    return _SHARED_KIB[architecture] * 1024


def multiprocessors() -> int:
    """Return the multiprocessors of the largest GPU of `architecture`, which run programs side by side."""
    return _MULTIPROCESSORS[architecture()]
