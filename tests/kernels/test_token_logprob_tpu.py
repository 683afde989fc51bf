"""The TPU kernels of token_logprob as they are compiled: for every kind of TPU, over a mesh, and what they move."""

import functools
import itertools
import json
import math
import re
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import QUICK, no_races
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from tpu_programs import compile_for, mesh, needs_libtpu

from pit_kernels import device, token_logprob
from pit_kernels.partition import Partition
from pit_kernels.token_logprob import pallas_tpu, xla
from pit_kernels.token_logprob.blocks import Blocks
from pit_kernels.token_logprob.plan import backward_traffic, forward_traffic, plan
from pit_kernels.token_logprob.settings import RowGradients, Settings
from pit_kernels.token_logprob.tiles import Tiles, default

SHAPES = {"gemma-2-2b": (2304, 262144), "smollm2-135m": (576, 49152)}
ROWS = 16384
BF16 = jnp.dtype(jnp.bfloat16)


def gradient_program(kind, width, vocabulary, rows=ROWS, dtype=BF16, axes=None, **options):
    """The compiled gradient of a mean log-probability and entropy, on one device or over a mesh."""
    partition = Partition(rows=("data",), columns=("tensor",))
    layout = options.get("layout", "vd")

    def total(hidden, weight, target, valid):
        result = token_logprob(hidden, weight, target, valid=valid, partition=partition, **options)
        return result.logp.sum() + result.entropy.sum()

    table = (vocabulary, width) if layout == "vd" else (width, vocabulary)
    split = axes is not None
    return compile_for(
        mesh(kind, **(axes or {"data": 1, "tensor": 1})),
        jax.value_and_grad(jax.checkpoint(total), (0, 1)),
        (jax.ShapeDtypeStruct((rows, width), dtype), P("data", None) if split else P()),
        (jax.ShapeDtypeStruct(table, dtype), (P("tensor") if layout == "vd" else P(None, "tensor")) if split else P()),
        (jax.ShapeDtypeStruct((rows,), jnp.int32), P("data") if split else P()),
        (jax.ShapeDtypeStruct((rows,), jnp.bool_), P("data") if split else P()),
    )


def kernels(program):
    return len(re.findall(r'custom_call_target="tpu_custom_call"', program.as_text()))


# The fast tests compile the same kernels over a mesh.
@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", device.KINDS)
def test_compiles_and_is_what_auto_takes(kind, shape):
    program = gradient_program(kind, *SHAPES[shape])
    assert kernels(program) == 2 or kernels(program) == 3
    # Not the logits, and of the table no more than its gradient in float32.
    width, vocabulary = SHAPES[shape]
    rows_bytes = 8 * ROWS * width * 4
    assert program.memory_analysis().temp_size_in_bytes < vocabulary * width * 4 * 1.01 + rows_bytes


TABLE = json.loads(resources.files("pit_kernels").joinpath("token_logprob", "tiles.json").read_text(encoding="utf-8"))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in TABLE.items() for name in names])
@pytest.mark.parametrize("layout", ["vd", "dv"])
def test_every_row_of_the_table_of_tiles_fits(kind, name, layout):
    dtype, width = name.split("-")
    # Blocks are made equal: whole ones, forward and backward, are of a multiple of both.
    rows = 2 * math.lcm(TABLE[kind][name]["rows"], TABLE[kind][name]["grad_rows"])
    assert kernels(gradient_program(kind, int(width), 4000, rows, jnp.dtype(dtype), layout=layout)) in (2, 3)


@needs_libtpu
@pytest.mark.parametrize("layout", ["vd", pytest.param("dv", marks=pytest.mark.slow)])
def test_over_a_mesh_neither_rows_nor_table_are_gathered(layout):
    width, vocabulary = SHAPES["smollm2-135m"]
    program = gradient_program("v5e", width, vocabulary, axes={"data": 2, "tensor": 2}, layout=layout)
    text = program.as_text()
    assert kernels(program) in (2, 3)
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "collective-permute" not in text


