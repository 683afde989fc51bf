"""The one table of TPUs and GPUs: lines worked out by hand from rows of both suites."""

from pit_kernels.microbench import across
from pit_kernels.microbench.gpu_static import KernelRow
from pit_kernels.microbench.suite import Row


def of_tpu(target, direction="forward", contender="pallas_tpu", **figures):
    known = {"us": 12.0, "compute_us": 12.0, "memory_us": 3.0, "hbm_bytes": 5_000_000, "spills": 7, "launches": 1}
    known |= {"vmem_bytes": 32 * 2**20, **figures}
    return Row("three_way_attention", "packed-4096", direction, contender, target, True, 1, known, {})


def of_gpu(kernel, target="sm_90", gflop=989.0, least_mb=3.35, **machine):
    known = {"registers": 168, "spill_bytes": 0, "shared_bytes": 65536, "matrix": "wgmma"} | machine
    tile = ("queries=64 keys=64", 4, 2, 8)
    return KernelRow("three_way_attention", "packed-4096", kernel, target, *tile, known, gflop, least_mb, 0.0)


def test_a_line_of_a_tpu_is_its_schedule_or_its_bytes():
    (line,) = across.lines([of_tpu("v7x")], [])
    assert line.cells == (
        *("three_way_attention", "packed-4096", "forward", "v7x", "1", "32 MiB VMEM", "7", "5.0", "12.0", "schedule"),
    )
    (line,) = across.lines([of_tpu("v7x", compute_us=3.0, memory_us=12.0)], [])
    assert line.bound == "memory"


def test_a_line_of_a_gpu_is_its_products_or_its_bytes_kernel_by_kernel():
    # 989 GFLOP at 989 TFLOP/s are 1,000 us, and 3.35 MB at 3.35 TB/s are 1 us.
    rows = [of_gpu("forward"), of_gpu("query_gradient", gflop=0.0, registers=200, spill_bytes=4)]
    forward, both = across.lines([], rows)
    assert (forward.direction, forward.kernels, forward.us, forward.bound) == ("forward", 1, 1000.0, "products")
    assert (both.direction, both.kernels, both.spills, both.mb) == ("both", 2, 4, 6.7)
    assert round(both.us) == 1001
    assert both.takes == "200 registers, 64 KiB shared"


def test_targets_stand_in_one_order_and_other_contenders_are_left_out():
    tpus = [of_tpu("v7x"), of_tpu("v4"), of_tpu("v5e", contender="tokamax"), of_tpu("v4", "both")]
    table = across.lines(tpus, [of_gpu("forward", "sm_100"), of_gpu("forward", "sm_80")])
    assert [(line.direction, line.target) for line in table] == [
        *(("forward", "v4"), ("forward", "v7x"), ("forward", "sm_80"), ("forward", "sm_100"), ("both", "v4"))
    ]
    text = across.markdown(table).splitlines()
    assert len(text) == 2 + len(table)
    assert text[1].count("|") == text[0].count("|") == text[2].count("|")
