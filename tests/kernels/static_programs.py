"""Static cycles of programs whose counts can be told by hand, or were by others, compiled for every generation.

libtpu hears that it is to dump only when it is loaded: `test_microbench_static` runs this in a process of its own.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pit_kernels import cached_attention
from pit_kernels.cached_attention.pallas_tpu import block_keys
from pit_kernels.microbench import GENERATIONS, analyse
from pit_kernels.microbench.contenders import contenders

STEPS, SIZE = 8, 256
ROWS = jax.ShapeDtypeStruct((STEPS * SIZE, SIZE), jnp.float32)
LIST = np.array([0, 3, 1, 2, 5, 2, 4, 1], np.int32)
BLOCK_BYTES = SIZE * SIZE * 4


def heavy(x_ref, o_ref):
    """A body that is long beside the bookkeeping of a grid step, so that it is the hot piece."""
    x = x_ref[...]
    for _ in range(4):
        x = jnp.dot(x, x, preferred_element_type=jnp.float32)
    o_ref[...] = x


def block(index_map):
    return pl.BlockSpec((SIZE, SIZE), index_map)


def prefetching(kernel, grid, in_map, out_map, name):
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=grid, in_specs=[block(in_map)], out_specs=block(out_map)
    )
    return pl.pallas_call(kernel, grid_spec=spec, out_shape=ROWS, name=name)


def guarded(steering, x):
    def kernel(list_ref, x_ref, o_ref):
        @pl.when(list_ref[pl.program_id(0)] > 2)
        def _():
            heavy(x_ref, o_ref)

    return prefetching(kernel, (STEPS,), lambda i, n: (i, 0), lambda i, n: (i, 0), "guarded")(steering, x)


def looped(steering, x):
    def kernel(list_ref, x_ref, o_ref):
        o_ref[...] = x_ref[...]

        def body(_, carry):
            heavy(o_ref, o_ref)
            return carry

        lax.fori_loop(0, list_ref[pl.program_id(0)], body, 0)

    return prefetching(kernel, (STEPS,), lambda i, n: (i, 0), lambda i, n: (i, 0), "looped")(steering, x)


def dynamic_grid(steering, x):
    def kernel(list_ref, x_ref, o_ref):
        heavy(x_ref, o_ref)

    grid = (steering[1] + steering[2], 2)
    return prefetching(kernel, grid, lambda i, j, n: (n[i], 0), lambda i, j, n: (i, 0), "dynamic")(steering, x)


def in_scalar_blocks(steering, x):
    def kernel(flag_ref, x_ref, o_ref):
        @pl.when(flag_ref[0, 0, 0] > 2)
        def _():
            heavy(x_ref, o_ref)

    flags = jnp.broadcast_to(steering[:, None, None], (STEPS, 1, 128))
    scalar = pl.BlockSpec((1, 1, 128), lambda i: (i, 0, 0), memory_space=pltpu.SMEM)
    specs = {"in_specs": [scalar, block(lambda i: (i, 0))], "out_specs": block(lambda i: (i, 0))}
    return pl.pallas_call(kernel, grid=(STEPS,), out_shape=ROWS, name="scalar_blocks", **specs)(flags, x)


def copied_by_hand(steering, x):
    def kernel(list_ref, x_hbm, o_ref, buffer, semaphore):
        def body(t, carry):
            copy = pltpu.make_async_copy(x_hbm.at[pl.ds(t * SIZE, SIZE)], buffer, semaphore)
            copy.start()
            copy.wait()
            heavy(buffer, o_ref)
            return carry

        lax.fori_loop(0, list_ref[pl.program_id(0)], body, 0)

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(STEPS,),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=block(lambda i, n: (i, 0)),
        scratch_shapes=[pltpu.VMEM((SIZE, SIZE), jnp.float32), pltpu.SemaphoreType.DMA],
    )
    return pl.pallas_call(kernel, grid_spec=spec, out_shape=ROWS, name="by_hand")(steering, x)


def by_data(steering, x):
    def kernel(x_ref, o_ref):
        @pl.when(jnp.max(x_ref[...]) > 0)
        def _():
            heavy(x_ref, o_ref)

    specs = {"in_specs": [block(lambda i: (i, 0))], "out_specs": block(lambda i: (i, 0))}
    return pl.pallas_call(kernel, grid=(STEPS,), out_shape=ROWS, name="by_data", **specs)(x)


# Passes of the heavy body, and blocks that move between HBM and the core.
CASES = {
    "guarded": (guarded, int((LIST > 2).sum()), 2 * STEPS),
    "looped": (looped, int(LIST.sum()), 2 * STEPS),
    # Steps 0, 1, 2 twice each; the inner index changes no block. Blocks LIST[0:4] differ from one to the next.
    "dynamic": (dynamic_grid, 2 * int(LIST[1] + LIST[2]), 2 * int(LIST[1] + LIST[2])),
    "scalar_blocks": (in_scalar_blocks, int((LIST > 2).sum()), 2 * STEPS),
    "by_hand": (copied_by_hand, int(LIST.sum()), STEPS + int(LIST.sum())),
}


# Three cases, each on another generation; all cases on all of them are slow.
FAST = set(zip(("looped", "dynamic", "by_hand"), GENERATIONS, strict=False))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in itertools.product(CASES, GENERATIONS)
    ],
)
def test_passes_and_bytes_are_those_counted_by_hand(name, target):
    function, passes, blocks = CASES[name]
    static = analyse(function, (LIST, ROWS), target)
    [kernel] = [kernel for kernel in static.kernels if kernel.name.startswith(name)]
    assert static.complete
    assert kernel.hot.passes == passes
    assert kernel.hot.use["MXU"] > 0.1
    assert passes * kernel.hot.bundles < kernel.cycles < passes * kernel.hot.bundles + 3000
    # Lists and flags move too: 4 KiB at most a step.
    moved = sum(kernel.hbm_bytes.values())
    assert blocks * BLOCK_BYTES <= moved <= blocks * BLOCK_BYTES + 4096 * (STEPS + 1)


def test_a_branch_on_data_is_said_to_be_unknown_and_never_counted():
    static = analyse(by_data, (LIST, ROWS), "v5e")
    [kernel] = [kernel for kernel in static.kernels if kernel.name.startswith("by_data")]
    assert not static.complete
    assert kernel.cycles is None
    assert "a branch depends on data that is not known at bundle" in kernel.notes[0]


def test_a_call_in_a_scan_is_counted_with_the_operands_of_each_turn():
    def scanned(steering, x):
        lists = jnp.stack([steering, steering + 1, jnp.full_like(steering, 9)])
        return lax.scan(lambda x, one: (guarded(one, x), None), x, lists)[0]

    static = analyse(scanned, (LIST, ROWS), "v5e")
    [kernel] = [kernel for kernel in static.kernels if kernel.name.startswith("guarded")]
    assert (kernel.calls, kernel.hot.passes) == (3, int((LIST > 2).sum() + (LIST + 1 > 2).sum() + STEPS))


def test_calls_of_one_name_are_told_apart_by_their_operands():
    # Its two passes are two calls, and XLA numbers them in another order than they are traced in. The suffixes do not
    # fit into VMEM, where XLA would put them beforehand.
    slots, members, heads, kv_heads, width, capacity = 16, 4, 8, 2, 128, 8192
    keys = block_keys(capacity)
    sixteen = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    prefix, suffix = sixteen((slots // members, kv_heads, 384, width)), sixteen((slots, kv_heads, capacity, width))
    held, slot = np.full(slots // members, 300, np.int32), np.arange(slots, dtype=np.int32)
    q = sixteen((slots, heads, width))
    arguments = q, prefix, prefix, held, suffix, suffix, slot + 1, slot // members, slot
    static = analyse(functools.partial(cached_attention, slots_per_prefix=members), arguments, "v5e")
    assert static.complete, static.notes
    moved = [sum(kernel.hbm_bytes.values()) for kernel in static.kernels if kernel.name.startswith("cached_attention")]
    assert len(moved) == 2
    assert max(moved) == 2 * slots * kv_heads * keys * width * 2


def test_trips_of_a_while_loop_come_from_its_inputs():
    def looping(steering, x):
        def body(carry):
            return carry[0] + steering[1], jnp.tanh(carry[1] @ carry[1])

        return lax.while_loop(lambda carry: carry[0] < steering.sum(), body, (jnp.int32(0), x))[1]

    square = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
    static = analyse(looping, (LIST, square), "v5e")
    assert static.complete
    assert static.hot.passes % (int(LIST.sum()) // int(LIST[1])) == 0
    unknown = analyse(looping, (jax.ShapeDtypeStruct(LIST.shape, jnp.int32), square), "v5e")
    assert not unknown.complete
    assert any("executed a number of times that is not known" in note for note in unknown.notes)


def test_a_branch_of_the_program_is_unknown_and_not_counted_twice():
    def branching(steering, x):
        return lax.cond(steering[0] > 0, lambda x: jnp.tanh(x @ x), lambda x: x @ x.T @ x, x)

    static = analyse(branching, (LIST, jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)), "v5e")
    assert not static.complete
    assert any("executed a number of times that is not known" in note for note in static.notes)


# Bundles of the hot 512 x 512 tile at head width 128 that were published or seen by others, forward then backward.
SEEN = {
    ("jax_splash", "v5e"): (1197, 1360),
    ("jax_splash", "v6e"): (954, 1038),
    ("jax_splash", "v4"): (1780, 1830),
    ("jax_flash", "v5e"): (1330, 1560),
}


@pytest.mark.parametrize(
    ("name", "target"),
    [pytest.param(*case, marks=() if case == ("jax_splash", "v5e") else pytest.mark.slow) for case in SEEN],
)
def test_the_hot_tile_of_published_kernels_is_as_long_as_others_saw_it(name, target):
    contender = contenders("three_way_attention")[name]
    function = contender.make({"q": 512, "kv": 512}, False)
    x = jax.ShapeDtypeStruct((1, 2, 2048, 128), jnp.bfloat16)
    static = analyse(function, (x, x, x, np.full((1, 2048), 2048, np.int32)), target)
    low, high = SEEN[name, target]
    assert static.complete
    assert low <= static.hot.bundles <= high
    # Causal tiles of 4 x 4 in two heads: those above the diagonal are not computed.
    assert static.hot.passes == 20
