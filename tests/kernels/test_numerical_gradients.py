"""Every derivative that the kernels write by hand, against differences of the operation itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import QUICK

from pit_kernels import leaf_scores, three_way_attention, token_logprob
from pit_kernels.conformance import write_segments

TREE = [(0, 40, False), (1, 30, False), (2, 20, False), (2, 9, True), (1, 25, False), (0, 6, False)]


def attention(options):
    until = jnp.asarray(write_segments(130, TREE))[None]
    alive = (until > jnp.arange(130, dtype=jnp.int32)[None])[..., None]

    def run(q, k, v):
        out, lse = three_way_attention(q, k, v, until, logit_soft_cap=3.0, return_lse=True, **options)
        return out, jnp.where(alive, lse, 0)

    return run, [(1, 130, 2, 64), (1, 130, 1, 64), (1, 130, 1, 64)]


def logprob(options):
    target = jnp.asarray(np.random.default_rng(3).integers(0, 384, 128), jnp.int32)
    valid = jnp.arange(128, dtype=jnp.int32) % 5 != 2

    def run(hidden, weight, bias):
        result = token_logprob(
            hidden, weight, target, valid=valid, bias=bias, temperature=0.7, logit_soft_cap=3.0, **options
        )
        return result.logp, result.entropy

    return run, [(128, 128), (384, 128), (384,)]


def scores(options):
    # Twice the same token, an absent leaf, and neighbours.
    leaf = jnp.asarray([[[0, 3], [0, 3], [1, 15]], [[-1, -1], [1, 0], [1, 1]]], jnp.int32)

    def run(hidden, scale, weight, bias):
        return (leaf_scores(hidden, leaf, scale, weight, bias, eps=1e-3, **options),)

    return run, [(2, 16, 128), (128,), (128,), ()]


OPERATIONS = {"attention": attention, "logprob": logprob, "scores": scores}


def draw(shapes, dtype, rng):
    return [jnp.asarray(rng.normal(size=shape) * (shape[-1] if shape else 1) ** -0.25, dtype) for shape in shapes]


def check_gradients(function, shapes, dtype, step, tolerance):
    """Compare the derivative along a random direction with a central difference; one program gives all values."""
    rng = np.random.default_rng(11)
    arrays, direction = draw(shapes, dtype, rng), draw(shapes, dtype, rng)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(arrays, cotangents):
        values, pull = jax.vjp(lambda *x: jax.tree.leaves(function(*x)), *arrays)
        return values, pull(cotangents)

    cotangents = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in jax.eval_shape(function, *arrays)]

    def inner(xs, ys):
        return sum(np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(xs, ys, strict=True))

    def moved(size):
        return [x + jnp.asarray(size, dtype) * d for x, d in zip(arrays, direction, strict=True)]

    _, gradients = run(arrays, cotangents)
    above, below = (inner(run(moved(size), cotangents)[0], cotangents) for size in (step, -step))
    np.testing.assert_allclose(
        inner(gradients, direction), (above - below) / (2 * step), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_are_those_of_differences(operation):
    with jax.enable_x64(True):
        check_gradients(*OPERATIONS[operation]({"implementation": "xla"}), jnp.float64, step=1e-5, tolerance=1e-6)


# The fast tests compare the gradients of these kernels with those of the formula.
@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interpreted_gradients_are_those_of_differences(operation):
    interpreted = OPERATIONS[operation]({"implementation": "pallas_tpu", "interpret": True})
    check_gradients(*interpreted, jnp.float32, step=1e-2, tolerance=1e-2)
