"""A scan in bits computes what a scan computes, saves each array once, and widens no stack."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from pit.config import AdapterConfig
from pit.data.packing import pack
from pit.data.template import improver_sft
from pit.model import bits, loops
from pit.model.bits import written
from pit.model.decoder import Decoder
from pit.model.loops_in_bits import scan_in_bits
from pit.model.params import abstract, merge
from pit.stages.sft import nll

COLUMNS = [[[4, 5, 6], [7]], [[8, 9], [10, 11, 12]], [[13], [14, 15, 16, 17]]]
ROWS = twins.arrays_of(pack(COLUMNS, improver_sft(), twins.SPLIT)[0])
SMALL = dataclasses.replace(
    twins.LLAMA, width=8, heads=2, kv_heads=1, mlp=8, layers=3, compute_dtype="bfloat16", remat="none"
)
EVERYWHERE = AdapterConfig(rank=2, targets=".*proj")
WIDENED = re.compile(r" convert\(%dynamic.update.slice")
"""A whole array that is narrowed after one slice of it was written."""

LAYERS = st.integers(1, 4)


def _plain(body, carry, states):
    """Return what `scan_in_bits` returns, by a scan of JAX."""
    carry, results = lax.scan(body, carry, jax.tree.map(lambda *x: jnp.stack(x), *states))
    return carry, [jax.tree.map(lambda x, i=i: x[i], results) for i in range(len(states))]


def _body(carry, state):
    """Apply a layer with a weight in bfloat16, a bias in float32 and a whole number."""
    x, shift = carry
    narrow = (x * shift).astype(jnp.bfloat16)
    y = (narrow @ state["w"]).astype(jnp.float32) + state["b"][None] * state["n"].astype(jnp.float32)
    return (jnp.tanh(y) * y + x, shift * jnp.float32(0.5)), {"y": y.astype(jnp.bfloat16), "n": state["n"] + 1}


def _case(layers, seed):
    rng = np.random.default_rng(seed)

    def state(i):
        return {
            "w": jnp.asarray(rng.normal(0, 0.5, (4, 4)), jnp.bfloat16),
            "b": jnp.asarray(rng.normal(0, 1, 4), jnp.float32),
            "n": jnp.int32(i),
        }

    return (jnp.asarray(rng.normal(0, 1, (3, 4)), jnp.float32), jnp.float32(0.7)), [state(i) for i in range(layers)]


def _loss(scan, carry, states):
    (z, shift), results = scan(_body, carry, states)
    total = jnp.sum(jnp.sin(z)) + shift
    for i, result in enumerate(results):
        total += jnp.sum(result["y"].astype(jnp.float32)) * (i + 1) + result["n"].astype(jnp.float32)
    return total


@functools.cache
def _gradients(layers, by):
    """Return a program for the losses of both scans and their gradients by some of the values."""

    def gradients(carry, states):
        values = {"x": carry[0], "shift": carry[1], **{key: [state[key] for state in states] for key in "wb"}}

        def loss(scan, chosen):
            every = values | chosen
            own = [state | {key: every[key][i] for key in "wb"} for i, state in enumerate(states)]
            return _loss(scan, (every["x"], every["shift"]), own)

        chosen = {name: values[name] for name in by}
        return [jax.value_and_grad(functools.partial(loss, scan))(chosen) for scan in (scan_in_bits, _plain)]

    return twins.jit(gradients)


@settings(max_examples=examples(8))
@given(LAYERS, st.integers(0, 2**16), st.sets(st.sampled_from(["x", "shift", "w", "b"]), min_size=1))
def test_it_is_a_scan(layers, seed, by):
    in_bits, plain = _gradients(layers, frozenset(by))(*_case(layers, seed))
    for a, b in zip(jax.tree.leaves(in_bits), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * max(1, np.max(np.abs(b))))


def test_what_several_operations_saved_is_kept_once():
    states = [{"a": jnp.eye(4, dtype=jnp.bfloat16), "b": jnp.eye(4, dtype=jnp.bfloat16)}] * 3

    def body(x, state):
        return lax.dot(x, state["a"]) + lax.dot(x, state["b"]), None

    def loss(states):
        return jnp.sum(scan_in_bits(body, jnp.ones((5, 4), jnp.bfloat16), states)[0].astype(jnp.float32))

    forward, backward = (e for e in jax.make_jaxpr(jax.grad(loss))(states).eqns if e.primitive.name == "scan")
    assert [v.aval.str_short() for v in forward.outvars] == ["bfloat16[5,4]", "uint16[3,5,4]"]
    assert sum(v.aval.shape[0] == 3 for v in backward.invars if v.aval.ndim == 3) == 3


@pytest.mark.parametrize(("by", "products"), [("x", 2), ("w", 3)])
def test_only_states_that_train_have_a_gradient(by, products):
    states = [{"w": jnp.eye(4, dtype=jnp.bfloat16)}] * 3
    x = jnp.ones((5, 4), jnp.bfloat16)

    def loss(chosen):
        own = [{"w": w} for w in chosen] if by == "w" else states
        first = x if by == "w" else chosen
        return jnp.sum(scan_in_bits(lambda x, state: (x @ state["w"], None), first, own)[0].astype(jnp.float32))

    chosen = [state["w"] for state in states] if by == "w" else x
    assert str(jax.make_jaxpr(jax.grad(loss))(chosen)).count("dot_general") == products


def _decoder(adapter, remat):
    """Return a decoder in bfloat16, the names of its frozen weights, and its weights."""
    graphdef, shapes = abstract(Decoder, dataclasses.replace(SMALL, remat=remat), twins.VOCAB, adapter)
    frozen = {name for name in shapes if adapter and ".adapters." not in name}
    rng = np.random.default_rng(0)

    def draw(name, shape):
        return jnp.asarray(rng.normal(0, 0.4, shape.shape), jnp.bfloat16 if name in frozen else jnp.float32)

    return graphdef, frozen, {name: draw(name, shape) for name, shape in shapes.items()}


def _gradient(graphdef, frozen):
    def gradient(params):
        fixed = {name: value for name, value in params.items() if name in frozen}
        trained = {name: value for name, value in params.items() if name not in frozen}
        return jax.value_and_grad(lambda trained: nll(graphdef)({**fixed, **trained}, ROWS)[0].sum)(trained)

    return jax.jit(gradient)


@pytest.mark.parametrize(("adapter", "remat"), [(None, "save_attention"), (EVERYWHERE, "none")])
def test_a_decoder_learns_the_same_and_widens_no_stack(adapter, remat, monkeypatch):
    graphdef, frozen, params = _decoder(adapter, remat)
    assert bool(frozen) == bool(adapter)
    lowered = _gradient(graphdef, frozen).lower(params)
    assert "ui16" in lowered.as_text(), "what test_other_platforms_see_no_bits looks for"
    in_bits = lowered.compile()
    assert not WIDENED.search(in_bits.as_text())
    monkeypatch.setattr(loops, "on_cpu", lambda: False)
    plain = _gradient(graphdef, frozen).lower(params).compile()
    assert WIDENED.search(plain.as_text())
    for a, b in zip(jax.tree.leaves(in_bits(params)), jax.tree.leaves(plain(params)), strict=True):
        scale = max(float(np.max(np.abs(b))), 1e-3)
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-2)


def test_a_prefill_gives_every_layer_its_own_cache(monkeypatch):
    graphdef, _, params = _decoder(None, "none")

    def prefill(params):
        return merge(graphdef, params).prefill(*(ROWS[name] for name in ("token", "position", "visible_until")))

    in_bits = jax.jit(lambda params: prefill(params))(params)
    monkeypatch.setattr(loops, "on_cpu", lambda: False)
    for a, b in zip(jax.tree.leaves(in_bits), jax.tree.leaves(jax.jit(prefill)(params)), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=3e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_part_is_written_in_place(dtype, axis):
    array, part = jnp.arange(24).reshape(4, 6).astype(dtype), -jnp.ones((2, 3), dtype)
    expected = np.array(array)
    expected[(slice(1, 3), slice(0, 3)) if axis == 0 else (slice(0, 2), slice(1, 4))] = -1

    def write(array, at):
        return written(array, part, at, axis)

    assert not WIDENED.search(jax.jit(write).lower(array, jnp.int32(1)).compile().as_text())
    assert np.array_equal(write(array, jnp.int32(1)), expected)


def test_other_platforms_see_no_bits(monkeypatch):
    graphdef, frozen, params = _decoder(EVERYWHERE, "none")
    monkeypatch.setattr(bits, "platform_of_mesh", lambda: "tpu")
    assert "ui16" not in _gradient(graphdef, frozen).lower(params).as_text()


def test_a_part_is_written_as_bits_on_cpus_alone(monkeypatch):
    part = jnp.zeros((1, 2), jnp.bfloat16)

    def text():
        return str(jax.make_jaxpr(lambda x: written(x, part, jnp.int32(0), 0))(jnp.zeros((2, 2), jnp.bfloat16)))

    assert "uint16" in text()
    monkeypatch.setattr(bits, "platform_of_mesh", lambda: "tpu")
    assert "uint16" not in text()
