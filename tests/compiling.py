"""How programs are compiled in the tests: for how many devices, and with which of XLA's code generators."""

import os
import re
import sys

QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Flags of XLA under which the fast tests compile in 6 tenths of the time; the programs are slower."""

USERS = {"xla_cpu_use_fusion_emitters": True}
"""Compiler options of a program whose very bits a test looks at: those that users have."""

_DEVICES = "--xla_force_host_platform_device_count"


def with_devices(flags: str, devices: int) -> str:
    """Return flags of XLA that show so many CPU devices.

    >>> with_devices("--xla_force_host_platform_device_count=2 --xla_cpu_use_xnnpack=true", 1)
    '--xla_cpu_use_xnnpack=true --xla_force_host_platform_device_count=1'
    """
    others = re.sub(rf"{_DEVICES}=\d+", "", flags).split()
    return " ".join([*others, f"{_DEVICES}={devices}"])


def users_environment(devices: int = 1) -> dict[str, str]:
    """Return the environment of a command that a test starts: without the tests' strictness, with so many devices."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY_")}
    return {
        **inherited,
        "XLA_FLAGS": with_devices(os.environ.get("XLA_FLAGS", ""), devices),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
