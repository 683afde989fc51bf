"""Packing of context trees into batches: a thin, typed layer over the C++ planner and packer."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from jaxtyping import Int32

from pit.data import _core
from pit.data.errors import DataError
from pit.data.tokens import Sequences, Tokens
from pit.types import Batch, Closings, Topology

TOKENS_PER_THREAD = 1 << 20
"""Tokens per thread: about a millisecond of writing, against the tens of microseconds that a thread takes to start."""


@dataclass(frozen=True)
class Layout:
    """Static shape of packed rows, and the tokens that the packer adds.

    closings: closing tokens of the segments; pad: token of padding.
    row_length: T; rows: rows per group; trees: tree slots per group (a group is one shard's microbatch).
    """

    closings: Closings
    pad: int
    row_length: int
    rows: int
    trees: int


@cache
def core_topology(topology: Topology, closings: Closings) -> _core.Topology:
    """Return the C++ core's form of a topology whose segments end in some closings."""
    segments = topology.segments
    return _core.Topology(
        parents=[s.parent for s in segments],
        columns=[s.column for s in segments],
        closings=closings.of(topology),
        loss=[s.loss for s in segments],
        leaf_slots=[s.leaf for s in segments],
    )


def token_table(columns: Sequence[Sequences]) -> _core.TokenTable:
    """Return columns of token sequences in memory as a table of the C++ core."""
    return _core.TokenTable([[(column.values, column.offsets)] for column in map(Tokens.of, columns)])


def empty_batch(groups: int, topology: Topology, layout: Layout) -> Batch:
    """Return a batch of `groups` groups with arrays of the right shapes, their values not set."""
    shapes = batch_shapes(groups, topology, layout)
    return Batch(**{name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()})


def default_threads(tokens: int) -> int:
    """Return the number of threads for a batch of so many tokens: one per million, at most one per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, tokens // TOKENS_PER_THREAD))


# Eight parameters: what to write, where from, and two choices that may be left.
def materialise(
    plan: _core.Plan,
    first_group: int,
    groups: int,
    table: _core.TokenTable,
    topology: Topology,
    layout: Layout,
    *,
    out: Batch | None = None,
    threads: int | None = None,
) -> Batch:
    """Write `groups` groups of a plan as one batch, with empty groups after the end of the plan.

    Rows in the leaf table count from the batch's first row.

    Args:
        plan: of `topology` and `layout`.
        first_group: the first group to write.
        groups: how many.
        table: the tokens whose lengths were planned.
        topology: the tree.
        layout: static shape of a group.
        out: a batch to write into instead of a new one, for example from `empty_batch`. It stays the caller's: this
            call writes every element of it and keeps no reference; until it returns nobody else may read or write the
            arrays, and afterwards only what was read from them before is of the old batch. Hand in one whose last
            use is over: JAX may compute on the very memory of a NumPy array instead of a copy of it, so wait for what
            was computed (`jax.block_until_ready`), or copy.
        threads: how many share the rows; `default_threads` of the batch's tokens if not given. The batch is the same.

    Returns:
        `out`, or the new batch.

    Raises:
        DataError: `out` has other shapes than this batch.
        CoreError: the groups, the table or an array of `out` do not fit the plan.
    """
    batch = empty_batch(groups, topology, layout) if out is None else out
    if out is not None:
        _require_shapes(out, groups, topology, layout)
    written = max(0, min(groups, plan.groups - first_group))
    if written:
        _core.materialise(
            plan,
            first_group,
            first_group + written,
            table,
            pad=layout.pad,
            threads=default_threads(written * layout.rows * layout.row_length) if threads is None else threads,
            out=groups_of(batch, 0, written, layout),
        )
    if written < groups:
        _clear_from(batch, written, layout)
    return batch


def batch_shapes(groups: int, topology: Topology, layout: Layout) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and dtype of every field of a batch of `groups` groups."""
    rows, trees = (groups * layout.rows, layout.row_length), groups * layout.trees
    return {
        "token": (rows, np.int32),
        "position": (rows, np.int32),
        "visible_until": (rows, np.int32),
        "previous": (rows, np.int32),
        "loss_weight": (rows, np.float32),
        "leaf": ((trees, topology.leaves, 2), np.int32),
        "example_id": ((trees,), np.int64),
        "source": ((trees,), np.uint8),
    }


def _require_shapes(batch: Batch, groups: int, topology: Topology, layout: Layout) -> None:
    for name, (shape, _) in batch_shapes(groups, topology, layout).items():
        given = getattr(batch, name).shape
        if given != shape:
            raise DataError(f"out.{name} has shape {given}, must have {shape}; take `empty_batch` of the same sizes")


def groups_of(batch: Batch, first: int, last: int, layout: Layout) -> Batch:
    """Return views of the rows and trees of groups `first` to `last - 1` of a batch."""
    rows, trees = slice(first * layout.rows, last * layout.rows), slice(first * layout.trees, last * layout.trees)
    by_row = ("token", "position", "visible_until", "previous", "loss_weight")
    views = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return Batch(**{name: view[rows if name in by_row else trees] for name, view in views.items()})


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


def plan_trees(lengths: Int32[np.ndarray, "n columns"], topology: Topology, layout: Layout) -> _core.Plan:
    """Return the place of every tree, from the tokens of its columns."""
    return _core.plan_trees(
        lengths,
        core_topology(topology, layout.closings),
        row_length=layout.row_length,
        rows_per_group=layout.rows,
        trees_per_group=layout.trees,
    )


def pack_trees(
    table: _core.TokenTable,
    lengths: Int32[np.ndarray, "n columns"],
    topology: Topology,
    layout: Layout,
    *,
    shards: int = 1,
) -> list[Batch]:
    """Pack the first rows of a table, as many as `lengths` has.

    `example_id` of a batch is the tree's row in `lengths`. Each batch spans `shards` groups; the last one is filled up
    with empty groups.
    """
    plan = plan_trees(lengths, topology, layout)
    return [materialise(plan, first, shards, table, topology, layout) for first in range(0, plan.groups, shards)]


def rows_needed(topology: Topology, layout: Layout, longest: Sequence[int]) -> int:
    """Return the rows of a group that hold a tree whose segments are all as long as they may be.

    Args:
        topology: the tree.
        layout: static shape; its own number of rows does not count.
        longest: most tokens of the contents of an (input, reference, output) segment.

    Raises:
        CoreError: a path is longer than a row.
    """
    segments, core = topology.segments, core_topology(topology, layout.closings)
    columns = range(1 + max(segment.column for segment in segments))
    lengths = [max((longest[each.kind] for each in segments if each.column == column), default=0) for column in columns]
    # Each row ends with another tip of the tree.
    for rows in range(1, len(segments) + 1):
        try:
            _core.plan_trees(
                np.array([lengths], np.int32),
                core,
                row_length=layout.row_length,
                rows_per_group=rows,
                trees_per_group=1,
            )
        except _core.CoreError:
            if rows == len(segments):
                raise
        else:
            break
    return rows


def pack(columns: Sequence[Sequences], topology: Topology, layout: Layout, *, shards: int = 1) -> list[Batch]:
    """Pack trees of token sequences: `columns[c][i]` fills the segments of tree i that name column c.

    Returns:
        Batches as of `pack_trees`.
    """
    tokens = [Tokens.of(column) for column in columns]
    lengths = np.stack([column.length for column in tokens], axis=1)
    return pack_trees(token_table(tokens), lengths, topology, layout, shards=shards)
