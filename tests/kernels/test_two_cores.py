"""Devices of two cores: both have work with one row, compute the same, and are compiled for as one device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from error_rule import write_segments
from interpreted import QUICK, no_races
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from test_three_way_attention import draw_arrays, results
from tpu_programs import compile_for, mesh, needs_libtpu

from pit_kernels import device, three_way_attention
from pit_kernels.microbench.compiler import devices_of
from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.three_way_attention.tiles import Tiles

TWO = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise", num_cores_or_threads=2
)
SMALL = Tiles(queries=128, keys=128, unroll=1, masked=1, short=1)
SEGMENTS = [(0, 100, False), (1, 100, False), (0, 30, True), (1, 70, False)]


@pytest.mark.parametrize("kv_heads", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_cores_share_the_heads_of_one_row(kv_heads, monkeypatch):
    monkeypatch.setattr(device, "cores", lambda: 2)
    until = write_segments(300, SEGMENTS)[None]
    dead = until <= np.arange(300)
    arrays = draw_arrays((1, 300, 2 * kv_heads, kv_heads, 8), 0)
    arrays[4] = np.where(dead[:, :, None], 0, arrays[4])

    def run(**options):
        function = functools.partial(three_way_attention, return_lse=True, **options)
        return jax.jit(functools.partial(results, function), compiler_options=QUICK)(arrays, until)

    with no_races():
        actual = run(interpret=TWO, tiles=SMALL)
    for a, b in zip(actual, run(implementation="xla"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cores", "expected"), [(None, 2), (1, 1), (2, 2)])
def test_cores_are_those_of_the_device(cores, expected):
    described = AbstractDevice("TPU v4", cores, "tpu")
    with use_abstract_mesh(AbstractMesh((1,), ("core",), abstract_device=described)):
        assert (device.kind(), device.cores()) == ("v4", expected)


def test_an_unknown_tpu_counts_as_the_smallest():
    with use_abstract_mesh(AbstractMesh((1,), ("core",), abstract_device=AbstractDevice("TPU v99", 1, "tpu"))):
        assert device.kind() == device.SMALLEST
        assert device.vmem_bytes() == min(device._VMEM_MIB.values()) * 15 // 16 * 2**20


def test_vmem_is_asked_for_with_room_and_never_more_than_there_is(monkeypatch):
    monkeypatch.setattr(device, "kind", lambda: "v5e")
    assert device.vmem_asked(40 * 2**20) == 50 * 2**20
    assert device.vmem_asked(1) == 16 * 2**20
    assert device.vmem_asked(119 * 2**20) == device.vmem_bytes()
    monkeypatch.setattr(device, "kind", lambda: "v4")
    assert device.vmem_asked(1) == device.vmem_bytes() == 15 * 2**20


@needs_libtpu
@pytest.mark.parametrize("kind", device.KINDS)
def test_devices_of_a_slice_have_the_cores_that_the_table_says(kind):
    generation = GENERATIONS[kind]
    first, *others = devices_of(generation, generation.topology)
    assert len(others) == 3 or (kind == "v7x" and len(others) == 7)
    with jax.set_mesh(jax.sharding.Mesh([first], ("core",))):
        assert (device.kind(), device.cores()) == (kind, generation.cores)
    assert device.device_kind(kind) in device._NAMES


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v4", "v5p"])
@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_one_row_compiles_for_two_cores(kind, kv_heads):
    q, k = (jax.ShapeDtypeStruct((1, 1024, heads, 128), jnp.bfloat16) for heads in (2 * kv_heads, kv_heads))

    def gradient(q, k, v, until, d_out):
        out, pull = jax.vjp(lambda *qkv: three_way_attention(*qkv, until), q, k, v)
        return out, pull(d_out)

    until = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    program = compile_for(mesh(kind, core=1), gradient, q, k, k, until, q)
    assert len(set(re.findall(r"three_way_attention_(?:forward|backward)", program.as_text()))) == 2
