"""The parts of static counting on excerpts; whole programs are counted in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pit_kernels.microbench import analyse, unavailable_reason
from pit_kernels.microbench.bundles import DumpError, parse_bundles, parse_slot_use
from pit_kernels.microbench.compiler import no_persistent_cache
from pit_kernels.microbench.layouts import parse_layout, words
from pit_kernels.microbench.machine import UnknownControlError, run

PROGRAMS = Path(__file__).with_name("static_programs.py")
HIT = "/jax/compilation_cache/cache_hits"
ROWS = jax.ShapeDtypeStruct((2048, 256), jnp.float32)


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_programs_are_counted_right(which):
    # What this process was told by pytest-xdist, and told libtpu, is not for the other.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "LIBTPU_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(PROGRAMS)]
    done = subprocess.run(
        command, cwd=PROGRAMS.parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_compiling_afresh_neither_reads_nor_writes_the_persistent_cache(tmp_path):
    def written():
        jax.clear_caches()
        jax.jit(lambda x: jnp.sin(x) + 41).lower(ROWS).compile()
        return len(list(tmp_path.glob("*-cache")))

    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: jax.config.values[name] for name in names}
    events = []

    def listener(event, **_):
        events.append(event)

    jax.monitoring.register_event_listener(listener)
    try:
        for name, value in zip(names, (str(tmp_path), 0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        with no_persistent_cache():
            assert written() == 0
        assert written() == 1
        with no_persistent_cache():
            events.clear()
            assert written() == 1
            assert HIT not in events
        assert written() == 1
        assert HIT in events
    finally:
        jax.monitoring.unregister_event_listener(listener)
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"^target is 'v9'; it must be one of v4, v5e, v5p, v6e, v7x$"):
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


COPY = """
     0   :  { %s1_s1 = inlined_call_operand.vmem [shape: s32[2,128], index: 0] }
   0x1   :  { %s2_s2 = scalar_lea.vmem %s1_s1, 1  ;;  %s3_s3 = scalar_lea.smem [#allocation3], 0 }
   0x2   :  { %4 = dma.vmem_to_smem [thread:$0]  /*vmem=*/%s2_s2, /*size_in_granules=*/16, /*smem=*/%s3_s3 }
   0x3   :  { %s5_s5 = sld [smem:[#allocation3]] }
   0x4   :  { %p6_p6 = scmp.eq.s32.totalorder %s5_s5, 7 }
   0x5   :  { %7 = sbr.rel (%p6_p6) target bundleno = 13 (0xd), region = 1 }
   0x6   :  {}
   0x7   :  {}
   0x8   :  {}
   0x9   :  {}
   0xa   :  {}
   0xb   :  {}
   0xc   :  { %8 = vsyncpa [#allocation6], 1 }
   0xd   :  {}
"""


@pytest.mark.parametrize("word", [7, 8])
def test_a_list_in_vector_memory_is_copied_row_by_row_and_branches_of_v7x_wait_six_bundles(word):
    rows = np.arange(256, dtype=np.int32) + (word - 128)
    ran = run(parse_bundles(COPY), {0: rows}, "v7x", 32)
    assert ran.executed.tolist() == [1] * 12 + [int(word != 7), 1]


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
