"""Settings of XLA's compilers, which stand before JAX looks for its devices."""

import os
from importlib.metadata import PackageNotFoundError, version

TPU_FLAGS = "LIBTPU_INIT_ARGS"
"""Environment variable with the flags of libtpu; one that it does not know ends the process."""

SHARED_CODE = "--xla_tpu_enable_deduplicated_calls=true"
"""Flag of libtpu: fusions that are alike are compiled to one function."""

_KNOWN = ("0.0.42.1", "0.0.52")
"""Versions of libtpu that have the flag: those of the two constraint files."""


def share_code() -> None:
    """Let a TPU program hold the code of fusions that are alike once, where libtpu is known to have a flag for it.

    Programs without a loop over layers, such as the optimizer's, otherwise grow with depth. The compiler does this by
    itself for some programs only. Flags that the user set stand.
    """
    try:
        known = version("libtpu") in _KNOWN
    except PackageNotFoundError:
        known = False
    if known:
        os.environ.setdefault(TPU_FLAGS, SHARED_CODE)
