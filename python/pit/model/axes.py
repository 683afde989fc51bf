"""Axes of the mesh, data x fsdp x tensor, and the dimensions of a model's operations that they split."""

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from pit_kernels import Partition

ROWS = P(("data", "fsdp"))
"""Rows of a batch, and its trees."""

PARTITION = Partition(rows=("data", "fsdp"), columns=("tensor",))
"""Split of kernels over the mesh in context: rows and trees, and heads or the vocabulary."""


def on_rows(x: Array) -> Array:
    """Return x, an array of rows, split by rows over the mesh in context, and whole along its other axes.

    Without a mesh of several devices it is x itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return x
    split = PARTITION.here([x.shape[0]]).spec("r" + "." * (x.ndim - 1))
    laid: Array = jax.lax.with_sharding_constraint(x, split)
    return laid
