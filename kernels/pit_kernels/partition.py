"""The layout of an operation's arrays on a mesh, given by the caller: XLA cannot split a kernel inside `jax.jit`.

An operation calls its backends through `split`, which wraps them in `jax.shard_map` over the mesh in context
(`jax.set_mesh`). Without a mesh, or inside another shard_map, nothing is wrapped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P


@dataclass(frozen=True)
class Partition:
    """Names of mesh axes.

    rows: axes that split the rows of a batch (data, fsdp).
    columns: axes that split heads, or the vocabulary (tensor).
    """

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def here(self, rows: Sequence[int], columns: Sequence[int] = ()) -> "Partition":
        """Return the partition without the axes that the mesh in context cannot split.

        An axis is kept if the mesh has it, no enclosing shard_map has split it, and it divides all the sizes together
        with the kept axes before it. Along an axis that is not kept, every device does the same work.

        Args:
          rows: sizes of the dimensions that `rows` splits.
          columns: sizes of the dimensions that `columns` splits.
        """
        mesh = jax.sharding.get_abstract_mesh()
        free = _free(mesh)
        kept: list[tuple[str, ...]] = []
        for axes, sizes in ((self.rows, rows), (self.columns, columns)):
            shards, names = 1, []
            for axis in axes:
                if (
                    mesh.shape.get(axis, 1) > 1
                    and axis in free
                    and all(n % (shards * mesh.shape[axis]) == 0 for n in sizes)
                ):
                    shards *= mesh.shape[axis]
                    names.append(axis)
            kept.append(tuple(names))
        return Partition(*kept)

    def spec(self, letters: str) -> P:
        """Return the partition spec with one entry per letter: "r" rows, "c" columns, "." whole.

        Example:
          >>> Partition(("data", "fsdp"), ("tensor",)).spec("r.c.") == P(("data", "fsdp"), None, "tensor", None)
          True
        """
        return P(*({"r": self.rows, "c": self.columns, ".": None}[letter] or None for letter in letters))

    def shards(self, letter: str) -> int:
        """Return the devices of the mesh in context over which a dimension of that letter is split."""
        shape = jax.sharding.get_abstract_mesh().shape
        return math.prod(shape[axis] for axis in {"r": self.rows, "c": self.columns, ".": ()}[letter])


WHOLE = Partition()
"""Nothing is split."""


def split(
    function: Callable[..., tuple[Any, ...]], partition: Partition, ins: Sequence[str], outs: Sequence[str]
) -> Callable[..., tuple[Any, ...]]:
    """Return `function` applied to the local part of its arguments.

    Args:
      function: from arrays, or None, to a tuple of arrays.
      partition: what is split, as `Partition.here` gave it.
      ins: letters of each argument (see `Partition.spec`).
      outs: letters of each result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = _free(mesh)
    if mesh.size <= 1 or not free:
        return function
    # All axes that XLA could still split: it refuses a kernel if any is left to it, even one of a single device.
    mapped: Callable[..., tuple[Any, ...]] = jax.shard_map(
        function,
        in_specs=tuple(map(partition.spec, ins)),
        out_specs=tuple(map(partition.spec, outs)),
        axis_names=free,
        check_vma=False,
    )
    return mapped


def _free(mesh: AbstractMesh) -> set[str]:
    """Return the axes that no shard_map around has taken."""
    return {axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}
