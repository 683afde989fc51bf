"""Arrays that span all devices of all processes: host arrays placed on them, and brought back whole.

Every array of a step goes through these functions, with one process as with many. No process reads an array of which
another one holds a part but by `whole`.
"""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from pit.types import Shards


def put(values: np.ndarray, sharding: Sharding) -> Array:
    """Return a global array of which this process places the parts of its own devices.

    Args:
        values: the whole array, the same in every process.
        sharding: places of the parts.
    """

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        taken: np.ndarray = values[index]
        return taken

    array: Array = jax.make_array_from_callback(values.shape, sharding, part)
    return array


def put_local(values: np.ndarray, shards: Shards, sharding: Sharding) -> Array:
    """Return a global array of rows, of which this process has those of its own shards.

    Args:
        values: rows of the local shards, in order.
        shards: all shards of the rows, as many rows each.
        sharding: places of the rows, one shard after the other; other axes are whole.
    """
    size = len(values) // len(shards.local)
    place = {shard: number for number, shard in enumerate(shards.local)}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        number = place[(index[0].start or 0) // size]
        return values[number * size : (number + 1) * size]

    array: Array = jax.make_array_from_callback((size * shards.count, *values.shape[1:]), sharding, part)
    return array


def whole(tree: Any) -> Any:
    """Return a tree of arrays on the host, each of them whole; all processes take part."""
    leaves, structure = jax.tree.flatten(tree)
    spread = [number for number, leaf in enumerate(leaves) if _is_spread(leaf)]
    if spread:
        mesh = leaves[spread[0]].sharding.mesh
        gathered = _replicate(mesh)([leaves[number] for number in spread])
        for number, leaf in zip(spread, gathered, strict=True):
            leaves[number] = leaf
    return jax.device_get(jax.tree.unflatten(structure, leaves))


def _is_spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


@cache
def _replicate(mesh: Mesh) -> Any:
    """Return the program that gives every device of a mesh all of some arrays."""
    return jax.jit(lambda arrays: arrays, out_shardings=NamedSharding(mesh, P()))
