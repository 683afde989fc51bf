"""The obvious twin of every packed computation: each root-to-leaf path of a tree alone in a row of its own.

A path is a tuple of tokens, closing role tokens included. What a model computes at a token depends on the tokens from
the root to it alone, so packed and separate results are both keyed by that tuple, wherever the packer put the token.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pit.types import Batch, Topology

Path = tuple[int, ...]
Columns = Sequence[Sequence[Sequence[int]]]
Closings = tuple[int, int, int]


def segment_path(topology: Topology, columns: Columns, tree: int, segment: int, closings: Closings) -> Path:
    """Tokens from the root to the end of a segment of one tree; `columns[c][i]` fills column c of tree i."""
    own = topology.segments[segment]
    before = () if own.parent < 0 else segment_path(topology, columns, tree, own.parent, closings)
    return (*before, *columns[own.column][tree], closings[own.kind])


def tip_paths(topology: Topology, columns: Columns, tree: int, closings: Closings) -> list[Path]:
    """All root-to-leaf paths of one tree."""
    parents = {segment.parent for segment in topology.segments}
    tips = [i for i in range(len(topology.segments)) if i not in parents]
    return [segment_path(topology, columns, tree, tip, closings) for tip in tips]


def leaf_paths(topology: Topology, columns: Columns, tree: int, closings: Closings) -> list[Path]:
    """Path of each leaf slot of one tree."""
    slots = {s.leaf: i for i, s in enumerate(topology.segments) if s.leaf >= 0}
    return [segment_path(topology, columns, tree, slots[slot], closings) for slot in range(topology.leaves)]


def loss_paths(topology: Topology, columns: Columns, closings: Closings) -> Counter[Path]:
    """How often each path ends in a token that is to carry loss (a root's first token has nothing before it)."""
    found: Counter[Path] = Counter()
    for tree in range(len(columns[0])):
        for i, segment in enumerate(topology.segments):
            path = segment_path(topology, columns, tree, i, closings)
            own = len(columns[segment.column][tree]) + 1
            if segment.loss:
                found.update(path[:end] for end in range(len(path) - own + 1, len(path) + 1) if end > 1)
    return found


def separate_rows(paths: Sequence[Path], rows: int, length: int, *, leaf_at: Sequence[int] | None = None) -> Batch:
    """Each path in a row of its own, in order, as a batch of one-leaf trees; what is left over is padding (token 0).

    Args:
        paths: at most `rows`, none longer than `length`.
        rows: rows of the batch.
        length: tokens of a row.
        leaf_at: index at which each path is read; its last token if not given.

    Raises:
        ValueError: the paths do not fit.
    """
    longest = max(map(len, paths), default=0)
    if len(paths) > rows or longest > length:
        raise ValueError(f"{len(paths)} paths of up to {longest} tokens: at most {rows} of {length} fit; raise either")
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
    """Tokens from the root to a place of a packed row, by its `previous` pointers."""
    path = [int(batch.token[row, index])]
    while batch.previous[row, index] != index:
        index = int(batch.previous[row, index])
        path.append(int(batch.token[row, index]))
    return tuple(reversed(path))


def live(batch: Batch) -> list[tuple[int, int]]:
    """(row, index) of every token that is not padding."""
    places = np.argwhere(batch.visible_until > np.arange(batch.token.shape[1], dtype=np.int32))
    return [(int(row), int(index)) for row, index in places]
