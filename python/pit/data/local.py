"""Batches of which each process writes the rows of its own devices: every process plans all, and writes its share."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Int32, Int64

from pit.data import _core
from pit.data.packing import Layout, empty_batch, groups_of, materialise, plan_trees, token_table
from pit.data.tokens import Sequences, Tokens
from pit.types import LocalBatch, Shards, Topology


def materialise_local(
    plan: _core.Plan,
    first_group: int,
    shards: Shards,
    table: _core.TokenTable,
    topology: Topology,
    layout: Layout,
) -> LocalBatch:
    """Write the local groups of a batch that has one group per shard, from a group of the plan on.

    Args:
        plan: of `topology` and `layout`.
        first_group: group of the plan that is the first shard's.
        shards: shards of the batch.
        table: the tokens whose lengths were planned.
        topology: the tree.
        layout: static shape of a group.
    """
    batch, begin = empty_batch(len(shards.local), topology, layout), 0
    for run in _runs(shards.local):
        part = groups_of(batch, begin, begin + len(run), layout)
        materialise(plan, first_group + run[0], len(run), table, topology, layout, out=part)
        leaf = part.leaf
        leaf[..., 0] += np.where(leaf[..., 0] < 0, 0, np.int32(run[0] * layout.rows))
        begin += len(run)
    examples, tokens = _facts(plan, first_group, shards.count)
    return LocalBatch(batch, shards, examples, tokens)


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Return ascending numbers as runs of neighbours.

    >>> _runs((0, 1, 4, 6, 7))
    [[0, 1], [4], [6, 7]]
    """
    by_run = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [[number for _, number in run] for _, run in by_run]


def _facts(plan: _core.Plan, first_group: int, groups: int) -> tuple[Int64[np.ndarray, " G"], int]:
    """Return the example in each tree slot of some groups, -1 in empty slots, and the tokens of all their trees."""
    group = plan.tree_group
    first, last = np.searchsorted(group, [first_group, first_group + groups])
    # Trees are listed by group: the slot of a tree is its rank in its group.
    rank = np.arange(first, last) - np.searchsorted(group, group[first:last])
    examples = np.full(groups * plan.trees_per_group, -1, np.int64)
    examples[(group[first:last] - first_group) * plan.trees_per_group + rank] = plan.tree_example[first:last]
    pieces = (plan.piece_tree >= first) & (plan.piece_tree < last)
    return examples, int(plan.piece_length[pieces].sum())


def pack_trees_local(
    table: _core.TokenTable,
    lengths: Int32[np.ndarray, "n columns"],
    topology: Topology,
    layout: Layout,
    shards: Shards,
) -> list[LocalBatch]:
    """Pack the first rows of a table as `packing.pack_trees` does, and write the local groups of each batch."""
    plan = plan_trees(lengths, topology, layout)
    return [
        materialise_local(plan, first, shards, table, topology, layout) for first in range(0, plan.groups, shards.count)
    ]


def pack_local(columns: Sequence[Sequences], topology: Topology, layout: Layout, shards: Shards) -> list[LocalBatch]:
    """Pack trees of token sequences as `packing.pack` does, and write the local groups of each batch."""
    tokens = [Tokens.of(column) for column in columns]
    lengths = np.stack([column.length for column in tokens], axis=1)
    return pack_trees_local(token_table(tokens), lengths, topology, layout, shards)
