"""Token log-probabilities with rows and vocabulary split over a mesh, against one device."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import INTERPRET, QUICK, no_races
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pit_kernels import token_logprob
from pit_kernels.partition import Partition
from pit_kernels.token_logprob.tiles import Tiles

PARTITION = Partition(rows=("data",), columns=("tensor",))
BACKENDS = {
    "xla": {"implementation": "xla"},
    "pallas_tpu": {
        "implementation": "pallas_tpu",
        "interpret": INTERPRET,
        "tiles": Tiles(128, 128, 128, 128, 128, 128),
    },
}
ROWS, WIDTH, VOCABULARY = 36, 6, 260


def run(mesh, layout, dtype, **backend):
    """Results and gradients where arrays lie split over the mesh."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(VOCABULARY, WIDTH))
    hidden, bias = rng.normal(size=(ROWS, WIDTH)), rng.normal(size=VOCABULARY)
    target = rng.integers(0, VOCABULARY, ROWS).astype(np.int32)
    target[:4] = [-1, VOCABULARY, 2**31 - 1, -(2**31)]
    cotangents = [jnp.asarray(x, jnp.float32) for x in rng.normal(size=(3, ROWS))]
    # A whole part of the vocabulary is forbidden: its shard holds no finite logit.
    bias[: VOCABULARY // 2] = -np.inf
    target[4:] = np.where(target[4:] < VOCABULARY // 2, target[4:] + VOCABULARY // 2, target[4:])
    valid = rng.random(ROWS) < 0.7
    table = P("tensor", None) if layout == "vd" else P(None, "tensor")
    arrays = [
        jax.device_put(jnp.asarray(x, dtype), NamedSharding(mesh, spec))
        for x, spec in (
            (hidden, P("data", None)),
            (weight if layout == "vd" else weight.T, table),
            (bias, P("tensor")),
        )
    ]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def results_and_gradients(*arrays):
        def results(hidden, weight, bias):
            return tuple(
                token_logprob(
                    hidden, weight, jnp.asarray(target), valid=jnp.asarray(valid), bias=bias, layout=layout,
                    temperature=0.7, partition=PARTITION, **backend,
                )
            )  # fmt: skip

        values, pull = jax.vjp(results, *arrays)
        return *values, *pull(tuple(cotangents))

    with jax.set_mesh(mesh), no_races():
        return [np.asarray(x.astype(jnp.float32)) for x in results_and_gradients(*arrays)]


def mesh_of(data, tensor):
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


CASES = [("vd", 1, 2), ("dv", 1, 2), ("vd", 2, 1)] if jax.device_count() < 4 else [("vd", 2, 2)]


def marks(backend, case):
    """Interpreting a kernel on several devices takes half a minute: the fast tests merge shards of one table."""
    return [pytest.mark.slow] if backend == "pallas_tpu" and case != ("vd", 1, 2) else []


@pytest.mark.parametrize(
    ("layout", "data", "tensor", "backend"),
    [pytest.param(*case, name, marks=marks(name, case)) for case in CASES for name in BACKENDS],
)
def test_shards_equal_the_whole(layout, data, tensor, backend):
    whole = run(mesh_of(1, 1), layout, jnp.float32, implementation="xla")
    shards = run(mesh_of(data, tensor), layout, jnp.float32, **BACKENDS[backend])
    for name, a, b in zip(("logp", "lse", "entropy", "d_hidden", "d_weight", "d_bias"), whole, shards, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.skipif(jax.device_count() >= 4, reason="the tests run with four devices already")
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_equal_the_whole_on_four_devices(backend):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    command += ["-k", f"test_shards_equal_the_whole and 2-2-{backend}"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout, done.stdout


def test_a_vocabulary_that_does_not_split_stays_whole():
    hidden, weight = jnp.ones((4, 6)), jnp.asarray(np.random.default_rng(0).normal(size=(7, 6)), jnp.float32)
    target = jnp.arange(4, dtype=jnp.int32)
    alone = token_logprob(hidden, weight, target)
    with jax.set_mesh(mesh_of(1, 2)):
        split = token_logprob(hidden, weight, target, partition=PARTITION)
    np.testing.assert_allclose(alone.logp, split.logp, rtol=1e-6)
