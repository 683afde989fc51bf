"""One decode step of attention, counted for a TPU that is not there: ours beside jax's paged attention.

    python bench/decode_attention.py [--target v5e]

64 slots, 16 samples a prefix, in the heads of Llama-3-8B: prefixes of 300 tokens in caches of 384, samples that have 1
to 128 tokens of their own. A paged kernel reads a prefix once for each of its slots, however they share its pages; ours
reads it once. The counter cannot follow the paged kernel's own copies: its bytes are those of the pages that it reads.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

from pit_kernels import cached_attention
from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.static import analyse

SLOTS, MEMBERS, HEADS, KV_HEADS, WIDTH = 64, 16, 32, 8, 128
PREFIX, HELD, OUTPUT, PAGE = 384, 300, 128, 16
PREFIXES = SLOTS // MEMBERS


def lengths() -> np.ndarray:
    """Own tokens of each slot."""
    return np.random.default_rng(0).integers(1, OUTPUT + 1, SLOTS).astype(np.int32)


def array(*shape: int) -> jax.ShapeDtypeStruct:
    """A bfloat16 array whose values steer nothing."""
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def ours() -> tuple[Any, tuple[Any, ...]]:
    """Cached attention."""
    prefix, suffix = array(PREFIXES, KV_HEADS, PREFIX, WIDTH), array(SLOTS, KV_HEADS, OUTPUT, WIDTH)
    held = np.full(PREFIXES, HELD, np.int32)
    owner = np.repeat(np.arange(PREFIXES, dtype=np.int32), MEMBERS)
    start = ((77 - lengths()) % OUTPUT).astype(np.int32)
    function = functools.partial(cached_attention, slots_per_prefix=MEMBERS)
    return function, (array(SLOTS, HEADS, WIDTH), prefix, prefix, held, suffix, suffix, lengths(), owner, start)


def paged() -> tuple[Any, tuple[Any, ...]]:
    """Jax's kernel on pages of 16: those of a prefix stand in the tables of all its slots."""
    of_prefix, of_suffix = -(-HELD // PAGE), -(-OUTPUT // PAGE)
    pages = PREFIXES * of_prefix + SLOTS * of_suffix
    table = np.zeros((SLOTS, of_prefix + of_suffix), np.int32)
    for slot in range(SLOTS):
        table[slot, :of_prefix] = slot // MEMBERS * of_prefix + np.arange(of_prefix)
        table[slot, of_prefix:] = PREFIXES * of_prefix + slot * of_suffix + np.arange(of_suffix)
    total = (of_prefix * PAGE + lengths()).astype(np.int32)
    cache = array(KV_HEADS, pages, PAGE, WIDTH)
    function = functools.partial(paged_attention, pages_per_compute_block=table.shape[1])
    return function, (array(SLOTS, HEADS, WIDTH), cache, cache, total, table)


def paged_bytes() -> int:
    """Bytes of keys and values that the paged kernel reads: every page of every slot."""
    pages = -(-(-(-HELD // PAGE) * PAGE + lengths()) // PAGE)
    return int(pages.sum()) * PAGE * KV_HEADS * WIDTH * 2 * 2


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(GENERATIONS), default="v5e")
    target = parser.parse_args().target
    bandwidth = GENERATIONS[target].hbm_bytes_per_s
    for name, build, nbytes in (("cached_attention", ours, None), ("paged_attention", paged, paged_bytes())):
        found = analyse(*build(), target)
        cycles = f"{found.cycles:,} cycles, {found.us:.1f} us" if found.complete else "cycles are not countable"
        read = found.hbm_bytes if nbytes is None else nbytes
        print(f"{target} {name}: {cycles}; {read / 1e6:.1f} MB, {read / bandwidth * 1e6:.1f} us at full bandwidth")
        if found.complete:
            for kernel in sorted(found.kernels, key=lambda k: -(k.cycles or 0))[:6]:
                print(f"    {kernel.name}: {kernel.cycles:,} cycles, {sum(kernel.hbm_bytes.values()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
