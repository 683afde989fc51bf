"""Context trees of every topology, as token columns and as packed rows.

A `Forest` keeps the columns, so that a failing example can be shrunk, saved and packed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from pit.data.packing import Layout, pack
from pit.data.template import gap, gap_scoring, improver_sft, policy_sft, quality, rollout
from pit.testing.paths import Path, leaf_paths
from pit.testing.strategies.tokens import EDGES, DrawFn, token_sequences
from pit.types import Batch, Closings, Segment, SegmentKind, Topology


@dataclass(frozen=True)
class Forest:
    """Trees of one topology.

    topology: shape of every tree.
    columns: token contents; `columns[c][i]` fills the segments of tree i that name column c.
    """

    topology: Topology
    columns: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def trees(self) -> int:
        """Number of trees."""
        return len(self.columns[0])

    def alone(self, *trees: int) -> "Forest":
        """Return the forest of the given trees, in the given order."""
        return Forest(self.topology, tuple(tuple(column[i] for i in trees) for column in self.columns))

    def pack(self, layout: Layout) -> list[Batch]:
        """Return packed batches; `example_id` is the index of the tree."""
        return pack(self.columns, self.topology, layout)

    def leaf_paths(self, closings: Closings) -> list[Path]:
        """Return the paths of all leaves, tree by tree."""
        return [path for i in range(self.trees) for path in leaf_paths(self.topology, self.columns, i, closings)]

    def to_json(self) -> dict[str, Any]:
        """Return the forest as values that JSON can hold."""
        segments = [[s.parent, s.column, int(s.kind), s.loss, s.leaf] for s in self.topology.segments]
        return {"topology": self.topology.name, "segments": segments, "columns": self.columns}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Forest":
        """Return the forest that `to_json` described."""
        segments = tuple(Segment(p, c, SegmentKind(k), loss, leaf) for p, c, k, loss, leaf in values["segments"])
        columns = tuple(tuple(tuple(map(int, row)) for row in column) for column in values["columns"])
        return cls(Topology(values["topology"], segments), columns)


def topologies() -> st.SearchStrategy[Topology]:
    """Return a strategy for the trees that PIT trains on or scores with."""
    fixed = (policy_sft(), improver_sft(), quality(), gap())
    sampled = st.builds(rollout, st.integers(1, 4), with_reference=st.booleans())
    forms = st.tuples(st.integers(1, 2), st.booleans(), st.booleans())
    return st.one_of(
        st.sampled_from(fixed), sampled, forms.map(lambda f: gap_scoring(f[0], identity=f[1], swapped=f[2])[0])
    )


@st.composite
def forests(
    draw: DrawFn,
    topology: Topology,
    content: tuple[int, int],
    longest: int | Sequence[int],
    most_trees: int = 3,
    edges: Sequence[int] = EDGES,
) -> Forest:
    """Draw forests in which two answers of a tree are sometimes equal, as in training.

    Args:
        draw: Hypothesis's own argument; callers leave it out.
        topology: shape of every tree.
        content: smallest and largest token id of a segment's content.
        longest: maximum content tokens, one bound or one per column.
        most_trees: maximum number of trees; at least 1 is drawn.
        edges: lengths to favour.

    >>> from hypothesis import find
    >>> from pit.data.template import quality
    >>> find(forests(quality(), (4, 99), 8), lambda forest: forest.trees == 2).columns
    (((), ()), ((), ()), ((), ()))
    """
    count = 1 + max(segment.column for segment in topology.segments)
    bounds = [longest] * count if isinstance(longest, int) else list(longest)
    trees = draw(st.integers(1, most_trees))
    columns = [[draw(token_sequences(content, bound, edges)) for _ in range(trees)] for bound in bounds[:count]]
    if count > 2 and draw(st.booleans()):
        columns[-1][-1] = columns[-2][-1][: bounds[count - 1]]
    return Forest(topology, tuple(map(tuple, columns)))


def packed_rows(
    topology: Topology, content: tuple[int, int], longest: int, layout: Layout
) -> st.SearchStrategy[list[Batch]]:
    """Return a strategy for the packed batches of a forest.

    Args:
        topology: shape of every tree.
        content: smallest and largest token id of a segment's content.
        longest: maximum content tokens of a segment.
        layout: layout whose rows hold the longest path of the topology.
    """
    return forests(topology, content, longest).map(lambda forest: forest.pack(layout))
