"""Every refusal of a backend ends with what would serve: real calls that each TPU and GPU backend turns down."""

import jax
import jax.numpy as jnp
import pytest

from pit_kernels import (
    UnsupportedImplementationError,
    cached_attention,
    leaf_scores,
    three_way_attention,
    token_logprob,
)

ONE = jnp.ones(1, jnp.int32)


def attention(dtype=jnp.float32, width=8, **options):
    x = jnp.zeros((1, 4, 1, width), dtype)
    return three_way_attention(x, x, x, jnp.full((1, 4), 4, jnp.int32), **options)


def decode(dtype=jnp.float32, capacity=4, **options):
    cache = jnp.zeros((1, 1, capacity, 8), dtype)
    return cached_attention(jnp.zeros((1, 1, 8), dtype), cache, cache, ONE, cache, cache, ONE, ONE * 0, **options)


def logprob(dtype=jnp.float32, width=8, **options):
    return token_logprob(jnp.zeros((2, width), dtype), jnp.zeros((5, width), dtype), jnp.zeros(2, jnp.int32), **options)


def scores(width=100, **options):
    leaf = jnp.zeros((1, 1, 2), jnp.int32)
    ones = jnp.ones(width)
    return leaf_scores(jnp.zeros((1, 16, width)), leaf, ones, ones, eps=1e-5, **options)


CALLS = {
    "attention in float16": (attention, {"dtype": jnp.float16}, "pallas_tpu"),
    "attention of one huge head": (attention, {"width": 2**17}, "pallas_tpu"),
    "attention without Triton": (attention, {}, "triton_gpu"),
    "decode in float16": (decode, {"dtype": jnp.float16}, "pallas_tpu"),
    "decode of caches that cannot be cut": (decode, {"capacity": 700}, "pallas_tpu"),
    "decode without Triton": (decode, {}, "triton_gpu"),
    "log-probabilities in float16": (logprob, {"dtype": jnp.float16}, "pallas_tpu"),
    "log-probabilities of a width beyond the table": (logprob, {"width": 9000}, "pallas_tpu"),
    "log-probabilities without Triton": (logprob, {}, "triton_gpu"),
    "scores of a width that fills no register": (scores, {}, "pallas_tpu"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_refusal_names_the_backends_that_serve_the_call(name, monkeypatch):
    monkeypatch.setattr("pit_kernels.triton_call._installed", lambda module: False)
    call, options, implementation = CALLS[name]
    with pytest.raises(UnsupportedImplementationError) as caught:
        jax.eval_shape(lambda: call(**options, implementation=implementation))
    message = str(caught.value)
    assert f"{implementation} cannot serve this call: " in message
    assert 'Ask for implementation="auto" to take what there is: ' in message
    assert message.endswith("xla (any platform)")
    assert "\n" not in message
