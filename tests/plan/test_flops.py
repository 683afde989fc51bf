"""Counts of operations on functions that can be counted by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pit.plan.flops import flops

M, K, N = 3, 5, 7
A, B = jnp.ones((M, K)), jnp.ones((K, N))
PRODUCT = 2 * M * K * N


def count(function, *arguments, **options):
    return flops(jax.make_jaxpr(function)(*arguments), **options)


def test_a_product_is_two_operations_per_multiply_add_and_a_batch_counts_each():
    assert count(jnp.matmul, A, B) == PRODUCT
    assert count(jax.vmap(jnp.matmul), jnp.ones((4, M, K)), jnp.ones((4, K, N))) == 4 * PRODUCT
    assert count(lambda a: jnp.sin(a) + 1, A) == 0


def test_calls_are_followed_and_steps_of_a_scan_are_counted():
    def layers(a):
        return jax.lax.scan(lambda a, _: (jax.jit(jnp.matmul)(a, jnp.ones((K, K))), None), a, None, length=6)[0]

    assert count(layers, A) == 6 * 2 * M * K * K


def test_recomputation_in_the_backward_pass_counts_again():
    def loss(w, *, again):
        block = jax.checkpoint(lambda w: jnp.sin(A @ w)) if again else lambda w: jnp.sin(A @ w)
        return jnp.sum(block(w))

    # Forward, and A^T times the gradient; with the checkpoint forward once more.
    assert count(jax.grad(functools.partial(loss, again=False)), B) == 2 * PRODUCT
    assert count(jax.grad(functools.partial(loss, again=True)), B) == 3 * PRODUCT


def test_loops_of_unknown_length_count_the_steps_that_are_given():
    def until(a):
        return jax.lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a @ jnp.ones((K, K)), a)

    assert count(until, A) == 2 * M * K * K
    assert count(until, A, loop_steps=11) == 11 * 2 * M * K * K


def test_of_branches_the_costliest_counts_and_of_platforms_the_named_one():
    def either(flag, a):
        return jax.lax.cond(flag, lambda a: (a @ B) @ B.T, lambda a: a + 1, a)

    assert count(either, True, A) == 2 * PRODUCT

    def by_platform(a):
        return jax.lax.platform_dependent(
            a, tpu=lambda a: a @ B, cuda=lambda a: a @ B @ B.T @ B, default=lambda a: A @ B
        )

    assert count(by_platform, A) == PRODUCT
    assert count(by_platform, A, platform="cuda") == 3 * PRODUCT
    assert count(by_platform, A, platform="cpu") == PRODUCT


def test_a_mapped_part_counts_once_per_device():
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    mapped = jax.shard_map(lambda a: a @ B, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert count(mapped, jnp.ones((2 * M, K))) == 2 * PRODUCT


@pytest.mark.parametrize(("estimate", "expected"), [(None, 0), (pl.CostEstimate(42, 0, 0), 42)])
def test_a_kernel_counts_its_own_estimate(estimate, expected):
    def kernel(a, out):
        out[...] = a[...] @ a[...].T

    def call(a):
        shape = jax.ShapeDtypeStruct((M, M), jnp.float32)
        return pl.pallas_call(kernel, out_shape=shape, cost_estimate=estimate, interpret=True)(a)

    assert count(call, A) == expected
