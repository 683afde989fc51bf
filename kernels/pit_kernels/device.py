"""The kind of TPU that a program is traced for: that of the mesh in context, else of this machine."""

import jax

KINDS = ("v4", "v5e", "v5p", "v6e")
"""Generations that the kernels are compiled and measured for."""

DEFAULT = "v5e"
"""Assumed where neither says: its VMEM is no smaller than that of later generations, and its tiles suit them."""

_NAMES = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def kind() -> str:
    """Return one of `KINDS`: that of the mesh in context (`jax.set_mesh`), else that of this machine."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return _NAMES.get(abstract.device_kind, DEFAULT)
    if jax.default_backend() == "tpu":
        return _NAMES.get(jax.devices()[0].device_kind, DEFAULT)
    return DEFAULT


def device_kind(kind: str) -> str:
    """Return the name that JAX gives a device of one of `KINDS`."""
    return next(name for name, short in _NAMES.items() if short == kind)


_VMEM_MIB = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128}

_CORES = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}


def vmem_bytes() -> int:
    """Return VMEM that a kernel may take on each core of `kind`: all but the compiler's own share."""
    return _VMEM_MIB[kind()] * 15 // 16 * 2**20


def cores() -> int:
    """Return the cores of a device of `kind`: they run a kernel's parallel grid steps side by side."""
    return _CORES[kind()]
