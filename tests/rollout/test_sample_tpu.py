"""The decode loop as a TPU program of a mesh, compiled for chips that are not attached."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import compiled, mesh, model_on, needs_libtpu

from pit.config import ModelConfig, RolloutConfig
from pit.model.axes import ROWS
from pit.model.decoder import Decoder
from pit.rollout import engine, prefill
from pit.rollout.sizes import sizes_of
from pit.rollout.strategy import Temperature

MODEL = ModelConfig(width=256, layers=2, heads=8, kv_heads=4, head_dim=64, mlp=512, compute_dtype="bfloat16")
VOCABULARY, DATA, TENSOR = 1024, 2, 2
WITHIN_A_SHARD = ("replica_groups=[2,2]<=[4]", "replica_groups={{0,1},{2,3}}", "source_target_pairs=")
"""Groups of collectives between devices 0 and 1, and 2 and 3: the two of a shard, over tensor."""


def program(kind):
    """Return the HLO of the decode loop on a mesh data x tensor."""
    chips = mesh(kind, data=DATA, fsdp=1, tensor=TENSOR)
    graphdef, params = model_on(chips, Decoder, MODEL, VOCABULARY)
    sizes = sizes_of([300] * 8, n=16, capacity=128, config=RolloutConfig(slots=64), shards=DATA)
    with jax.set_mesh(chips):
        stored, last = jax.eval_shape(lambda params: prefill._empty(graphdef, params, sizes), params)

    def shape(size, dtype, spec=ROWS):
        return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(chips, spec))

    def split(tree):
        return jax.tree.map(lambda x: shape(x.shape, x.dtype), tree)

    requests = (DATA, sizes.requests)
    lengths = shape(requests, jnp.int32)
    prefixes = prefill.Prefixes(split(stored), split(last), lengths, lengths)

    def decode(params, *rest):
        return engine.decode(graphdef, params, *rest, sizes=sizes, strategy=Temperature(1.0), eos_ids=(3,))

    settings = shape((*requests, 2), jnp.float32)
    arrays = (params, prefixes, shape(requests, jnp.uint32), settings, shape((2,), jnp.uint32, P()))
    return compiled(chips, jax.jit(decode), *arrays).as_text()


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v5e", "v5p"])
def test_no_step_of_the_loop_waits_for_another_shard(kind):
    text = program(kind)
    assert re.search(r"custom_call_target=\"tpu_custom_call\".*cached_attention", text)
    collective = r"= .* (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    looped = [line for line in text.splitlines() if re.search(collective, line) and "/while/body/" in line]
    assert looped, "tensor's two devices share every step"
    for line in looped:
        assert any(groups in line for groups in WITHIN_A_SHARD), line
        for pair in re.findall(r"\{(\d),(\d)\}", line.partition("source_target_pairs=")[2].partition("}}")[0] + "}"):
            assert len({int(device) // TENSOR for device in pair}) == 1, line
