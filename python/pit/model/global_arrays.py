"""Arrays that span all devices of all processes: host arrays placed on them, and brought back whole.

Every array of a step goes through these two functions, with one process as with many. No process reads an array of
which another one holds a part but by `whole`.
"""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array


def put(values: np.ndarray, sharding: Sharding, *, first: int = 0, rows: int | None = None) -> Array:
    """Return a global array of which this process places the parts of its own devices.

    Args:
        values: the whole array, or its rows from `first` on, among which those of this process's devices are.
        sharding: places of the parts.
        first: number of the first row in `values`.
        rows: rows of the whole array; those of `values` if not given.
    """
    shape = (len(values) if rows is None else rows, *values.shape[1:])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "arrays have rows"
        begin, end, _ = index[0].indices(shape[0])
        taken: np.ndarray = values[(slice(begin - first, end - first), *index[1:])]
        return taken

    array: Array = jax.make_array_from_callback(shape, sharding, part)
    return array


def own_rows(sharding: NamedSharding, rows: int) -> range:
    """Return the rows of an array, split over its leading axis alone, of which this process's devices hold any.

    Rows between them that belong to others are included where the devices of a process are not neighbours.
    """
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    parts = [index[0].indices(rows) for index in indices if index is not None]
    return range(min(begin for begin, _, _ in parts), max(end for _, end, _ in parts))


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
