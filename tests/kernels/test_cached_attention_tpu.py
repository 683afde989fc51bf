"""The decode kernel as TPU programs: rollouts compile for every generation, and nothing is gathered over a mesh."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from tpu_programs import compile_for, mesh, needs_libtpu

from pit_kernels import Partition, cached_attention, device
from pit_kernels.workloads import HEAD_SHAPES

pytestmark = needs_libtpu

SLOTS, PREFIXES, MEMBERS, PREFIX_TOKENS, OUTPUT_TOKENS = 64, 10, 16, 1024, 511
SHAPES = {shape.model: shape for shape in HEAD_SHAPES}
ROLLOUTS = [(kind, model) for kind in device.KINDS for model in SHAPES]


def shapes_of(model, dtype=jnp.bfloat16, sharded=None):
    shape = SHAPES[model]

    def struct(*sizes, kind=dtype):
        spec = P(None, sharded) if len(sizes) > 1 else P()
        return jax.ShapeDtypeStruct(sizes, kind), spec

    prefix = struct(PREFIXES, shape.kv_heads, PREFIX_TOKENS, shape.head_dim)
    suffix = struct(SLOTS, shape.kv_heads, OUTPUT_TOKENS, shape.head_dim)
    of_prefixes, of_slots = struct(PREFIXES, kind=jnp.int32), struct(SLOTS, kind=jnp.int32)
    q = struct(SLOTS, shape.heads, shape.head_dim)
    return q, prefix, prefix, of_prefixes, suffix, suffix, of_slots, of_slots, of_slots


def attend(*arrays):
    return cached_attention(*arrays, slots_per_prefix=MEMBERS, partition=Partition(columns=("tensor",)))


def check_compiles(kind, model, dtype=jnp.bfloat16):
    program = compile_for(mesh(kind, data=1, tensor=1), attend, *shapes_of(model, dtype))
    assert len(re.findall(r"custom_call_target=\"tpu_custom_call\"", program.as_text())) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "model"), ROLLOUTS)
def test_every_rollout_compiles(kind, model):
    check_compiles(kind, model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", device.KINDS)
def test_float32_compiles(kind):
    check_compiles(kind, "smollm2-135m", jnp.float32)


def test_heads_are_split_over_a_mesh_and_nothing_is_gathered():
    program = compile_for(mesh("v5e", data=2, tensor=2), attend, *shapes_of("llama-3-8b", sharded="tensor"))
    text = program.as_text()
    assert len(re.findall(r"custom_call_target=\"tpu_custom_call\"", text)) == 2
    assert not re.search(r"all-gather|all-to-all|all-reduce|collective-permute", text)
