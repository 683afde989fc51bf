"""One decode step of attention, counted by the TPU compiler: ours compared with JAX's paged attention.

    python bench/decode_attention.py [--target v5e]

64 slots, 16 samples per prefix, in the heads of Llama-3-8B: prefixes of 300 tokens in caches of 384, samples of 1 to
128 tokens after them. A paged kernel reads a prefix once per slot, even where slots share its pages; ours reads it
once. The counter cannot follow the copies that the paged kernel makes itself: its bytes are those of the pages that it
reads. No TPU is needed, and without libtpu nothing is counted.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

from pit_kernels import cached_attention
from pit_kernels.microbench.compiler import unavailable_reason
from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.static import analyse

SLOTS, MEMBERS, HEADS, KV_HEADS, WIDTH = 64, 16, 32, 8, 128
PREFIX, CACHED, OUTPUT, PAGE = 384, 300, 128, 16
PREFIXES = SLOTS // MEMBERS


def lengths() -> np.ndarray:
    """Return the tokens that each slot has after its prefix."""
    return np.random.default_rng(0).integers(1, OUTPUT + 1, SLOTS).astype(np.int32)


def array(*shape: int) -> jax.ShapeDtypeStruct:
    """Return the shape of a bfloat16 array; its values do not change the cost."""
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def ours() -> tuple[Any, tuple[Any, ...]]:
    """Return cached attention and its arguments."""
    prefix, suffix = array(PREFIXES, KV_HEADS, PREFIX, WIDTH), array(SLOTS, KV_HEADS, OUTPUT, WIDTH)
    cached = np.full(PREFIXES, CACHED, np.int32)
    owner = np.repeat(np.arange(PREFIXES, dtype=np.int32), MEMBERS)
    start = ((77 - lengths()) % OUTPUT).astype(np.int32)
    function = functools.partial(cached_attention, slots_per_prefix=MEMBERS)
    return function, (array(SLOTS, HEADS, WIDTH), prefix, prefix, cached, suffix, suffix, lengths(), owner, start)


def paged() -> tuple[Any, tuple[Any, ...]]:
    """Return JAX's kernel and its arguments: pages of 16, and all slots of a prefix share its pages."""
    prefix_pages, suffix_pages = -(-CACHED // PAGE), -(-OUTPUT // PAGE)
    pages = PREFIXES * prefix_pages + SLOTS * suffix_pages
    table = np.zeros((SLOTS, prefix_pages + suffix_pages), np.int32)
    for slot in range(SLOTS):
        table[slot, :prefix_pages] = slot // MEMBERS * prefix_pages + np.arange(prefix_pages)
        table[slot, prefix_pages:] = PREFIXES * prefix_pages + slot * suffix_pages + np.arange(suffix_pages)
    total = (prefix_pages * PAGE + lengths()).astype(np.int32)
    cache = array(KV_HEADS, pages, PAGE, WIDTH)
    function = functools.partial(paged_attention, pages_per_compute_block=table.shape[1])
    return function, (array(SLOTS, HEADS, WIDTH), cache, cache, total, table)


def paged_bytes() -> int:
    """Return the bytes of keys and values that the paged kernel reads: every page of every slot."""
    pages = -(-(-(-CACHED // PAGE) * PAGE + lengths()) // PAGE)
    return int(pages.sum()) * PAGE * KV_HEADS * WIDTH * 2 * 2


def main() -> None:
    """Count both and print their cycles and bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(GENERATIONS), default="v5e", help="TPU to count for [v5e]")
    target = parser.parse_args().target
    absent = unavailable_reason()
    if absent is not None:
        print(f"nothing counted: {absent}")
        return
    bandwidth = GENERATIONS[target].hbm_bytes_per_s
    megabytes: dict[str, float] = {}
    for name, build, nbytes in (("cached_attention", ours, None), ("paged_attention", paged, paged_bytes())):
        cost = analyse(*build(), target)
        cycles = f"{cost.cycles:,} cycles, {cost.us:.1f} us" if cost.complete else "cycles are not countable"
        read = cost.hbm_bytes if nbytes is None else nbytes
        megabytes[name] = read / 1e6
        print(f"{target} {name}: {cycles}; {read / 1e6:.1f} MB, {read / bandwidth * 1e6:.1f} us at full bandwidth")
        if cost.complete:
            for kernel in sorted(cost.kernels, key=lambda k: -(k.cycles or 0))[:6]:
                print(f"    {kernel.name}: {kernel.cycles:,} cycles, {sum(kernel.hbm_bytes.values()) / 1e6:.2f} MB")
    print(f"{target}, MB per decode step: {', '.join(f'{name} {size:.1f}' for name, size in megabytes.items())}")


if __name__ == "__main__":
    main()
