"""The C++ attention of CPUs: when it serves, and what takes its place. What it computes is tested by conformance."""

import jax
import jax.numpy as jnp
import pytest

from pit_kernels import cached_attention, native, three_way_attention
from pit_kernels.dispatch import UnsupportedImplementationError

UNTIL = jnp.array([[3, 2, 3, 0]], jnp.int32)


def attention(dtype=jnp.float32, implementation="auto"):
    x = jnp.ones((1, 4, 2, 8), dtype)
    return jax.jit(lambda x: three_way_attention(x, x, x, UNTIL, implementation=implementation)).lower(x).as_text()


def decoding(dtype=jnp.float32, implementation="auto"):
    q, cache, count = jnp.ones((1, 2, 8), dtype), jnp.ones((1, 2, 4, 8), dtype), jnp.ones(1, jnp.int32)

    def run(q, cache):
        return cached_attention(q, cache, cache, count, cache, cache, count, count * 0, implementation=implementation)

    return jax.jit(run).lower(q, cache).as_text()


CALLS = [(attention, "pit_attention_forward"), (decoding, "pit_cached_attention")]


@pytest.mark.parametrize(("call", "target"), CALLS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_auto_takes_it_on_a_cpu(call, target, dtype):
    assert target in call(dtype)


@pytest.mark.parametrize(("call", "target"), CALLS)
def test_other_numbers_take_xla(call, target):
    assert target not in call(jnp.float16)
    with pytest.raises(UnsupportedImplementationError, match=r"cpu cannot serve .* float16.*xla \(any platform\)"):
        call(jnp.float16, "cpu")


@pytest.mark.parametrize(("call", "target"), CALLS)
def test_an_install_without_the_cpp_part_takes_xla(call, target, monkeypatch):
    monkeypatch.setattr(native, "MISSING", "it is not there")
    assert target not in call()
    with pytest.raises(UnsupportedImplementationError, match=r"cpu cannot serve this call: it is not there"):
        call(implementation="cpu")


def test_no_rows_and_no_tokens_have_no_gradient():
    for shape in ((0, 4, 2, 8), (2, 0, 2, 8)):
        x, until = jnp.ones(shape), jnp.zeros(shape[:2], jnp.int32)
        gradient = jax.grad(lambda x, until=until: three_way_attention(x, x, x, until, implementation="cpu").sum())(x)
        assert gradient.shape == shape
