"""One mesh (data, fsdp, tensor), and the rules that place every parameter and batch on it.

Rows of a batch are split over data x fsdp; parameters over fsdp and tensor by the first rule whose pattern matches
their name. A dimension that a mesh axis does not divide is refused, never silently replicated.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from pit.config import ConfigError, MeshConfig
from pit.model.axes import ROWS
from pit.model.global_arrays import put
from pit.model.params import Params
from pit.types import Shards

RULES: tuple[tuple[str, P], ...] = (
    (r"(embedding|output)$", P("tensor", "fsdp")),
    (r"positions$", P(None, "fsdp")),
    (r"attention\.[qkv]$", P("fsdp", "tensor", None)),
    (r"attention\.[qkv]_bias$", P("tensor", None)),
    (r"attention\.o$", P("tensor", None, "fsdp")),
    (r"mlp\.(gate|up)$", P("fsdp", "tensor")),
    (r"mlp\.down$", P("tensor", "fsdp")),
    # A of an adapter lies as the inputs of its projection, B as the outputs; neither splits the rank.
    (r"adapters\.(q|k|v|gate|up)\.a$", P("fsdp", None)),
    (r"adapters\.[qkv]\.b$", P(None, "tensor", None)),
    (r"adapters\.(gate|up)\.b$", P(None, "tensor")),
    (r"adapters\.o\.a$", P("tensor", None, None)),
    (r"adapters\.down\.a$", P("tensor", None)),
    (r"adapters\.(o|down)\.b$", P(None, "fsdp")),
    (r"(scale|score)$", P()),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of a run over the first data x fsdp x tensor devices: of this process, or of those given.

    Raises:
        ConfigError: there are fewer devices than the mesh needs, or more, some of them other processes'.
    """
    shape = (config.data, config.fsdp, config.tensor)
    needed, devices = config.shards * config.tensor, jax.devices() if devices is None else devices
    if needed > len(devices):
        raise ConfigError(
            f"mesh = {shape}: needs {needed} devices, but this process sees {len(devices)}; lower mesh.data, mesh.fsdp "
            "or mesh.tensor"
        )
    if needed < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"mesh = {shape}: has {needed} devices, but the {jax.process_count()} processes have {len(devices)}, and "
            "each must take part; raise mesh.data, mesh.fsdp or mesh.tensor"
        )
    axes, devices = ("data", "fsdp", "tensor"), devices[:needed]
    try:
        return jax.make_mesh(shape, axes, (AxisType.Auto,) * 3, devices=devices)
    except NotImplementedError:
        # No axis is a product of whole sides of the slice, as 2 x 8 x 4 on one of 4 x 4 x 4: a side is divided.
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(placed, axes, (AxisType.Auto,) * 3)


def spec_of(name: str) -> P:
    """Return the partition spec of a parameter by its name.

    Raises:
        KeyError: no rule covers the name.
    """
    for pattern, spec in RULES:
        if re.search(pattern, name):
            return spec
    raise KeyError(f"parameter {name!r} matches no partition rule; add one to pit.model.sharding.RULES")


def shard_params(params: Params, mesh: Mesh) -> Params:
    """Place parameters on the mesh by the rules."""
    placed = {name: _checked(name, value, mesh) for name, value in params.items()}
    return {name: _put_whole(value, placed[name]) for name, value in params.items()}


def _put_whole(value: Array, place: NamedSharding) -> Array:
    if place.is_fully_addressable:
        placed: Array = jax.device_put(value, place)
        return placed
    # Every process has the same values: `device_put` would compare them over the network.
    return put(np.asarray(value), place)


def by_rules(params: Mapping[str, Array]) -> Params:
    """Return parameters, or their gradients, laid by the rules on the mesh in context, inside a compiled function.

    Without a mesh of several devices they stay as they are.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return dict(params)
    return {name: jax.lax.with_sharding_constraint(value, spec_of(name)) for name, value in params.items()}


def place(params: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes of parameters with the places that the rules give them on the mesh."""
    return {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=_checked(name, value, mesh))
        for name, value in params.items()
    }


def _checked(name: str, value: Array | jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
    spec = spec_of(name)
    for size, axis in zip(value.shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise ConfigError(
                f"mesh.{axis} = {mesh.shape[axis]}: must divide dimension {size} of {name} {value.shape}; "
                "choose a divisor"
            )
    return NamedSharding(mesh, spec)


def row_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of arrays whose leading axis is rows, or trees, of a batch."""
    return NamedSharding(mesh, ROWS)


def shards_of(mesh: Mesh) -> Shards:
    """Return the shards of the rows on a mesh, and which of them lie on devices of this process."""
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    places = row_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return Shards(count, tuple(sorted({index[0].start or 0 for index in places if index is not None})))


def mesh_of(params: Params) -> Mesh | None:
    """Return the mesh that the parameters lie on, None for plain arrays."""
    sharding = next(iter(params.values())).sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None


def on_mesh(params: Params) -> AbstractContextManager[object]:
    """Return the context of the mesh that the parameters lie on, in which kernels split their work."""
    mesh = mesh_of(params)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def each_shard(function: Callable[..., Any], shards: int) -> Callable[..., Any]:
    """Return `function(whole, *parts)` run on every shard of the rows by itself, without communication.

    Parts and results have the shards as their leading axis, which the function does not see; `whole` is the same for
    all. A loop in it may take another number of steps on every shard.

    Args:
        function: function of trees of arrays.
        shards: shards of the rows, `shards_of` the weights; with 1 nothing is split.
    """

    def own(whole: Any, *parts: Any) -> Any:
        results = function(whole, *jax.tree.map(lambda x: x[0], parts))
        return jax.tree.map(lambda x: x[None], results)

    if shards == 1:
        return own

    def split(whole: Any, *parts: Any) -> Any:
        ins = (P(), *(ROWS for _ in parts))
        mapped = jax.shard_map(own, in_specs=ins, out_specs=ROWS, axis_names={"data", "fsdp"}, check_vma=False)
        return mapped(whole, *parts)

    return split


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, P())
