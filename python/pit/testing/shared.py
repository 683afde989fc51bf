"""Rows that hold many paths, each shared prefix once: how checks read hundreds of answers to a few prompts.

`pit.testing.paths.separate_rows` is the slow twin: each path in a row of its own, with the same values.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from pit.testing.paths import Path
from pit.types import Batch
from pit_kernels import trees

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
    tokens: list[Int32[np.ndarray, " t"]]


def shared_rows(paths: Sequence[Path], length: int = _LENGTH) -> Iterator[SharedRow]:
    """Yield rows that hold all paths.

    Paths are taken in the reverse of their alphabetical order, so that each has its longest shared prefix with the one
    before it. Rows have one of a few lengths, at least 64, so that few programs are compiled.

    Args:
        paths: token sequences.
        length: tokens up to which a row is filled; a row that begins with a longer path is as long as that path needs.

    >>> [(row.paths, [tokens.tolist() for tokens in row.tokens]) for row in shared_rows([(5, 6), (5, 7, 8)])]
    [([1, 0], [[0, 2, 3], [0, 1]])]
    """
    held: list[int] = []
    used = 0
    for place in sorted(range(len(paths)), key=lambda place: paths[place], reverse=True):
        path = paths[place]
        added = len(path) - (_common(path, paths[held[-1]]) if held else 0)
        if held and (used + added > max(length, _length(len(paths[held[0]]))) or len(held) == _LEAVES):
            yield _row(paths, held, used)
            held, used, added = [], 0, len(path)
        held.append(place)
        used += added
    if held:
        yield _row(paths, held, used)


def _common(first: Path, second: Path) -> int:
    """Return the number of tokens that two paths begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _row(paths: Sequence[Path], held: list[int], used: int) -> SharedRow:
    """Return the row of some paths, which fill so many tokens; those without tokens come last and have no leaf."""
    length, spoken = _length(used), [paths[place] for place in held if paths[place]]
    # A row of nothing but paths without tokens is padding: that of some path, whose tokens nobody sees.
    packed = trees.pack(spoken or [(0,)], row_length=length)
    (tree,) = packed.batches(1, paths=_LEAVES)
    there = bool(spoken)
    batch = Batch(
        token=tree.token,
        position=tree.position,
        visible_until=tree.visible_until * there,
        previous=tree.previous,
        loss_weight=np.zeros(tree.token.shape, np.float32),
        leaf=np.where(there, tree.leaf, np.int32(-1))[None],
        example_id=np.zeros(1, np.int64),
        source=np.zeros(1, np.uint8),
    )
    tokens = [tree.place[slot, : len(paths[place])] for slot, place in enumerate(held)]
    return SharedRow(batch, held, tokens)


def _length(tokens: int) -> int:
    """Return the shortest row for some tokens: a power of two from 64 on, and above 1,024 three quarters of one too."""
    whole = max(64, 1 << max(0, tokens - 1).bit_length())
    return whole * 3 // 4 if whole > _LENGTH and tokens <= whole * 3 // 4 else whole
