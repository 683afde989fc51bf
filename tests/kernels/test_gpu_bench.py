"""Counting and timing for GPUs: costs by hand, ceilings, options of the command; no GPU and no Triton is needed."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from pit.cli import bench, bench_gpu
from pit.errors import PitError
from pit_kernels import gpu, triton_call
from pit_kernels.conformance import attention_cases, judge
from pit_kernels.microbench import gpu_static, gpu_timing
from pit_kernels.triton_call import Launch

MACHINE = {"registers": 200, "spill_bytes": 0, "shared_bytes": 100_000, "matrix": "wgmma"}
ROW = gpu_static.KernelRow(
    *("three_way_attention", "packed-4096", "forward", "sm_90", "queries=64 keys=64", 4, 2, 8),
    *(MACHINE, 1.0, 2.0, 3.0),
)


class Named:
    """A kernel, of which a launch reads the name and the arguments."""

    def __init__(self, name):
        self.fn = dataclasses.make_dataclass(name, ["x"])


def test_the_command_knows_the_architectures_and_operations():
    assert bench_gpu.GPUS == gpu.ARCHITECTURES
    assert bench_gpu.GPU_OPERATIONS == gpu_static.OPERATIONS


def launch(name, inputs, outputs, grid, **constants):
    structs = [tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes) for shapes in (inputs, outputs)]
    return Launch(Named(name), *structs, grid, 4, 2, constants)


def test_costs_of_attention_count_the_tiles_with_a_visible_pair():
    # Two sequences of two tiles each, in one row of four: three tiles of the lower triangle of each are visible.
    until = np.repeat([128, 256], 128)[None].astype(np.int32)
    case = gpu_static.Case("two", "three_way_attention", len, (), until)
    sizes = {"QUERIES": 64, "KEYS": 64, "WINDOW": 0, "HEADS": 2, "WIDTH": 32, "W": 32}
    forward = launch("forward_kernel", [(1, 256, 2, 32)], [(1, 256, 2, 32)], (4, 2), **sizes)
    flop, loaded = gpu_static._cost(forward, case)
    assert flop == 6 * 2 * (2 * 2 * 64 * 64 * 32)
    assert loaded == 2 * (256 * 2 * 32 * 2) + 6 * 2 * (2 * 64 * 32 * 2)


def test_costs_of_log_probabilities_are_those_of_a_product():
    sizes = {"ROWS": 256, "WIDTH": 64, "VOCABULARY": 512, "M": 128, "V": 128}
    forward = launch("forward_kernel", [(256, 64)], [(256,)], (2, 1), **sizes)
    flop, loaded = gpu_static._cost(forward, gpu_static.Case("", "token_logprob", len, ()))
    assert flop == 2 * 256 * 64 * 512
    assert loaded == (256 * 64 + 256) * 2 + 2 * 4 * (128 + 128) * 64 * 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, None),
        ({"registers": 201}, "registers is 201, and was 200"),
        ({"spill_bytes": 4}, "spills 4 bytes; it must spill none"),
        ({"shared_bytes": 240_000}, "takes 240000 bytes of shared memory of 232448"),
        ({"matrix": "mma"}, "multiplies by mma, and did by wgmma"),
    ],
)
def test_a_kernel_that_takes_more_than_its_committed_row_is_named(changes, line, tmp_path):
    path = tmp_path / "gpu.json"
    gpu_static.save([ROW], path)
    found = gpu_static.worse([dataclasses.replace(ROW, machine=MACHINE | changes)], path)
    assert (found == []) if line is None else (f"three_way_attention/packed-4096/forward/sm_90: {line}" in found)


def test_a_kernel_without_a_row_is_named_and_rows_are_kept(tmp_path):
    path = tmp_path / "gpu.json"
    gpu_static.save([ROW], path)
    other = dataclasses.replace(ROW, target="sm_80")
    assert gpu_static.uncommitted([ROW, other], path) == ["three_way_attention/packed-4096/forward/sm_80"]
    gpu_static.save([other], path)
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--target", "sm_90", "--target", "v5e", "--plot", "x.png"],
            "--plot is given with --target v5e and --target sm_90, which share one table and no file; leave it out",
        ),
        (
            ["--target", "sm_90", "--target", "v5e", "--workload", "tile-512-full"],
            "--workload is 'tile-512-full'; for TPUs and GPUs together it must be one of classic-1536, ",
        ),
        (["--op", "cached_attention"], "--target is v5e for --op cached_attention, which is counted for GPUs only"),
        (["--target", "sm_90", "--op", "gap_reward"], "--op is gap_reward, which has no GPU kernels"),
        (["--target", "sm_90", "--time"], "--time is given with --target sm_90; only TPUs have it: leave it out"),
    ],
)
def test_options_that_do_not_fit_are_named(words, message):
    result = CliRunner().invoke(bench.bench, ["kernels", *words])
    assert isinstance(result.exception, PitError)
    assert str(result.exception).startswith(message)


def test_without_triton_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(triton_call, "_installed", lambda module: module == "jax_cuda12_plugin")
    result = CliRunner().invoke(bench.bench, ["kernels", "--target", "sm_90"])
    assert str(result.exception) == "--target is sm_90: triton is not installed; install it: pip install 'pit-jax[gpu]'"


def test_an_unknown_problem_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"--workload is 'x'; for cached_attention on GPUs .* decode-llama-3-8b"):
        gpu_static.named_cases("cached_attention", ["x"])


def test_the_mask_that_cudnn_gets_is_ours():
    function = functools.partial(gpu_timing.masked_attention, implementation="xla")
    (cudnn,) = [c for c in gpu_timing.contenders("three_way_attention") if c.name == "cudnn"]
    names = ("a tree starts after padding of more than a block, float32", "gap trees, bfloat16")
    cases = [case for case in attention_cases() if case.name in names]
    # `jax.nn` is written for JAX's own promotion.
    with jax.numpy_dtype_promotion("standard"):
        verdict = judge(function, cases, cudnn.serves)
    assert (verdict.failure, verdict.passed) == (None, 2)
