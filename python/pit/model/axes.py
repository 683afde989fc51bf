"""Axes of the mesh, data x fsdp x tensor, and the dimensions of a model's operations that they split."""

from jax.sharding import PartitionSpec as P

from pit_kernels import Partition

ROWS = P(("data", "fsdp"))
"""Rows of a batch, and its trees."""

PARTITION = Partition(rows=("data", "fsdp"), columns=("tensor",))
"""Split of kernels over the mesh in context: rows and trees, and heads or the vocabulary."""
