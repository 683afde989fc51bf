"""The command `pit` for one of several processes that compile each program once: the first compiles, the others read.

JAX can share programs so. On CPUs its key of a program also names the process that asks; here it does not.
"""

import jax
from jax._src import cache_key  # Where the key of a program is made has no public name.

from pit.cli import main

if __name__ == "__main__":
    cache_key._hash_accelerator_config = cache_key._hash_devices
    jax.config.update("jax_share_binary_between_hosts", True)
    main()
