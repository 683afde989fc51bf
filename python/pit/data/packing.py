"""From trees to packed batches: a thin, typed layer over the C++ planner and packer."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int32

from pit.data import _core
from pit.types import Batch, Topology


@dataclass(frozen=True)
class Layout:
    """What the packer has to know beside a topology.

    closings: closing role tokens of input, reference and output segments; pad: token of padding.
    row_length: T; rows: rows of a group; trees: leaf slots of a group (a group is one shard's microbatch).
    """

    closings: tuple[int, int, int]
    pad: int
    row_length: int
    rows: int
    trees: int


def core_topology(topology: Topology) -> _core.Topology:
    """The C++ core's form of a topology."""
    segments = topology.segments
    return _core.Topology(
        parents=[s.parent for s in segments],
        columns=[s.column for s in segments],
        kinds=[int(s.kind) for s in segments],
        loss=[s.loss for s in segments],
        leaf_slots=[s.leaf for s in segments],
    )


def token_columns(columns: Sequence[Sequence[Sequence[int]]]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Columns of token lists in memory, as one chunk each."""
    result = []
    for column in columns:
        lengths = np.fromiter((len(row) for row in column), np.int64, len(column))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        values = np.fromiter((token for row in column for token in row), np.int32, int(offsets[-1]))
        result.append([(values, offsets)])
    return result


def materialise(
    plan: _core.Plan, first_group: int, groups: int, table: _core.TokenTable, topology: Topology, layout: Layout
) -> Batch:
    """Write `groups` groups of a plan as one batch, empty ones where the plan ends before; leaf rows count from the
    batch's first row.
    """
    rows, trees, length = groups * layout.rows, groups * layout.trees, layout.row_length
    last = min(first_group + groups, plan.groups)
    batch = Batch(
        token=np.empty((rows, length), np.int32),
        position=np.empty((rows, length), np.int32),
        visible_until=np.empty((rows, length), np.int32),
        previous=np.empty((rows, length), np.int32),
        loss_weight=np.empty((rows, length), np.float32),
        leaf=np.empty((trees, topology.leaves, 2), np.int32),
        example_id=np.empty(trees, np.int64),
        source=np.empty(trees, np.uint8),
    )
    written = _first_groups(batch, last - first_group, layout)
    _core.materialise(plan, first_group, last, table, closing=layout.closings, pad=layout.pad, out=written)
    _clear_from(batch, last - first_group, layout)
    offset = np.repeat(np.arange(groups, dtype=np.int32) * layout.rows, layout.trees)[:, None]
    batch.leaf[:, :, 0] = np.where(batch.leaf[:, :, 0] >= 0, batch.leaf[:, :, 0] + offset, -1)
    return batch


def _first_groups(batch: Batch, groups: int, layout: Layout) -> Batch:
    """Views of the rows and trees of the first groups of a batch."""
    rows, trees = groups * layout.rows, groups * layout.trees
    by_row = ("token", "position", "visible_until", "previous", "loss_weight")
    views = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return Batch(**{name: view[: rows if name in by_row else trees] for name, view in views.items()})


def _clear_from(batch: Batch, groups: int, layout: Layout) -> None:
    """Fill the groups after the first ones with padding."""
    rows, trees = groups * layout.rows, groups * layout.trees
    batch.token[rows:] = layout.pad
    for values in (batch.position, batch.visible_until, batch.loss_weight):
        values[rows:] = 0
    batch.previous[rows:] = np.arange(layout.row_length, dtype=np.int32)
    batch.leaf[trees:] = -1
    batch.example_id[trees:] = -1
    batch.source[trees:] = 0


def pack_trees(
    table: _core.TokenTable,
    lengths: Int32[np.ndarray, "n columns"],
    topology: Topology,
    layout: Layout,
    *,
    shards: int = 1,
) -> list[Batch]:
    """Pack the first rows of a table, as many as `lengths` has; `example_id` of a batch is the tree's row in `lengths`.

    Each batch spans `shards` groups, the last one filled up with empty groups.
    """
    plan = _core.plan_trees(
        lengths,
        core_topology(topology),
        row_length=layout.row_length,
        rows_per_group=layout.rows,
        trees_per_group=layout.trees,
    )
    return [materialise(plan, first, shards, table, topology, layout) for first in range(0, plan.groups, shards)]


def pack_lists(
    columns: Sequence[Sequence[Sequence[int]]], topology: Topology, layout: Layout, *, shards: int = 1
) -> list[Batch]:
    """`pack_trees` of token lists: `columns[c][i]` fills the segments of tree i that name column c."""
    lengths = np.array([[len(row) for row in column] for column in columns], np.int32).T
    table = _core.TokenTable(token_columns(columns))
    return pack_trees(table, np.ascontiguousarray(lengths), topology, layout, shards=shards)
