"""Projections accumulate in float32: right against float64, gradients unrounded, float32 bits unchanged."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.model.linear import linear

SHAPES = [((3, 5, 32), (32, 7), 1), ((4, 32), (32, 2, 6), 1), ((2, 5, 4, 8), (4, 8, 9), 2)]
"""Shapes of x and the weight, and the axes that they share: an MLP's, a query's, an output projection's."""


def _operands(seed: int, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=x_shape), jnp.bfloat16)
    return x, jnp.asarray(rng.normal(size=weight_shape), jnp.float32)


@pytest.mark.parametrize(("x_shape", "weight_shape", "inputs"), SHAPES)
@given(seed=st.integers(0, 2**16))
def test_a_bfloat16_product_is_the_float64_one_rounded_once(
    seed: int, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], inputs: int
) -> None:
    x, weight = _operands(seed, x_shape, weight_shape)
    rounded = np.asarray(weight.astype(jnp.bfloat16), np.float64)
    exact = np.tensordot(np.asarray(x, np.float64), rounded, axes=inputs)
    out = linear(x, weight, inputs)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("x_shape", "weight_shape", "inputs"), SHAPES)
def test_gradients_of_float32_weights_are_not_rounded(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], inputs: int
) -> None:
    x, weight = _operands(0, x_shape, weight_shape)
    out, pull = jax.vjp(lambda x, w: linear(x, w, inputs), x, weight)
    d_out = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.bfloat16)
    d_x, d_weight = pull(d_out)
    assert (d_x.dtype, d_weight.dtype) == (jnp.bfloat16, jnp.float32)
    rounded = weight.astype(jnp.bfloat16).astype(jnp.float32)
    _, exact = jax.vjp(lambda x, w: jnp.tensordot(x, w, axes=inputs), x.astype(jnp.float32), rounded)
    exact_x, exact_weight = exact(d_out.astype(jnp.float32))
    np.testing.assert_allclose(d_weight, exact_weight, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_x.astype(jnp.float32), exact_x, rtol=2**-8, atol=1e-5)


def test_a_float32_product_has_the_bits_of_the_plain_one() -> None:
    x, weight = _operands(0, (3, 5, 32), (32, 7))
    x = x.astype(jnp.float32)
    np.testing.assert_array_equal(linear(x, weight), jnp.einsum("btd,dm->btm", x, weight))
    d_weight = jax.grad(lambda w: linear(x, w).sum())(weight)
    np.testing.assert_array_equal(d_weight, jax.grad(lambda w: jnp.einsum("btd,dm->btm", x, w).sum())(weight))


@pytest.mark.parametrize(("d", "n"), [(4, 64), (64, 4)])
def test_no_product_of_a_gradient_reads_its_first_operand_across_rows(d: int, n: int) -> None:
    x, weight = _operands(0, (256, d), (d, n))
    d_out = jnp.ones((256, n), jnp.bfloat16)

    def gradient(x: jax.Array, weight: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
        pulled: tuple[jax.Array, jax.Array] = jax.vjp(linear, x, weight)[1](d_out)
        return pulled

    program = jax.jit(gradient).lower(x, weight, d_out).compile().as_text()
    assert program is not None
    assert set(re.findall(r" dot\(.*lhs_contracting_dims={(\d)}", program)) == {"1"}
