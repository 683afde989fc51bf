"""Static cycles: kernels whose counts can be told by hand, compiled for every generation; and the parts on excerpts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pit_kernels.microbench import GENERATIONS, analyse, unavailable_reason
from pit_kernels.microbench.bundles import DumpError, parse_bundles, parse_slot_use
from pit_kernels.microbench.layouts import parse_layout, words
from pit_kernels.microbench.machine import UnknownControlError, run

needs_compiler = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))

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


@needs_compiler
@pytest.mark.parametrize("target", GENERATIONS)
@pytest.mark.parametrize("name", CASES)
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


@needs_compiler
def test_a_branch_on_data_is_said_to_be_unknown_and_never_counted():
    static = analyse(by_data, (LIST, ROWS), "v5e")
    [kernel] = [kernel for kernel in static.kernels if kernel.name.startswith("by_data")]
    assert not static.complete
    assert kernel.cycles is None
    assert "a branch depends on data that is not known at bundle" in kernel.notes[0]


@needs_compiler
def test_a_call_in_a_scan_is_counted_with_the_operands_of_each_turn():
    def scanned(steering, x):
        lists = jnp.stack([steering, steering + 1, jnp.full_like(steering, 9)])
        return lax.scan(lambda x, one: (guarded(one, x), None), x, lists)[0]

    static = analyse(scanned, (LIST, ROWS), "v5e")
    [kernel] = [kernel for kernel in static.kernels if kernel.name.startswith("guarded")]
    assert (kernel.calls, kernel.hot.passes) == (3, int((LIST > 2).sum() + (LIST + 1 > 2).sum() + STEPS))


@needs_compiler
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


@needs_compiler
def test_a_branch_of_the_program_is_unknown_and_not_counted_twice():
    def branching(steering, x):
        return lax.cond(steering[0] > 0, lambda x: jnp.tanh(x @ x), lambda x: x @ x.T @ x, x)

    static = analyse(branching, (LIST, jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)), "v5e")
    assert not static.complete
    assert any("executed a number of times that is not known" in note for note in static.notes)


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"^target is 'v9'; it must be one of v4, v5e, v5p, v6e$"):
        analyse(lambda x: x, (ROWS,), "v9")


LOOP = """
     0   :  { %s1_s0 = smov 0 /* copy for cssa */  ;;  %s2_s1 = inlined_call_operand.smem [shape: s32[4], index: 0] }
   0x1 LB: > { %s3_s0 = sphi %s1_s0, %s4_s0  ;;  %s5_s2 = sld [smem:[%s2_s1 + %s3_s0]] }
   0x2   : > { %p6_p0 = scmp.le.s32.totalorder %s5_s2, 2  ;;  %s4_s0 = sadd.s32 1, %s3_s0 }
   0x3   : > { %7 = sbr.rel (%p6_p0) target bundleno = 6 (0x6), region = 3 }
   0x4   : > { %v8_v0 = vadd.f32 %v9_v0, %v9_v0 } /* a delay slot: always executed */
   0x5   : > { %10 = dma.hbm_to_vmem [thread:$0]  (!%p6_p0), /*hbm=*/%s2_s1, 16, /*vmem=*/%s2_s1 /*
:a: (1, 2) /* nested */ } */ }
   0x6 PF: > { %p11_p1 = scmp.ge.s32.totalorder %s4_s0, 4 }
   0x7   : > { %12 = sbr.rel (!%p11_p1) target bundleno = 1 (0x1), region = 2 }
   0x8   : > {}
   0x9   :  { %13 = vsyncpa [#allocation6], 1 }
"""


def test_the_scalar_half_of_an_excerpt_runs_as_written():
    ran = run(parse_bundles(LOOP), {0: np.array([1, 3, 2, 5], np.int32)}, "v4", 512)
    assert ran.executed.tolist() == [1, 4, 4, 4, 4, 2, 4, 4, 4, 1]
    assert (ran.granules, ran.transfers, ran.guessed) == ({"hbm_to_vmem": 32}, {"hbm_to_vmem": 2}, 0)


def test_an_excerpt_without_its_list_says_which_branch_it_cannot_take():
    with pytest.raises(UnknownControlError, match=r"^a branch depends on data that is not known at bundle 0x3$"):
        run(parse_bundles(LOOP), {}, "v4", 512)


def test_a_store_somewhere_in_an_allocation_leaves_nothing_known_of_it():
    text = """
   0   :  {{ %s1_s1 = smov 0  ;;  %2 = sst [smem:[#allocation1]] 7  ;;  %3 = sst [smem:[#allocation2]] 7 }}
 0x1   :  {{ %4 = sst [smem:[#allocation1 + %s5_s5]] %s1_s1 }}
 0x2   :  {{ %s6_s6 = sld [smem:[#allocation{}]] }}
 0x3   :  {{ %p7_p7 = scmp.eq.s32.totalorder %s6_s6, 7 }}
 0x4   :  {{ %8 = sbr.rel (%p7_p7) target bundleno = 6 (0x6), region = 1 }}
 0x5   :  {{}}
 0x6   :  {{}}
"""
    assert run(parse_bundles(text.format(2)), {}, "v4", 512).executed.tolist() == [1] * 7
    with pytest.raises(UnknownControlError, match=r"^a branch depends on data that is not known at bundle 0x4$"):
        run(parse_bundles(text.format(1)), {}, "v4", 512)


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ("sshll.u32 255, 24", -(2**24)),
        ("sshrl.u32 4294967295, 28", 15),
        ("sadd.s32 2147483647, 1", -(2**31)),
        ("smul.u32 2223506493, 3", ((2223506493 * 3 + 2**31) % 2**32) - 2**31),
        ("sand.u32 4294967295, 12", 12),
        ("smin.u32 4294967295, 12", 12),
        ("smin.s32 4294967295, 12", -1),
        ("smax.u32 4294967295, 12", -1),
        ("scmp.lt.u32.totalorder 5, 4294967295", True),
        ("scmp.lt.s32.totalorder 5, 4294967295", False),
        ("pnand true, false", True),
    ],
)
def test_scalar_operations_wrap_and_compare_as_32_bits(operations, expected):
    kind = "p" if operations.startswith(("scmp", "pnand")) else "s"
    wanted = f"%p9_p9 = pmov %{kind}1_{kind}1" if kind == "p" else f"%p9_p9 = scmp.eq.s32.totalorder %s1_s1, {expected}"
    text = f"""
   0   :  {{ %{kind}1_{kind}1 = {operations} }}
 0x1   :  {{ {wanted} }}
 0x2   :  {{ %3 = sbr.rel (%p9_p9) target bundleno = 5 (0x5), region = 1 }}
 0x3   :  {{}}
 0x4   :  {{}}
 0x5   :  {{}}
"""
    skipped = run(parse_bundles(text), {}, "v4", 512).executed.tolist()[4] == 0
    assert skipped is (expected if kind == "p" else True)


def test_dumps_that_are_none_are_refused():
    with pytest.raises(DumpError, match=r"^the dump has no bundle; it must be a packed-bundles-post-ra.txt of libtpu$"):
        parse_bundles("nothing")
    with pytest.raises(DumpError, match=r"^bundle 1 of the dump has address 0x2; they must count up from 0$"):
        parse_bundles("  0   :  {}\n 0x2   :  {}")
    with pytest.raises(DumpError, match=r"^the table of slot utilization has 1 rows for 2 bundles$"):
        parse_slot_use("== CAPACTIY:\nMXU, SALU\n 4 2\n== UTILIZATION:\n1 2\n", 2)


def test_words_of_a_packed_layout_are_where_the_compiler_looks_for_them():
    # The address that a kernel computes for element (0, i, j) of s8[1,8,8]{2,1,0:T(8,128)(4,1)}.
    array = np.arange(64, dtype=np.int8).reshape(1, 8, 8)
    laid = words(array, parse_layout("s8[1,8,8]{2,1,0:T(8,128)(4,1)}"))
    for i in range(8):
        for j in range(8):
            word = laid[((i >> 3) + (j >> 7)) * 256 + (((i & 7) >> 2) << 7) + (j & 127)]
            assert (int(word) >> ((i & 3) * 8)) & 255 == array[0, i, j]
    assert parse_layout("bf16[100,100]{0,1:T(8,128)(2,1)}").bytes == 104 * 128 * 2
