"""Rows that hold many paths, each shared prefix once: how checks read hundreds of answers to a few prompts.

`pit.testing.paths.separate_rows` is the slow twin: each path in a row of its own, with the same values.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from pit.testing.paths import Path
from pit.types import Batch

_LENGTH = 1024
_LEAVES = 64


class SharedRow(NamedTuple):
    """A row of paths that hold their shared prefixes once.

    batch: the row, a tree with a leaf at the end of each path.
    paths: place of each of its paths in the sequence that was packed.
    tokens: index in the row of each token of each of its paths.
    """

    batch: Batch
    paths: list[int]
    tokens: list[Int64[np.ndarray, " t"]]


def shared_rows(paths: Sequence[Path], length: int = _LENGTH) -> Iterator[SharedRow]:
    """Yield rows that hold all paths.

    Paths are taken in the reverse of their alphabetical order, so that each has its longest shared prefix with the one
    before it. Rows have one of a few lengths, at least 64, so that few programs are compiled.

    Args:
        paths: token sequences.
        length: tokens up to which a row is filled; a row that begins with a longer path is as long as that path needs.

    >>> [(row.paths, [tokens.tolist() for tokens in row.tokens]) for row in shared_rows([(5, 6), (5, 7, 8)])]
    [([1, 0], [[0, 1, 2], [0, 3]])]
    """
    tree = _Tree()
    for place in sorted(range(len(paths)), key=lambda place: paths[place], reverse=True):
        room = max(length, _length(len(tree.path)))
        if tree.paths and (tree.size_with(paths[place]) > room or len(tree.paths) == _LEAVES):
            yield tree.row()
            tree = _Tree()
        tree.add(place, paths[place])
    if tree.paths:
        yield tree.row()


class _Tree:
    """A growing row.

    path: its first path.
    token, parent: token and index of the parent of each place; -1 without one.
    paths, tokens: as in `SharedRow`.
    """

    def __init__(self) -> None:
        self.path: Path = ()
        self.token: list[int] = []
        self.parent: list[int] = []
        self.paths: list[int] = []
        self.tokens: list[list[int]] = []
        self._last: Path = ()

    def _common(self, path: Path) -> int:
        """Return the number of tokens that a path shares with the last one."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path, self._last, strict=False)))

    def size_with(self, path: Path) -> int:
        """Return the number of tokens of the row with one more path."""
        return len(self.token) + len(path) - self._common(path)

    def add(self, place: int, path: Path) -> None:
        """Add a path."""
        indices = self.tokens[-1][: self._common(path)] if self.tokens else []
        for token in path[len(indices) :]:
            self.parent.append(indices[-1] if indices else -1)
            indices.append(len(self.token))
            self.token.append(token)
        self.path = self.path or path
        self._last = path
        self.paths.append(place)
        self.tokens.append(indices)

    def row(self) -> SharedRow:
        """Return the row."""
        used, length = len(self.token), _length(len(self.token))
        index = np.arange(length, dtype=np.int32)
        token, position, until = (np.zeros((1, length), np.int32) for _ in range(3))
        previous = index[None].copy()
        token[0, :used], until[0, :used] = self.token, index[:used] + 1
        for place, parent in enumerate(self.parent):
            if parent >= 0:
                previous[0, place], position[0, place] = parent, position[0, parent] + 1
        for place in reversed(range(used)):
            if (parent := self.parent[place]) >= 0:
                until[0, parent] = max(until[0, parent], until[0, place])
        leaf = np.full((1, _LEAVES, 2), -1, np.int32)
        for slot, indices in enumerate(self.tokens):
            if indices:
                leaf[0, slot] = 0, indices[-1]
        batch = Batch(
            token=token,
            position=position,
            visible_until=until,
            previous=previous,
            loss_weight=np.zeros(token.shape, np.float32),
            leaf=leaf,
            example_id=np.zeros(1, np.int64),
            source=np.zeros(1, np.uint8),
        )
        return SharedRow(batch, self.paths, [np.array(indices, np.int64) for indices in self.tokens])


def _length(tokens: int) -> int:
    """Return the shortest row for some tokens: a power of two from 64 on, and above 1,024 three quarters of one too."""
    whole = max(64, 1 << max(0, tokens - 1).bit_length())
    return whole * 3 // 4 if whole > _LENGTH and tokens <= whole * 3 // 4 else whole
