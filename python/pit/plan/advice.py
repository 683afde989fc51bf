"""What someone who starts a run on this machine should know first."""

import os
from collections.abc import Collection
from pathlib import Path

from pit.config import RunConfig

_PROCESSOR = Path("/proc/cpuinfo")
_PRODUCTS = {"amx_bf16", "avx512_bf16"}
"""Flags of x86 processors that multiply in bfloat16."""


def processor_flags(file: Path = _PROCESSOR) -> frozenset[str]:
    """Return the flags of this machine's x86 processor; none where the system does not say them."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split())


def advice(config: RunConfig, flags: Collection[str] | None = None) -> list[str]:
    """Return what to consider before a run, a line each.

    Args:
        config: the run.
        flags: of the processor; None: of this machine's.
    """
    flags = processor_flags() if flags is None else flags
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    slow = [name for name in ("policy", "reward_model") if getattr(config, name).compute_dtype == "bfloat16"]
    if not (on_cpu and slow and flags and _PRODUCTS.isdisjoint(flags)):
        return []
    settings = [f"{name}.compute_dtype" for name in slow]
    settings += ["base.dtype"] if config.base.dtype == "bfloat16" else []
    remedy = " ".join(f"--set {name}=float32" for name in settings)
    return [f"this processor has no products of bfloat16, so float32 is faster and takes more memory: {remedy}"]
