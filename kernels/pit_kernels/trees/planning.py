"""Which row each path goes to: trees that fit stay whole, longer ones are split and their shared prefix is repeated.

One rule serves every node of the trie, the virtual root above all trees included: what lies below the node is packed
into bins that leave room for the node's own tokens. The bins of the virtual root are the rows.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Piece:
    """Paths that go into one row together.

    paths: their numbers in lexicographic order.
    tokens: tokens that they take there, without those of their ancestors.
    """

    paths: tuple[int, ...]
    tokens: int


@dataclass
class _Node:
    """A node of the trie that does not fit whole.

    first, end: the paths below it.
    room: tokens of a row that its ancestors leave for it.
    own: tokens of its own segment.
    children: nodes below it that do not fit either.
    pieces: pieces below it that are ready.
    """

    first: int
    end: int
    room: int
    own: int
    children: list["_Node"] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


def plan_rows(length: Int[np.ndarray, " P"], shared: Int[np.ndarray, " P"], row_length: int) -> list[tuple[int, ...]]:
    """Return the paths of each row, in lexicographic order.

    Args:
      length: tokens of each path, in lexicographic order; none longer than a row.
      shared: length of the prefix that each has in common with the one before it.
      row_length: tokens of a row.

    Example:
      >>> plan_rows(np.array([4, 4, 4]), np.array([0, 3, 3]), 6)
      [(0, 1, 2)]
      >>> plan_rows(np.array([4, 4, 4]), np.array([0, 3, 3]), 5)
      [(0, 1), (2,)]
    """
    new = np.concatenate([[0], np.cumsum(length - shared)])

    def tokens(first: int, end: int, above: int) -> int:
        """Tokens of the paths from `first` to `end` beyond their first `above`, which all have in common."""
        return int(new[end] - new[first] + shared[first] - above)

    root = _Node(0, length.size, row_length, 0)
    opened = [(root, 0)]
    nodes = [root]
    while opened:
        node, depth = opened.pop()
        starts = [node.first, *(node.first + 1 + np.flatnonzero(shared[node.first + 1 : node.end] == depth)).tolist()]
        for first, end in zip(starts, [*starts[1:], node.end], strict=True):
            size = tokens(first, end, depth)
            if size <= node.room - node.own:
                node.pieces.append(Piece(tuple(range(first, end)), size))
                continue
            branching = int(shared[first + 1 : end].min())
            child = _Node(first, end, node.room - node.own, branching - depth)
            node.children.append(child)
            opened.append((child, branching))
            nodes.append(child)
    # Children come after their parents.
    for node in reversed(nodes):
        for child in node.children:
            node.pieces += child.pieces
        node.pieces = [
            Piece(piece.paths, piece.tokens + node.own) for piece in _binned(node.pieces, node.room - node.own)
        ]
    return sorted(piece.paths for piece in root.pieces)


def _binned(pieces: Sequence[Piece], room: int) -> list[Piece]:
    """Return pieces joined into bins: the largest first, each into the fullest bin that it fits into."""
    bins: list[list[Piece]] = []
    rooms: list[tuple[int, int]] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.tokens, piece.paths)):
        at = bisect.bisect_left(rooms, (piece.tokens, -1))
        left, number = rooms.pop(at) if at < len(rooms) else (room, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(piece)
        bisect.insort(rooms, (left - piece.tokens, number))
    return [
        Piece(tuple(sorted(path for piece in parts for path in piece.paths)), sum(piece.tokens for piece in parts))
        for parts in bins
    ]
