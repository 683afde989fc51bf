"""Measures kernels: static cycles from the real TPU compiler with no TPU, and times where there is hardware.

See kernels/README.md for what the figures mean and what they do not see.
"""

from pit_kernels.microbench.compiler import NoCompilerError, prepare, unavailable_reason
from pit_kernels.microbench.generations import GENERATIONS, Generation
from pit_kernels.microbench.static import BLIND_SPOTS, Hot, Kernel, Static, analyse

__all__ = [
    "BLIND_SPOTS",
    "GENERATIONS",
    "Generation",
    "Hot",
    "Kernel",
    "NoCompilerError",
    "Static",
    "analyse",
    "prepare",
    "unavailable_reason",
]
