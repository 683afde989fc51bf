"""The real shapes, listed once: tests, benches and tuning of the kernels all read them here.

Lengths of the packed rows are drawn around those of HH-RLHF (medians of 100 prompt and 50 answer tokens, long tails): a
stand-in for the data that needs no download, the same on every machine.
"""

from dataclasses import dataclass
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
    """How context trees fill rows.

    name: short name, part of the workload's.
    batch: rows B.
    row_length: tokens T of a row.
    parents: parent of each segment of a tree in depth-first order, -1 for the root.
    columns: which column gives each segment its length; segments of one column have one length, drawn once a tree.
    medians: median length of each column, tokens.
    spread: standard deviation of the logarithm of a length; 0 fixes the lengths.
    slot: where given, every segment starts at a multiple of it and the rest of its slot is padding.
    """

    name: str
    batch: int
    row_length: int
    parents: tuple[int, ...]
    columns: tuple[int, ...]
    medians: tuple[int, ...]
    spread: float
    slot: int | None = None


@dataclass(frozen=True)
class Workload:
    """A layout with the heads of a model: all that an attention kernel is tuned for."""

    name: str
    layout: Layout
    heads: int
    kv_heads: int
    head_dim: int


WINDOW = 512
"""Most tokens of a drawn segment: the window of the paper."""

HEAD_SHAPES = (
    HeadShape("smollm2-135m", 9, 3, 64),
    HeadShape("gemma-2-2b", 8, 4, 256),
    HeadShape("llama-3-8b", 32, 8, 128),
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

WORKLOADS = tuple(
    Workload(f"{shape.model}/{layout.name}", layout, shape.heads, shape.kv_heads, shape.head_dim)
    for shape in HEAD_SHAPES
    for layout in LAYOUTS
)


def visible_until(workload: Workload, seed: int) -> Int32[np.ndarray, "B T"]:
    """The vector `visible_until` of the workload's rows; the same seed gives the same rows.

    Trees are drawn and packed one after another until one does not fit; the rest of the row is padding. A tree
    that no row could hold is drawn again.

    Example:
      >>> rows = visible_until(WORKLOADS[0], seed=0)
      >>> rows.shape, int(rows[0, 0]), int(rows[0, 200])
      ((16, 1536), 1124, 0)
    """
    layout = workload.layout
    rng = np.random.default_rng(seed)
    rows = np.zeros((layout.batch, layout.row_length), np.int32)
    for row in rows:
        start = 0
        while start < layout.row_length:
            tree = _tree(layout, _draw_lengths(layout, rng))
            if start + tree.size <= layout.row_length:
                row[start : start + tree.size] = np.where(tree > 0, tree + start, 0)
                start += tree.size
            elif tree.size <= layout.row_length:
                break
    return rows


def _draw_lengths(layout: Layout, rng: np.random.Generator) -> list[int]:
    """Tokens of each segment of one tree."""
    columns = list(layout.medians)
    if layout.spread > 0:
        drawn = rng.lognormal(np.log(layout.medians), layout.spread)
        columns = [int(length) for length in np.clip(drawn, 1, WINDOW)]
    return [columns[column] for column in layout.columns]


def _taken(layout: Layout, length: int) -> int:
    """Tokens of the row that a segment takes: its length, or whole slots."""
    return length if layout.slot is None else -(-length // layout.slot) * layout.slot


def _tree(layout: Layout, lengths: list[int]) -> Int32[np.ndarray, " T"]:
    """`visible_until` of one tree that starts at 0."""
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
