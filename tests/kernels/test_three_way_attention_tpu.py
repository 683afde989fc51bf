"""The attention kernels as TPU programs: the real workloads compile for every generation, and nothing is gathered."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from tpu_programs import compile_for, mesh, needs_libtpu

from pit_kernels import Partition, device, three_way_attention
from pit_kernels.three_way_attention.tiles import Tiles
from pit_kernels.workloads import WORKLOADS

pytestmark = needs_libtpu

BY_NAME = {workload.name: workload for workload in WORKLOADS}
# Of ungrouped heads one layout will do: their programs differ in the length of their rows alone.
WORKLOADS_OF_KINDS = [
    (kind, name)
    for kind in device.KINDS
    for name in BY_NAME
    if not name.startswith("llama-2-7b") or name.endswith("packed-4096")
]
PARTITION = Partition(rows=("data",), columns=("tensor",))
SMALL = Tiles(queries=128, keys=128, unroll=1, masked=1, short=0)


def gradient(q, k, v, visible_until, d_out, tiles=None):
    def attend(*qkv):
        return three_way_attention(*qkv, visible_until, partition=PARTITION, tiles=tiles)

    out, pull = jax.vjp(attend, q, k, v)
    return out, pull(d_out)


def shapes_of(workload, batch, dtype=jnp.bfloat16):
    def struct(heads):
        return jax.ShapeDtypeStruct((batch, workload.layout.row_length, heads, workload.head_dim), dtype)

    q, k = struct(workload.heads), struct(workload.kv_heads)
    return q, k, k, jax.ShapeDtypeStruct(q.shape[:2], jnp.int32), q


def kernels_in(program):
    return set(re.findall(r"three_way_attention_(?:forward|backward)", program.as_text()))


def check_compiles(kind, name):
    program = compile_for(mesh(kind, data=1, tensor=1), gradient, *shapes_of(BY_NAME[name], 2))
    assert kernels_in(program) == {"three_way_attention_forward", "three_way_attention_backward"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), WORKLOADS_OF_KINDS)
def test_every_workload_compiles(kind, name):
    check_compiles(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("kind", device.KINDS)
def test_the_longest_rows_compile(kind, width, dtype):
    q, k = (jax.ShapeDtypeStruct((1, 16384, heads, width), dtype) for heads in (4, 2))
    shapes = (q, k, k, jax.ShapeDtypeStruct((1, 16384), jnp.int32), q)
    program = compile_for(mesh(kind, data=1, tensor=1), gradient, *shapes)
    assert kernels_in(program) == {"three_way_attention_forward", "three_way_attention_backward"}


def test_over_a_mesh_nothing_is_gathered():
    workload = BY_NAME["llama-3-8b/packed-4096"]
    specs = (*(P("data", None, "tensor"),) * 3, P("data"), P("data", None, "tensor"))
    shapes = zip(shapes_of(workload, 4), specs, strict=True)
    # The layout does not depend on tiles, and kernels of small ones take half as long to compile.
    program = compile_for(mesh("v5e", data=2, tensor=2), functools.partial(gradient, tiles=SMALL), *shapes)
    assert kernels_in(program) == {"three_way_attention_forward", "three_way_attention_backward"}
    text = program.as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
