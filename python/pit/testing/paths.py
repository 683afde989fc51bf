"""The slow, obvious twin of every packed computation: each root-to-leaf path of a tree in a separate row.

A path is a tuple of tokens, closing tokens included. A model's value at a token depends only on the tokens from the
root to it, so packed and separate results are both keyed by that tuple, wherever the packer put the token.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pit.types import Batch, Closings, Topology

Path = tuple[int, ...]
"""Tokens from the root of a tree to one of its tokens."""

Columns = Sequence[Sequence[Sequence[int]]]
"""Token contents: `columns[c][i]` fills the segments of tree i that name column c."""


def segment_path(topology: Topology, columns: Columns, tree: int, segment: int, closings: Closings) -> Path:
    """Return the tokens from the root to the end of one segment.

    Args:
        topology: shape of the trees.
        columns: token contents.
        tree: index of the tree.
        segment: index of the segment in the topology.
        closings: closing tokens of the segments.

    >>> from pit.data.template import gap
    >>> segment_path(gap(), [[(7, 8)], [(9,)], [()]], 0, 1, Closings.roles(1, 2, 3))
    (7, 8, 1, 9, 2)
    """
    last = topology.segments[segment]
    before = () if last.parent < 0 else segment_path(topology, columns, tree, last.parent, closings)
    return (*before, *columns[last.column][tree], *closings.of(topology)[segment])


def tip_paths(topology: Topology, columns: Columns, tree: int, closings: Closings) -> list[Path]:
    """Return all root-to-leaf paths of one tree."""
    parents = {segment.parent for segment in topology.segments}
    tips = [i for i in range(len(topology.segments)) if i not in parents]
    return [segment_path(topology, columns, tree, tip, closings) for tip in tips]


def leaf_paths(topology: Topology, columns: Columns, tree: int, closings: Closings) -> list[Path]:
    """Return the path of each leaf slot of one tree, in the order of the slots."""
    slots = {s.leaf: i for i, s in enumerate(topology.segments) if s.leaf >= 0}
    return [segment_path(topology, columns, tree, slots[slot], closings) for slot in range(topology.leaves)]


def loss_paths(topology: Topology, columns: Columns, closings: Closings) -> Counter[Path]:
    """Count, over all trees, the paths that end in a token that carries loss: a content's or the first closing one.

    The first token of a root carries none, because nothing precedes it.
    """
    counts: Counter[Path] = Counter()
    for tree in range(len(columns[0])):
        for i, segment in enumerate(topology.segments):
            path = segment_path(topology, columns, tree, i, closings)
            content, last = len(columns[segment.column][tree]), len(path) - len(closings.of(topology)[i]) + 1
            if segment.loss:
                counts.update(path[:end] for end in range(last - content, last + 1) if end > 1)
    return counts


def separate_rows(paths: Sequence[Path], rows: int, length: int, *, leaf_at: Sequence[int] | None = None) -> Batch:
    """Return a batch of one-leaf trees with each path in a separate row, in order; the rest is padding (token 0).

    Args:
        paths: at most `rows` paths, none longer than `length`.
        rows: rows of the batch.
        length: tokens per row.
        leaf_at: index at which each path is read; default its last token.

    Raises:
        ValueError: the paths do not fit.

    >>> separate_rows([(5, 1), (6, 7, 1)], rows=2, length=4).token
    array([[5, 1, 0, 0],
           [6, 7, 1, 0]], dtype=int32)
    """
    longest = max(map(len, paths), default=0)
    if len(paths) > rows or longest > length:
        raise ValueError(
            f"paths: {len(paths)} of up to {longest} tokens do not fit into rows = {rows} of length = {length}; raise "
            "rows or length"
        )
    token, until = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    leaf = np.full((rows, 1, 2), -1, np.int32)
    for row, path in enumerate(paths):
        token[row, : len(path)] = path
        until[row, : len(path)] = len(path)
        leaf[row, 0] = row, len(path) - 1 if leaf_at is None else leaf_at[row]
    index = np.broadcast_to(np.arange(length, dtype=np.int32), token.shape)
    return Batch(
        token=token,
        position=index.copy(),
        visible_until=until,
        previous=np.where(until > index, np.maximum(index - 1, 0), index).astype(np.int32),
        loss_weight=np.zeros(token.shape, np.float32),
        leaf=leaf,
        example_id=np.where(np.arange(rows) < len(paths), np.arange(rows), -1).astype(np.int64),
        source=np.zeros(rows, np.uint8),
    )


def packed_path(batch: Batch, row: int, index: int) -> Path:
    """Return the tokens from the root to a place of a packed row, found by its `previous` pointers."""
    path = [int(batch.token[row, index])]
    while batch.previous[row, index] != index:
        index = int(batch.previous[row, index])
        path.append(int(batch.token[row, index]))
    return tuple(reversed(path))


def live(batch: Batch) -> list[tuple[int, int]]:
    """Return (row, index) of every token that is not padding."""
    places = np.argwhere(batch.visible_until > np.arange(batch.token.shape[1], dtype=np.int32))
    return [(int(row), int(index)) for row, index in places]