def walked(blocks, specs, shapes, cut, live):
    """Bytes that the grid's index maps fetch, or write: a block moves when its index changes."""
    extent = np.array([live, max(live - 1, 0) // cut.rows])
    moved = []
    for spec, (shape, itemsize) in zip(specs, shapes, strict=True):
        total, sizes = 0, [1 if size is None else size for size in spec.block_shape]
        for core in range(cut.cores):
            before = None
            for at in itertools.product((core,), range(cut.blocks), range(cut.tiles)):
                index = tuple(int(i) for i in spec.index_map(*at, extent))
                if index != before:
                    inside = [min(size, whole - i * size) for size, whole, i in zip(sizes, shape, index, strict=True)]
                    total += int(np.prod(inside)) * itemsize
                before = index
        moved.append(total)
    return moved


@pytest.mark.parametrize("layout", ["vd", "dv"])
@pytest.mark.parametrize(("rows", "vocabulary", "cores"), [(1000, 1000, 1), (300, 640, 2), (128, 128, 2)])
def test_traffic_is_what_the_index_maps_move(rows, vocabulary, cores, layout):
    cut = plan((rows, 64, vocabulary), (256, 128, 128), cores)
    live = cut.padded_rows
    blocks = Blocks(Settings(layout, 1.0, None), cut, True)
    table = (vocabulary, 64) if layout == "vd" else (64, vocabulary)
    ins = [((1, live), 4), ((64, live), 2), (table, 2), ((1, cut.padded_vocabulary), 4)]
    out = ((cut.cores, 4, live), 4)
    target, hidden, weight, bias = walked(blocks, blocks.forward_in(), ins, cut, live)
    (result,) = walked(blocks, [blocks.forward_out()], [out], cut, live)
    traffic = forward_traffic(cut, 2, has_bias=True)
    assert traffic == traffic._replace(rows=target + result, hidden=hidden, table=weight, bias=bias)

    facts = ((3, live), 4)
    target, known, hidden, weight, bias = walked(blocks, blocks.backward_in(3), [ins[0], facts, *ins[1:]], cut, live)
    outs = [(table, 2), ((cut.blocks, 1, cut.padded_vocabulary), 4)]
    d_weight, d_bias = walked(blocks, blocks.backward_out(narrow=True)[2:], outs, cut, live)
    traffic = backward_traffic(cut, 2, narrow=True, facts=3, has_bias=True)
    assert (traffic.rows, traffic.hidden, traffic.table) == (target + known, hidden, weight)
    assert (traffic.d_table, traffic.bias) == (d_weight, bias + d_bias)
    assert traffic.running == 2 * (cut.blocks - 1) * cut.padded_vocabulary * 64 * 4
    assert traffic.d_hidden == cut.cores * live * 64 * 4


def test_blocks_of_invalid_rows_move_nothing():
    cut = plan((1024, 64, 1024), (256, 128, 128), 1)
    blocks = Blocks(Settings("vd", 1.0, None), cut, False)
    table = [((1024, 64), 2)]
    (all_of_it,) = walked(blocks, blocks.forward_in()[2:3], table, cut, 1024)
    (half,) = walked(blocks, blocks.forward_in()[2:3], table, cut, 512)
    assert (all_of_it, half) == (4 * 1024 * 64 * 2, 2 * 1024 * 64 * 2)


@pytest.mark.parametrize(("kind", "gigabytes"), [("v5e", 22), ("v6e", 22), ("v5p", 50)])
def test_the_backward_pass_moves_few_bytes(kind, gigabytes, monkeypatch):
    monkeypatch.setattr(device, "kind", lambda: kind)
    width, vocabulary = SHAPES["gemma-2-2b"]
    options = pallas_tpu.Options(default(width, BF16), device.cores(), device.vmem_bytes(), False)
    cut = pallas_tpu.backward_plan(options, (ROWS, width, vocabulary))
    traffic = backward_traffic(cut, 2, narrow=True, facts=3, has_bias=False)
    assert traffic.total < gigabytes * 1e9


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(640, BF16), pytest.param(200, jnp.dtype(jnp.float32), marks=pytest.mark.slow)]
)
def test_two_cores_share_the_vocabulary(vocabulary, dtype):
    # Five tiles for two cores: one of them visits a tile that is not there. Two tiles: nothing overlaps.
    # Two blocks of rows, the second one not full.
    rows, rng = 150, np.random.default_rng(0)
    settings = Settings("vd", 0.8, None)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, 6)), dtype) for n in (rows, vocabulary))
    bias = jnp.asarray(rng.normal(size=vocabulary), dtype)
    target, valid = jnp.asarray(rng.integers(0, vocabulary, rows), jnp.int32), jnp.asarray(rng.random(rows) < 0.9)
    interpret = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise", num_cores_or_threads=2
    )
    options = pallas_tpu.Options(Tiles(128, 128, 128, 128, 128, 128), 2, 2**24, interpret)
    arrays, quick = (hidden, weight, target, valid, bias), functools.partial(jax.jit, compiler_options=QUICK)
    with no_races():
        actual = quick(functools.partial(pallas_tpu.run_forward, settings, options))(*arrays)
    expected = xla.forward(settings, *arrays)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a[valid], b[valid], rtol=1e-4, atol=1e-4)
    lse = expected.peak + jnp.log(expected.total)
    cotangents = (jnp.where(valid, jnp.asarray(rng.normal(size=rows), jnp.float32), 0) for _ in range(3))
    gradients = RowGradients(lse, jnp.ones_like(lse), *cotangents)
    with no_races():
        actual = quick(functools.partial(pallas_tpu.run_backward, settings, options))(*arrays, gradients)
    expected = xla.backward(settings, *arrays, gradients)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-2, atol=1e-2)


@needs_libtpu
def test_gradients_of_a_batch_compile():
    hidden = jax.ShapeDtypeStruct((2, 256, 256), jnp.bfloat16)
    weight, target = jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16), jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def gradients(hidden, weight, target):
        def loss(hidden, weight, target):
            return token_logprob(hidden, weight, target, implementation="pallas_tpu").logp.sum()

        return jax.vmap(jax.grad(loss, (0, 1)), in_axes=(0, None, 0))(hidden, weight, target)

    text = compile_for(mesh("v5e", one=1), gradients, hidden, weight, target).as_text()
    assert "token_logprob_backward" in text
