"""Layers in loops compute what they compute one after the other, and programs do not grow with depth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.config import AdapterConfig, ModelConfig
from pit.data.packing import pack
from pit.data.template import improver_sft
from pit.model import loops
from pit.model.adapters import DROPOUT
from pit.model.decoder import Decoder
from pit.model.loops import repeats
from pit.model.params import abstract, merge
from pit.stages.sft import nll

COLUMNS = [[[4, 5, 6], [7]], [[8, 9], [10, 11, 12]], [[13], [14, 15, 16, 17]]]
ROWS = twins.arrays_of(pack(COLUMNS, improver_sft(), twins.SPLIT)[0])
SMALL = dataclasses.replace(twins.LLAMA, width=8, heads=2, kv_heads=1, mlp=8)
LOCAL = ModelConfig(**dataclasses.asdict(SMALL) | {"window": 3, "global_every": 2, "local_rope_theta": 50.0})
SOME = AdapterConfig(rank=2, targets=r".*\.[1-4]\.self_attn\.q_proj|.*\.[24]\.mlp\.up_proj", dropout=0.5)


@given(st.text(alphabet="ab", max_size=24))
def test_loops_cover_the_layers_in_order(kinds):
    covered = ""
    for period, times in repeats(kinds):
        assert times >= 3 or (period, times) == (1, 1)
        covered += kinds[len(covered) : len(covered) + period] * times
    assert covered == kinds


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("g" + "l" * 9, [(1, 1), (1, 9)]),
        ("lllllg" * 4 + "ll", [(6, 4), (1, 1), (1, 1)]),
        ("lg" * 13, [(2, 13)]),
    ],
    ids=["Qwen 2", "Gemma 3", "Gemma 2"],
)
def test_the_layers_of_families_are_few_loops(kinds, expected):
    assert repeats(kinds) == expected


def _values(config, layers, adapter):
    """Return the loss, its gradient, and hidden states and caches of a prefill."""
    config = dataclasses.replace(config, layers=layers)
    graphdef, shapes = abstract(Decoder, config, twins.VOCAB, adapter)
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(0, 0.4, shape.shape), jnp.float32) for name, shape in shapes.items()}
    rows = {**ROWS, DROPOUT: np.array([0, 1], np.uint32)} if adapter else ROWS

    def loss(params):
        return nll(graphdef)(params, rows)[0].sum

    def prefill(params):
        return merge(graphdef, params).prefill(*(rows[name] for name in ("token", "position", "visible_until")))

    return jax.device_get((twins.jit(jax.value_and_grad(loss))(params), twins.jit(prefill)(params)))


@pytest.mark.parametrize(
    ("config", "layers", "adapter", "looped"),
    [
        (dataclasses.replace(SMALL, remat="save_attention"), 4, None, [(1, 4)]),
        (LOCAL, 7, None, [(2, 3), (1, 1)]),
        (SMALL, 6, SOME, [(1, 1)] * 6),
    ],
    ids=["alike", "local and global", "adapters in some"],
)
def test_layers_in_loops_are_layers_one_after_the_other(config, layers, adapter, looped, monkeypatch):
    seen = []

    def kept(kinds):
        seen.append(repeats(kinds))
        return seen[-1]

    monkeypatch.setattr(loops, "repeats", kept)
    inside = _values(config, layers, adapter)
    assert seen
    assert all(one == looped for one in seen)
    monkeypatch.setattr(loops, "repeats", lambda kinds: [(1, 1)] * len(kinds))
    outside = _values(config, layers, adapter)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_a_program_does_not_grow_with_depth():
    def size(layers):
        config = dataclasses.replace(SMALL, layers=layers)
        graphdef, params = abstract(Decoder, config, twins.VOCAB)
        grad = jax.grad(lambda params: nll(graphdef)(params, ROWS)[0].sum)
        return jax.jit(grad).lower(params).as_text().count("dot_general")

    assert size(4) == size(9) < 2 * size(1)
