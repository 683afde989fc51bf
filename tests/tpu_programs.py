"""Compilation for a TPU that is not attached; libtpu's compiler runs on any x86 Linux machine."""

import importlib.util
import os

import jax
import numpy as np
import pytest
from flax import nnx

from pit.model.sharding import spec_of
from pit_kernels.microbench.compiler import devices_of, no_persistent_cache
from pit_kernels.microbench.generations import GENERATIONS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'jax[tpu]'"
)

# Read by libtpu when it is loaded: it asks no metadata server, and several test workers may load it.
os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)


def mesh(kind, **axes):
    """Return a mesh of the first devices of a kind of TPU, with axes of type Auto."""
    known = devices_of(GENERATIONS[kind], GENERATIONS[kind].topology)
    devices = np.array(known[: int(np.prod(list(axes.values())))]).reshape(tuple(axes.values()))
    return jax.sharding.Mesh(devices, tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes))


def model_on(mesh, model, config, vocabulary):
    """Return the definition of a model, and the shapes of its weights with their shardings."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: model(config, vocabulary, nnx.Rngs(0))), nnx.Param)
    leaves = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    return graphdef, {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(mesh, spec_of(name)))
        for name, leaf in leaves.items()
    }


def compiled(mesh, jitted, *arguments):
    """Return the compiled program of a jitted function; the arguments are trees of shapes with shardings."""
    with jax.set_mesh(mesh), no_persistent_cache():
        return jitted.trace(*arguments).lower(lowering_platforms=("tpu",)).compile()


def compile_for(mesh, function, *shapes):
    """Return the compiled program; a shape is a ShapeDtypeStruct, or a pair of one and a partition spec."""

    def placed(shape):
        shape, spec = shape if isinstance(shape, tuple) else (shape, jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    return compiled(mesh, jax.jit(function), *map(placed, shapes))
