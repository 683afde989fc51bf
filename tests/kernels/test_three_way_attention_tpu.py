"""The attention kernels as TPU programs: the real workloads compile for every generation, and nothing is gathered."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from tpu_programs import compile_for, mesh, needs_libtpu

from pit_kernels import Partition, device, three_way_attention
from pit_kernels.three_way_attention import pallas_tpu
from pit_kernels.workloads import WORKLOADS

pytestmark = needs_libtpu

BY_NAME = {workload.name: workload for workload in WORKLOADS}
FIRST = [
    ("v4", "llama-3-8b/packed-2048"),
    ("v5e", "llama-3-8b/packed-4096"),
    ("v5p", "smollm2-135m/rollout-4096"),
    ("v6e", "gemma-2-2b/classic-1536"),
]
REST = [(kind, name) for kind in device.KINDS for name in BY_NAME if (kind, name) not in FIRST]
ROWS_ON_LANES = Partition(rows=("data",), columns=("tensor",))


def gradient(q, k, v, visible_until, d_out):
    out, pull = jax.vjp(lambda *qkv: three_way_attention(*qkv, visible_until, partition=ROWS_ON_LANES), q, k, v)
    return out, pull(d_out)


def shapes_of(workload, batch, dtype=jnp.bfloat16):
    def struct(heads):
        return jax.ShapeDtypeStruct((batch, workload.layout.row_length, heads, workload.head_dim), dtype)

    q, k = struct(workload.heads), struct(workload.kv_heads)
    return q, k, k, jax.ShapeDtypeStruct(q.shape[:2], jnp.int32), q


def check_compiles(kind, name):
    workload, chips = BY_NAME[name], mesh(kind, data=1, tensor=1)
    with jax.set_mesh(chips):
        reason = pallas_tpu.unsupported_reason(workload.layout.row_length, workload.head_dim, jnp.bfloat16)
    text = compile_for(chips, gradient, *shapes_of(workload, 2)).as_text()
    kernels = set(re.findall(r"three_way_attention_(?:forward|backward)", text))
    assert len(kernels) == (2 if reason is None else 0)
    # The one workload of these that a chip of 16 MiB cannot hold goes to XLA.
    assert (reason is not None) == (kind == "v4" and workload.head_dim == 256 and workload.layout.row_length == 4096)


@pytest.mark.parametrize(("kind", "name"), FIRST)
def test_a_workload_compiles(kind, name):
    check_compiles(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), REST)
def test_every_workload_compiles(kind, name):
    check_compiles(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", device.KINDS[1:])
def test_the_longest_rows_compile(kind):
    chips = mesh(kind, data=1, tensor=1)
    q, k = (jax.ShapeDtypeStruct((1, 16384, heads, 128), jnp.bfloat16) for heads in (8, 2))
    shapes = (q, k, k, jax.ShapeDtypeStruct((1, 16384), jnp.int32), q)
    assert "three_way_attention_backward" in compile_for(chips, gradient, *shapes).as_text()


def test_over_a_mesh_nothing_is_gathered():
    workload = BY_NAME["llama-3-8b/packed-2048"]
    specs = (*(P("data", None, "tensor"),) * 3, P("data"), P("data", None, "tensor"))
    shapes = zip(shapes_of(workload, 4), specs, strict=True)
    text = compile_for(mesh("v5e", data=2, tensor=2), gradient, *shapes).as_text()
    assert "three_way_attention_backward" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
