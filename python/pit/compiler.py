"""Settings of XLA's compilers, which stand before JAX looks for its devices."""

import os

TPU_FLAGS = "LIBTPU_INIT_ARGS"
"""Environment variable with the flags of libtpu; one that it does not know ends the process."""

SHARED_CODE = "--xla_tpu_enable_deduplicated_calls=true"
"""Flag of libtpu: fusions that are alike are compiled to one function."""


def share_code() -> None:
    """Let a TPU program hold the code of fusions that are alike once; flags that the user set stand.

    Programs without a loop over layers, such as the optimizer's, otherwise grow with depth. The compiler does this by
    itself for some programs only.
    """
    os.environ.setdefault(TPU_FLAGS, SHARED_CODE)
