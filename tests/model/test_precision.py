"""bfloat16 stays near float32, recomputed activations change no gradient, and a seed decides all weights."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.config import MeshConfig
from pit.data.packing import pack
from pit.data.template import improver_sft
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.model import Model, gathered
from pit.model.params import build, merge
from pit.model.sharding import make_mesh
from pit.stages.sft import nll

CONFIG = dataclasses.replace(twins.GEMMA, layers=1)
COLUMNS = [[[4, 5, 6], [7]], [[8, 9], [10, 11, 12]], [[13], [14, 15, 16, 17]]]


@cache
def gradient(**changes):
    """Return loss and gradient of one batch, and whether the program recomputes activations.

    The weights do not depend on the changes to the config.
    """
    graphdef = twins.graph(Decoder, dataclasses.replace(CONFIG, **changes))
    _, params = twins.random_decoder(CONFIG)
    (batch,) = pack(COLUMNS, improver_sft(), twins.SPLIT)

    def loss(params, arrays):
        return nll(graphdef)(params, arrays)[0].sum

    traced = twins.jit(jax.value_and_grad(loss)).trace(params, twins.arrays_of(batch))
    value, grads = jax.device_get(traced.lower().compile()(params, twins.arrays_of(batch)))
    return value, grads, re.search("remat|checkpoint", str(traced.jaxpr)) is not None


@pytest.mark.parametrize("policy", ["full", "save_attention"])
def test_recomputed_activations_give_the_same_gradients(policy):
    (value, grads, once), (again, remat, twice) = gradient(), gradient(remat=policy)
    assert (once, twice) == (False, True)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for name, grad in grads.items():
        np.testing.assert_allclose(remat[name], grad, rtol=1e-5, atol=1e-6, err_msg=name)


def test_bfloat16_stays_near_float32():
    (value, grads, _), (rough, rough_grads, _) = gradient(), gradient(compute_dtype="bfloat16")
    assert rough != value, "nothing was computed in bfloat16"
    assert rough.dtype == np.float32
    # Eight bits of mantissa through a layer: a few percent.
    assert rough == pytest.approx(value, rel=0.02)
    for name, grad in grads.items():
        assert rough_grads[name].dtype == np.float32
        assert np.linalg.norm(rough_grads[name] - grad) <= 0.08 * np.linalg.norm(grad) + 1e-3, name


def test_fresh_weights_depend_on_the_seed_alone():
    config = dataclasses.replace(twins.LLAMA, layers=1)
    one, two, other = (build(RewardModel, config, twins.VOCAB, seed)[1] for seed in (3, 3, 4))
    assert one.keys() == two.keys() == other.keys()
    for name in one:
        assert one[name].dtype == jnp.float32
        np.testing.assert_array_equal(one[name], two[name], name)
        assert name.endswith("scale") or np.any(np.asarray(one[name]) != np.asarray(other[name])), name


@pytest.mark.parametrize("shape", [twins.LLAMA, twins.GEMMA, twins.LEARNED], ids=["untied", "scaled", "learned"])
def test_weights_gathered_for_decoding_give_the_bits_of_those_they_come_from(shape):
    config = dataclasses.replace(shape, layers=1, compute_dtype="bfloat16")
    graphdef, params = twins.random_decoder(config)
    model = Model(graphdef, params).sharded(make_mesh(MeshConfig(fsdp=2)))
    whole = gathered(model).params
    assert {str(value.dtype) for name, value in whole.items() if "attention.q" in name} == {"bfloat16"}
    for name, value in whole.items():
        assert value.sharding.is_fully_replicated, name
    (batch,) = pack(COLUMNS, improver_sft(), twins.SPLIT)
    rows = twins.arrays_of(batch)

    def logits(params):
        model = merge(graphdef, params)
        hidden, _ = model.prefill(rows["token"], rows["position"], rows["visible_until"])
        return model.logits(hidden)

    np.testing.assert_array_equal(*(twins.jit(logits)(one) for one in (whole, params)))
