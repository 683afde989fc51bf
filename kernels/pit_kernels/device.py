"""The kind of TPU that a program is traced for: that of the mesh in context, else of this machine."""

from typing import Any

import jax

KINDS = ("v4", "v5e", "v5p", "v6e", "v7x")
"""Generations that the kernels are compiled and measured for."""

DEFAULT = "v5e"
"""Assumed where neither a mesh nor this machine has a TPU."""

SMALLEST = "v4"
"""Assumed for a TPU that is none of `KINDS`: no other has less VMEM."""

_NAMES = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "v7x",
}

_VMEM_MIB = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "v7x": 64}

_CORES = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1, "v7x": 1}
"""Cores that run one program; the two of a chip of v7x are two devices."""

_LEAST_ASKED = 2**24
"""VMEM that a kernel is given at least, bytes: what XLA gives those that ask for none."""


def kind() -> str:
    """Return one of `KINDS`: that of the mesh in context (`jax.set_mesh`), else that of this machine.

    Example:
      >>> from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
      >>> for name in ("TPU7x", "TPU v9"):
      ...     mesh = AbstractMesh((1,), ("core",), abstract_device=AbstractDevice(name, None, "tpu"))
      ...     with use_abstract_mesh(mesh):
      ...         kind()
      'v7x'
      'v4'
    """
    device = _device()
    return DEFAULT if device is None else _NAMES.get(device.device_kind, SMALLEST)


def device_kind(kind: str) -> str:
    """Return the name that JAX gives a device of one of `KINDS`."""
    return next(name for name, short in _NAMES.items() if short == kind)


def vmem_bytes() -> int:
    """Return VMEM that a kernel may take on each core of `kind`: all but the compiler's own share."""
    return _VMEM_MIB[kind()] * 15 // 16 * 2**20


def vmem_asked(needed: int) -> int:
    """Return the VMEM to ask for where a kernel takes about `needed` bytes: a quarter more, if there is so much.

    XLA keeps other arrays in what is left.
    """
    return min(max(needed + needed // 4, _LEAST_ASKED), vmem_bytes())


def cores() -> int:
    """Return the cores of a device: they run a kernel's parallel grid steps side by side."""
    device = _device()
    known = None if device is None else getattr(device, "num_cores", None)
    return _CORES[kind()] if known is None else int(known)


def _device() -> Any:
    """Return the TPU of the mesh in context, else the first of this machine; None where there is neither."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None and abstract.platform == "tpu":
        return abstract
    return jax.devices()[0] if jax.default_backend() == "tpu" else None
