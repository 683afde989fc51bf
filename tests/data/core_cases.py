"""Random topologies, lengths and token tables for the tests of the C++ core."""

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from pit.data import _core
from pit.types import Segment, SegmentKind, Topology

PAIR = Topology(
    "pair",
    (
        Segment(-1, 0, SegmentKind.INPUT),
        Segment(0, 1, SegmentKind.OUTPUT, loss=True, leaf=0),
        Segment(0, 2, SegmentKind.OUTPUT, loss=True, leaf=1),
    ),
)
GAP = Topology(
    "gap",
    (
        Segment(-1, 0, SegmentKind.INPUT),
        Segment(0, 1, SegmentKind.REFERENCE),
        Segment(1, 1, SegmentKind.OUTPUT, leaf=0),
        Segment(1, 2, SegmentKind.OUTPUT, leaf=1),
        Segment(0, 2, SegmentKind.REFERENCE),
        Segment(4, 1, SegmentKind.OUTPUT, leaf=2),
        Segment(4, 2, SegmentKind.OUTPUT, loss=True, leaf=3),
    ),
)


ROLES = ((3,), (4,), (5,))
"""Closing tokens of each kind of segment."""


@st.composite
def closings(draw):
    """Return closings of 1 to 4 tokens for each kind; no token is content's, and all differ."""
    sizes = [draw(st.integers(1, 4)) for _ in SegmentKind]
    tokens = iter(range(-2, -20, -1))
    return tuple(tuple(next(tokens) for _ in range(size)) for size in sizes)


@st.composite
def topologies(draw):
    """Depth-first trees of 1 to 8 segments over 3 columns."""
    route, segments, slots = [0], [], 0
    for i in range(draw(st.integers(1, 8))):
        if i > 0:
            route = route[: draw(st.integers(1, len(route)))]
        parent = -1 if i == 0 else route[-1]
        if i > 0:
            route = [*route, i]
        slot = -1
        if draw(st.booleans()):
            slot, slots = slots, slots + 1
        kind = draw(st.sampled_from(SegmentKind))
        segments.append(Segment(parent, draw(st.integers(0, 2)), kind, draw(st.booleans()), slot))
    return Topology("random", tuple(segments))


def core_topology(topology, closings=ROLES):
    segments = topology.segments
    return _core.Topology(
        [s.parent for s in segments],
        [s.column for s in segments],
        [closings[s.kind] for s in segments],
        [s.loss for s in segments],
        [s.leaf for s in segments],
    )


@dataclass(frozen=True)
class Case:
    """A topology, the lengths of some examples, and sizes of rows and groups that can hold them."""

    topology: Topology
    lengths: np.ndarray
    row_length: int
    rows_per_group: int
    trees_per_group: int
    closings: tuple[tuple[int, ...], ...] = ROLES

    @property
    def core(self):
        """The core's form of the topology."""
        return core_topology(self.topology, self.closings)

    @property
    def sizes(self):
        return {
            "row_length": self.row_length,
            "rows_per_group": self.rows_per_group,
            "trees_per_group": self.trees_per_group,
        }


@st.composite
def cases(draw, min_examples=1):
    """Return a case whose rows hold any path and whose groups hold any split; many trees are split.

    Half of the cases have closings of one token each, as role tokens are.
    """
    topology = draw(st.one_of(st.just(PAIR), st.just(GAP), topologies()))
    longest = draw(st.integers(0, 6))
    close = draw(st.one_of(st.just(ROLES), closings()))
    most = longest + max(map(len, close))
    rows = st.lists(st.integers(0, longest), min_size=3, max_size=3)
    lengths = np.array(draw(st.lists(rows, min_size=min_examples, max_size=12)), np.int32).reshape(-1, 3)
    row_length = draw(st.integers(len(topology.segments) * most, len(topology.segments) * most * 3))
    if draw(st.booleans()):
        # The longest root-to-leaf path just fits, so that trees are split.
        parents = [s.parent for s in topology.segments]
        depth = [0] * len(parents)
        for i, parent in enumerate(parents):
            size = longest + len(close[topology.segments[i].kind])
            depth[i] = size if parent < 0 else depth[parent] + size
        row_length = max(depth)
    return Case(topology, lengths, row_length, draw(st.integers(8, 10)), draw(st.integers(1, 12)), close)


def random_tokens(lengths, seed):
    """Return tokens of a table with these lengths: for each column a list of arrays, one per row."""
    rng = np.random.default_rng(seed)
    return [[rng.integers(10, 1000, n, dtype=np.int32) for n in column] for column in lengths.T]


def token_table(columns, cuts):
    """Return a core table of `columns`, cut before the rows in cuts[column]; values have slack on both sides."""
    chunked = []
    for column, at in zip(columns, cuts, strict=True):
        chunks, bounds = [], [0, *sorted(at), len(column)]
        for low, high in itertools.pairwise(bounds):
            values = np.concatenate([np.full(3, -5, np.int32), *column[low:high], np.full(2, -6, np.int32)])
            offsets = 3 + np.cumsum([0, *(len(row) for row in column[low:high])], dtype=np.int64)
            chunks.append((values, offsets))
        chunked.append(chunks)
    return _core.TokenTable(chunked)
