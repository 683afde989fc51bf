"""A lower compute precision stays near float32, and recomputing activations changes no gradient."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.data.packing import pack_lists
from pit.data.template import improver_sft
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import build
from pit.stages.sft import nll

COLUMNS = [[[4, 5, 6], [7]], [[8, 9], [10, 11, 12]], [[13], [14, 15, 16, 17]]]


@cache
def gradient(**changes):
    """Loss and gradient of one batch, with the same weights whatever the changes."""
    graphdef, _ = build(Decoder, dataclasses.replace(twins.GEMMA, **changes), twins.VOCAB, 0)
    _, params = twins.random_decoder(twins.GEMMA)
    (batch,) = pack_lists(COLUMNS, improver_sft(), twins.SPLIT)

    def loss(params, arrays):
        return nll(graphdef)(params, arrays)[0].sum

    value, grads = jax.device_get(twins.jit(jax.value_and_grad(loss))(params, twins.arrays_of(batch)))
    return value, grads


def test_recomputed_activations_give_the_same_gradients():
    (value, grads), (again, remat) = gradient(), gradient(remat=True)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for name, grad in grads.items():
        np.testing.assert_allclose(remat[name], grad, rtol=1e-5, atol=1e-6, err_msg=name)


def test_bfloat16_stays_near_float32():
    (value, grads), (rough, rough_grads) = gradient(), gradient(compute_dtype="bfloat16")
    assert rough != value, "nothing was computed in bfloat16"
    assert rough.dtype == np.float32
    # Eight bits of mantissa through two layers: a few percent.
    assert rough == pytest.approx(value, rel=0.02)
    for name, grad in grads.items():
        assert rough_grads[name].dtype == np.float32
        assert np.linalg.norm(rough_grads[name] - grad) <= 0.08 * np.linalg.norm(grad) + 1e-3, name


@pytest.mark.parametrize("kind", [Decoder, RewardModel])
def test_fresh_weights_depend_on_the_seed_alone(kind):
    one, two, other = (build(kind, twins.LLAMA, twins.VOCAB, seed)[1] for seed in (3, 3, 4))
    assert one.keys() == two.keys() == other.keys()
    for name in one:
        assert one[name].dtype == jnp.float32
        np.testing.assert_array_equal(one[name], two[name], name)
        assert name.endswith("scale") or np.any(np.asarray(one[name]) != np.asarray(other[name])), name
