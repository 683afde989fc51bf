"""How an operation's arrays lie on a mesh, said by the caller: inside `jax.jit`, XLA cannot split a kernel by itself.

An operation calls its backends through `split`, which wraps them in `jax.shard_map` over those axes of the mesh in
context (`jax.set_mesh`) that the partition names. Without a mesh, or inside another shard_map over the same axes,
nothing is wrapped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True)
class Partition:
    """Names of mesh axes.

    rows: axes that split the rows of a batch (data, fsdp).
    columns: axes that split heads, or the vocabulary (tensor).
    """

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def on(self, mesh: AbstractMesh) -> "Partition":
        """The axes that `mesh` has, with more than one device, and that are not split already."""
        types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        rows, columns = (
            tuple(a for a in axes if a in types and types[a] != AxisType.Manual and mesh.shape[a] > 1)
            for axes in (self.rows, self.columns)
        )
        return Partition(rows, columns)

    def spec(self, letters: str) -> P:
        """Partition spec with one entry a letter: "r" rows, "c" columns, "." whole.

        Example:
          >>> Partition(("data", "fsdp"), ("tensor",)).spec("r.c.")
          PartitionSpec(('data', 'fsdp'), None, ('tensor',), None)
        """
        return P(*({"r": self.rows, "c": self.columns, ".": None}[letter] or None for letter in letters))


WHOLE = Partition()
"""Nothing is split."""


def split(
    operation: str,
    function: Function,
    partition: Partition,
    ins: Sequence[str],
    outs: Sequence[str],
) -> Callable[..., tuple[Array, ...]]:
    """`function` on the local part of its arguments.

    Args:
      operation: named in errors.
      function: from arrays to a tuple of arrays.
      partition: axes that split, already restricted to the mesh in context by `Partition.on`.
      ins: letters of each argument (see `Partition.spec`).
      outs: letters of each result.

    Raises:
      ValueError: when called, if an axis does not divide a dimension that it splits.
    """
    if not (partition.rows or partition.columns):
        return function  # type: ignore[return-value]
    mesh = jax.sharding.get_abstract_mesh()
    mapped = jax.shard_map(
        function,
        in_specs=tuple(map(partition.spec, ins)),
        out_specs=tuple(map(partition.spec, outs)),
        axis_names={*partition.rows, *partition.columns},
        check_vma=False,
    )

    def call(*arrays: Array) -> tuple[Array, ...]:
        for letters, x in zip(ins, arrays, strict=True):
            for letter, size in zip(letters, x.shape, strict=True):
                axes = {"r": partition.rows, "c": partition.columns, ".": ()}[letter]
                shards = math.prod(mesh.shape[axis] for axis in axes)
                if size % shards:
                    raise ValueError(
                        f"{operation}: an argument of shape {x.shape} is split over mesh axes {axes} = {shards} "
                        f"devices; they must divide its dimension of {size}: change the mesh or the partition"
                    )
        return mapped(*arrays)  # type: ignore[return-value]

    return call
