"""The real shapes, listed once: tests, benches and tuning of the kernels all read them here.

Lengths of the packed rows are random, distributed like those of HH-RLHF (medians of 100 prompt and 50 answer tokens,
long tails): a stand-in for the data that needs no download, the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32


class HeadShape(NamedTuple):
    """Attention heads of a published model: N query heads and K key/value heads of width H."""

    model: str
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Layout:
    """A rule by which context trees fill rows.

    name: short name, part of the workload's.
    batch: rows B.
    row_length: tokens T of a row.
    parents: parent of each segment of a tree in depth-first order, -1 for the root.
    columns: column that gives each segment its length; segments of one column have one length, drawn once per tree.
    medians: median length of each column, tokens.
    spread: standard deviation of the logarithm of a length; 0 fixes the lengths.
    slot: where given, every segment starts at a multiple of it and the rest of its slot is padding.
    trees: lengths of each tree's columns, in the place of random ones; `batch` rows hold them all. None to draw them.
    """

    name: str
    batch: int
    row_length: int
    parents: tuple[int, ...]
    columns: tuple[int, ...]
    medians: tuple[int, ...]
    spread: float
    slot: int | None = None
    trees: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Workload:
    """A layout with the heads of a model: all that an attention kernel is tuned for."""

    name: str
    layout: Layout
    heads: int
    kv_heads: int
    head_dim: int


WINDOW = 512
"""Most tokens of a random segment: the window of the paper."""

HEAD_SHAPES = (
    HeadShape("smollm2-135m", 9, 3, 64),
    HeadShape("gemma-2-2b", 8, 4, 256),
    HeadShape("llama-3-8b", 32, 8, 128),
    HeadShape("llama-2-7b", 32, 32, 128),
)

_CHAIN = ((-1, 0, 1), (0, 1, 2))
_GAP = ((-1, 0, 1, 1, 0, 4, 4), (0, 1, 1, 2, 2, 1, 2))
_SAMPLES = 16
_ROLLOUT = ((-1, 0) + (1,) * _SAMPLES, tuple(range(2 + _SAMPLES)))

LAYOUTS = (
    Layout("classic-1536", 16, 1536, *_CHAIN, medians=(200, 100, 100), spread=0.0, slot=512),
    Layout("packed-2048", 8, 2048, *_GAP, medians=(100, 50, 50), spread=0.8),
    Layout("packed-4096", 4, 4096, *_GAP, medians=(100, 50, 50), spread=0.8),
    Layout("rollout-4096", 4, 4096, *_ROLLOUT, medians=(100,) + (50,) * (1 + _SAMPLES), spread=0.8),
    Layout("causal-4096", 4, 4096, (-1,), (0,), medians=(4096,), spread=0.0),
)

_TILE_TOKENS = 4096
_COMB = _TILE_TOKENS // 128
_COMB_PARENTS = tuple(parent for tooth in range(_COMB) for parent in (2 * tooth - 2 if tooth else -1, 2 * tooth))

TILE_HEADS = HeadShape("two heads", 2, 2, 128)
"""The heads of the rows that only the hot tile of an attention kernel is looked at with."""

TILE_LAYOUTS = (
    Layout("tile-512-full", 1, _TILE_TOKENS, (-1,), (0,), medians=(_TILE_TOKENS,), spread=0.0),
    Layout("tile-512-partial", 1, _TILE_TOKENS, _COMB_PARENTS, (0, 1) * _COMB, medians=(127, 1), spread=0.0),
    Layout("tile-512-padded", 1, _TILE_TOKENS, (-1,), (0,), medians=(_TILE_TOKENS - 4,), spread=0.0),
)
"""Rows in which nearly every tile of keys is wholly visible, or not quite: a trunk with a leaf of one token off every
127 of its own, and for kernels without trees one sequence with a little padding."""

WORKLOADS = tuple(
    Workload(f"{shape.model}/{layout.name}", layout, shape.heads, shape.kv_heads, shape.head_dim)
    for shape in HEAD_SHAPES
    for layout in LAYOUTS
)


def forest(workload: Workload, seed: int) -> list[list[list[int]]]:
    """Return the lengths of the segments of every tree of every row; the same seed gives the same trees.

    Trees are drawn and packed one after another until one does not fit; the rest of the row is padding. A tree
    that no row could hold is drawn again.

    Example:
      >>> forest(WORKLOADS[0], seed=0)[0]
      [[200, 100, 100]]
    """
    layout = workload.layout
    if layout.trees is not None:
        return _packed_trees(layout)
    rng = np.random.default_rng(seed)
    rows: list[list[list[int]]] = [[] for _ in range(layout.batch)]
    for row in rows:
        room = layout.row_length
        while room > 0:
            lengths = _draw_lengths(layout, rng)
            taken = sum(_taken(layout, length) for length in lengths)
            if taken <= room:
                row.append(lengths)
                room -= taken
            elif taken <= layout.row_length:
                break
    return rows


def visible_until(workload: Workload, seed: int) -> Int32[np.ndarray, "B T"]:
    """Return the vector `visible_until` of the workload's rows, with the trees of `forest` one after another.

    Example:
      >>> rows = visible_until(WORKLOADS[0], seed=0)
      >>> rows.shape, int(rows[0, 0]), int(rows[0, 200])
      ((16, 1536), 1124, 0)
    """
    layout = workload.layout
    rows = np.zeros((layout.batch, layout.row_length), np.int32)
    for row, trees in zip(rows, forest(workload, seed), strict=True):
        start = 0
        for lengths in trees:
            tree = _tree(layout, lengths)
            row[start : start + tree.size] = np.where(tree > 0, tree + start, 0)
            start += tree.size
    return rows


def path_lengths(workload: Workload, seed: int) -> list[int]:
    """Return the tokens of every path from root to leaf: the sequences that a kernel without trees computes.

    Example:
      >>> path_lengths(WORKLOADS[0], seed=0)[:2]
      [400, 400]
    """
    parents = workload.layout.parents
    leaves = [segment for segment in range(len(parents)) if segment not in parents]
    lengths = []
    for trees in forest(workload, seed):
        for tree in trees:
            for leaf in leaves:
                segment, total = leaf, 0
                while segment >= 0:
                    total += tree[segment]
                    segment = parents[segment]
                lengths.append(total)
    return lengths


def pack_sequences(lengths: Sequence[int], row_length: int) -> Int32[np.ndarray, "B T"]:
    """Return `visible_until` of separate sequences packed into as few rows as the longest-first, first-fit rule needs.

    Raises:
      ValueError: if a sequence is longer than a row.

    Example:
      >>> pack_sequences([2, 3, 1], 4).tolist()
      [[3, 3, 3, 4], [2, 2, 0, 0]]
    """
    longest = max(lengths, default=0)
    if longest > row_length:
        raise ValueError(
            f"a sequence has {longest} tokens; rows of {row_length} must hold the longest: make them longer"
        )
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        for row in rows:
            if sum(row) + length <= row_length:
                row.append(length)
                break
        else:
            rows.append([length])
    until = np.zeros((len(rows), row_length), np.int32)
    for filled, row in zip(until, rows, strict=True):
        ends = np.cumsum(row)
        filled[: ends[-1]] = np.repeat(ends, row)
    return until


def gap_workload(triples: Sequence[tuple[int, int, int]], row_length: int, shape: HeadShape) -> Workload:
    """Return a workload of the four orders of given preferences, packed as trees.

    Args:
      triples: tokens of prompt, better and worse answer of each preference.
      row_length: tokens of a row.
      shape: heads.

    Raises:
      ValueError: if there is no preference, or a tree is longer than a row.

    Example:
      >>> workload = gap_workload([(100, 50, 40), (10, 5, 4)], 512, HEAD_SHAPES[0])
      >>> workload.layout.batch, forest(workload, seed=0)
      (1, [[[100, 50, 50, 40, 40, 50, 40], [10, 5, 5, 4, 4, 5, 4]]])
    """
    trees = tuple((int(prompt), int(better), int(worse)) for prompt, better, worse in triples)
    if not trees:
        raise ValueError("triples holds no preference; it must hold one at least")
    longest = max(sum(lengths[column] for column in _GAP[1]) for lengths in trees)
    if longest > row_length:
        raise ValueError(f"a tree has {longest} tokens; rows of {row_length} must hold the longest: make them longer")
    layout = Layout("lengths", 0, row_length, *_GAP, medians=(), spread=0.0, trees=trees)
    layout = replace(layout, batch=len(_packed_trees(layout)))
    return Workload(f"{shape.model}/lengths", layout, shape.heads, shape.kv_heads, shape.head_dim)


def _packed_trees(layout: Layout) -> list[list[list[int]]]:
    """Return the given trees, longest first, each in the first row that has room."""
    trees = [[lengths[column] for column in layout.columns] for lengths in layout.trees or ()]
    rows: list[list[list[int]]] = []
    room: list[int] = []
    for tree in sorted(trees, key=sum, reverse=True):
        size = sum(_taken(layout, length) for length in tree)
        number = next((number for number, left in enumerate(room) if size <= left), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(layout.row_length)
        rows[number].append(tree)
        room[number] -= size
    return rows


def _draw_lengths(layout: Layout, rng: np.random.Generator) -> list[int]:
    """Return the tokens of each segment of one tree."""
    columns = list(layout.medians)
    if layout.spread > 0:
        lengths = rng.lognormal(np.log(layout.medians), layout.spread)
        columns = [int(length) for length in np.clip(lengths, 1, WINDOW)]
    return [columns[column] for column in layout.columns]


def _taken(layout: Layout, length: int) -> int:
    """Return the tokens of the row that a segment takes: its length, or whole slots."""
    return length if layout.slot is None else -(-length // layout.slot) * layout.slot


def _tree(layout: Layout, lengths: list[int]) -> Int32[np.ndarray, " T"]:
    """Return `visible_until` of one tree that starts at 0."""
    starts = np.cumsum([0] + [_taken(layout, length) for length in lengths])
    ends = [int(start) + length for start, length in zip(starts, lengths, strict=False)]
    # Depth-first order: every child comes after its parent, so walking backwards an end is final when it is passed up.
    for segment in reversed(range(len(lengths))):
        parent = layout.parents[segment]
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[segment])
    until = np.zeros(int(starts[-1]), np.int32)
    for start, length, end in zip(starts, lengths, ends, strict=False):
        until[start : start + length] = end
    return until
