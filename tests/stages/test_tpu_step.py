"""The steps of training as TPU programs: compiled for chips that are not attached, and run by Pallas' interpreter."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import path_twins as twins
import pytest
from interpreted import tpu_kernels_everywhere
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import compiled, mesh, model_on, needs_libtpu

from pit.config import ModelConfig, RlConfig
from pit.data.packing import pack
from pit.data.template import gap, rollout
from pit.model.axes import ROWS
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import build, copy
from pit.rl.rloo import policy_gradient
from pit.stages.reward import gap_loss
from pit.train.update import Update

MODEL = ModelConfig(width=256, layers=1, heads=8, kv_heads=4, head_dim=64, mlp=512, compute_dtype="bfloat16")
VOCABULARY, ROWS_OF_BATCH, TOKENS, TREES, SAMPLES, CAPACITY = 1024, 8, 1024, 16, 4, 64
RL = RlConfig(samples=SAMPLES)


def shapes_of_tokens():
    vector = jax.ShapeDtypeStruct((ROWS_OF_BATCH, TOKENS), jnp.int32)
    return dict.fromkeys(("token", "position", "visible_until", "previous"), vector)


def gap_step():
    shapes = {**shapes_of_tokens(), "leaf": jax.ShapeDtypeStruct((TREES, 4, 2), jnp.int32)}
    return gap_loss, RewardModel, shapes


def rl_step():
    shapes = {
        **shapes_of_tokens(),
        "leaf": jax.ShapeDtypeStruct((TREES, SAMPLES, 2), jnp.int32),
        "length": jax.ShapeDtypeStruct((TREES, SAMPLES), jnp.int32),
        "finished": jax.ShapeDtypeStruct((TREES, SAMPLES), jnp.bool_),
        "advantage": jax.ShapeDtypeStruct((TREES, SAMPLES), jnp.float32),
    }
    return lambda graphdef: policy_gradient(graphdef, RL, CAPACITY), Decoder, shapes


def compiled_text(kind, data, tensor, step):
    """Return the HLO of the gradient of one microbatch, as the training loop traces it."""
    loss, model, shapes = step()
    chips = mesh(kind, data=data, fsdp=1, tensor=tensor)
    graphdef, params = model_on(chips, model, MODEL, VOCABULARY)
    batch = {
        name: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(chips, P(*ROWS, *(None,) * (len(x.shape) - 1)))
        )
        for name, x in shapes.items()
    }
    update = Update(loss(graphdef), optax.sgd(0.1))
    return compiled(chips, update._only, params, {}, batch).as_text()


KERNELS = {
    gap_step: ("three_way_attention", "leaf_scores"),
    rl_step: ("three_way_attention", "token_logprob"),
}


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v5e", "v5p"])
@pytest.mark.parametrize("step", [gap_step, rl_step])
def test_steps_compile_with_the_kernels_and_gather_no_activations(kind, step):
    data, tensor = 2, 2
    text = compiled_text(kind, data, tensor, step)
    for kernel in (f"{name}_{way}" for name in KERNELS[step] for way in ("forward", "backward")):
        assert re.search(rf"custom_call_target=\"tpu_custom_call\".*{kernel}", text), kernel
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", text)
    tokens = ROWS_OF_BATCH * TOKENS
    for shape in gathered:
        sizes = [int(n) for n in shape.split(",") if n]
        assert not {tokens, tokens // data, TOKENS} & set(sizes), f"an all-gather makes {sizes}"


ONE_LAYER = dataclasses.replace(twins.LLAMA, layers=1)
LAYOUT = dataclasses.replace(twins.SPLIT, rows=8, trees=4)


def gap_case():
    graphdef, params = twins.random_reward_model(ONE_LAYER)
    return gap_loss(graphdef), params, random_batch(gap(), (3, 5, 4))


def rl_case():
    graphdef, params = build(Decoder, ONE_LAYER, twins.VOCAB, seed=0)
    arrays = random_batch(rollout(2, with_reference=True), (4, 3, 5, 2))
    # Samples of 5 and 2 tokens, their closing token sampled too.
    arrays["length"] = jnp.broadcast_to(jnp.array([6, 3], jnp.int32), (LAYOUT.trees, 2))
    arrays["finished"] = jnp.ones((LAYOUT.trees, 2), bool)
    arrays["advantage"] = jnp.asarray(np.random.default_rng(1).normal(size=(LAYOUT.trees, 2)), jnp.float32)
    return policy_gradient(graphdef, RlConfig(samples=2), 8), params, arrays


def random_batch(topology, lengths):
    """Return a packed batch of three random trees with `lengths` tokens in their columns."""
    rng = np.random.default_rng(0)
    columns = [[rng.integers(4, twins.VOCAB, n).tolist() for _ in range(3)] for n in lengths]
    (batch,) = pack(columns, topology, LAYOUT)
    return twins.arrays_of(batch)


@pytest.mark.parametrize("case", [pytest.param(gap_case, marks=pytest.mark.slow), rl_case])
def test_interpreted_steps_are_those_of_xla(case, monkeypatch):
    loss, params, arrays = case()

    def step():
        update = Update(loss, optax.sgd(0.5))
        state, metrics = update(update.start(copy(params)), [arrays])
        return jax.device_get((state.params, metrics))

    expected = step()
    with tpu_kernels_everywhere(monkeypatch):
        actual = step()
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (expected[0], jax.device_get(params))), strict=True)
    ]
    assert max(moved) > 1e-2
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
