"""Kernels on a mesh: every axis that XLA could split is taken from it, whatever encloses the call."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pit_kernels.partition import WHOLE, split


def taken(mesh, function, *arguments):
    """Return the axes that each shard_map of a traced function takes, from the outside to the inside."""
    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    found = []
    while maps := [equation for equation in jaxpr.eqns if equation.primitive.name == "shard_map"]:
        found.append(set(maps[0].params["newly_manual_axes"]))
        jaxpr = maps[0].params["jaxpr"]
    return found


def kernel(x):
    return split(lambda x: (x + 1,), WHOLE, [".."], [".."])(x)[0]


def test_an_axis_of_one_device_is_taken_too_inside_of_another_shard_map():
    mesh = jax.make_mesh((2, 1), ("data", "tensor"), (AxisType.Auto,) * 2)
    outer = jax.shard_map(kernel, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}, check_vma=False)
    assert taken(mesh, outer, jnp.ones((4, 4))) == [{"data"}, {"tensor"}]
    assert taken(mesh, kernel, jnp.ones((4, 4))) == [{"data", "tensor"}]


def test_nothing_is_wrapped_on_one_device_or_where_all_axes_are_taken():
    one = jax.make_mesh((1, 1), ("data", "tensor"), (AxisType.Auto,) * 2)
    assert taken(one, kernel, jnp.ones((4, 4))) == []
    two = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    outer = jax.shard_map(kernel, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    assert taken(two, outer, jnp.ones((4, 4))) == [{"data"}]
