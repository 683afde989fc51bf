"""Types that every part of PIT shares: preferences, context trees, batches, and the letters of dimensions.

Everything here is plain Python and NumPy; the module imports no JAX, so that data workers stay light.

Dimension letters (used in array annotations throughout the project):

======  =============================================================================
letter  meaning
======  =============================================================================
A       token of the store of prefilled rows
B       row of a batch (a flat row of T tokens into which many trees are packed); also R
C       token of one sampled output, or entry of a key/value cache
D       model width
E       id that ends a sample
F       feed-forward width
G       tree (one context tree), or prefix of a sampler
H       head width
K       key/value head
L       leaf of a tree
M       row of a matrix: a token of a batch, rows joined
N       query head; in reinforcement learning, sample of a tree
P       prefix that a sampler holds, position of a table, or tree of a plan
Q       sample of a sampler (all prefixes together), or piece of a plan
R       row of a batch
S       slot of a sampler, or of a key/value cache
T       token of a flat row
V       entry of the vocabulary
X       shard of the rows
n       entry of a vector: draw, example, pair or row
m, r    entry of another vector
======  =============================================================================
"""

import enum
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

RoleName = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One turn of a conversation."""

    role: RoleName
    content: str


class Preference(NamedTuple):
    """One preference triple (x, y_w, y_l): a conversation and two answers, the first one preferred.

    difficulty: difficulty of the example in any unit (larger is harder), None where it is not known.
    facts: further columns of its row as a JSON object, None where none were asked for.
    """

    prompt: tuple[Message, ...]
    better: str
    worse: str
    difficulty: float | None = None
    facts: str | None = None


class SegmentKind(enum.IntEnum):
    """Kind of a segment of a context tree; each kind ends in closing tokens of its own (see `Closings`)."""

    INPUT = 0
    REFERENCE = 1
    OUTPUT = 2


class Source(enum.IntEnum):
    """Source of a tree's reference (the curriculum's second coordinate)."""

    NONE = 0
    WORSE = 1
    BETTER = 2
    POLICY = 3


FOLDS = ("sft", "reward", "rl", "judge", "eval")
"""The folds of a preference set: the paper's three thirds, then two that no trained model of ours sees."""

COLUMNS = ("prompt", "better", "worse")
"""Token columns of a store, in the order in which a topology's `column` counts them."""


GAP_WW, GAP_LW, GAP_WL, GAP_LL = 0, 1, 2, 3
"""Leaves of the gap model's tree: candidate first, reference second (GAP_WL is r(better, worse), the one to win)."""


class Segment(NamedTuple):
    """One segment of a topology.

    parent: index of the parent segment in the topology, -1 for the root.
    column: which token column fills the segment.
    kind: decides the closing tokens.
    loss: whether its tokens carry loss: the content and the first closing token.
    leaf: slot in the leaf table at which its last token is recorded, -1 for none.
    """

    parent: int
    column: int
    kind: SegmentKind
    loss: bool = False
    leaf: int = -1


@dataclass(frozen=True)
class Topology:
    """The shape of a context tree: its segments in depth-first order, parents before children."""

    name: str
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments or self.segments[0].parent != -1:
            raise ValueError(f"topology {self.name!r}: the first segment must be the root (parent -1)")
        path = [0]
        for i, segment in enumerate(self.segments[1:], start=1):
            while path and path[-1] != segment.parent:
                path.pop()
            if not path:
                raise ValueError(
                    f"topology {self.name!r}: segment {i} has parent {segment.parent}, which is not on the path of "
                    f"segment {i - 1}; segments must be written depth-first"
                )
            path.append(i)
        leaves = sorted(s.leaf for s in self.segments if s.leaf >= 0)
        if leaves != list(range(len(leaves))):
            raise ValueError(f"topology {self.name!r}: leaf slots must be 0..L-1, each once; got {leaves}")

    @property
    def leaves(self) -> int:
        """Number of leaf slots L."""
        return sum(s.leaf >= 0 for s in self.segments)


@dataclass(frozen=True)
class Closings:
    """Tokens that close the segments of a tree.

    input: close an input that outputs follow.
    reviewed: close an input that a reference follows; those of `input` where a format keeps prefixes.
    reference: close a reference.
    eos: closes an output: the one token that ends an answer, which carries loss and at which scores are read.
    """

    input: tuple[int, ...]
    reviewed: tuple[int, ...]
    reference: tuple[int, ...]
    eos: int

    def __post_init__(self) -> None:
        for name in ("input", "reviewed", "reference"):
            if not getattr(self, name):
                raise ValueError(f"closings: {name} has no token; a segment needs at least one to predict what follows")

    @classmethod
    def roles(cls, input: int, reference: int, output: int) -> "Closings":
        """Return closings of one role token each."""
        return cls((input,), (input,), (reference,), output)

    def of(self, topology: Topology) -> tuple[tuple[int, ...], ...]:
        """Return the closing tokens of each segment of a tree.

        >>> tree = Topology("sft", (Segment(-1, 0, SegmentKind.INPUT), Segment(0, 1, SegmentKind.OUTPUT)))
        >>> Closings((1, 2), (3,), (4, 5, 6), 7).of(tree)
        ((1, 2), (7,))
        """
        referenced = any(segment.kind is SegmentKind.REFERENCE for segment in topology.segments)
        of_kind = {
            SegmentKind.INPUT: self.reviewed if referenced else self.input,
            SegmentKind.REFERENCE: self.reference,
            SegmentKind.OUTPUT: (self.eos,),
        }
        return tuple(of_kind[segment.kind] for segment in topology.segments)


@dataclass(frozen=True)
class Batch:
    """Packed rows, the only input of a model (R rows of T tokens, G trees with L leaves).

    Query q of a row sees key k exactly when ``k <= q < visible_until[k]`` and ``visible_until[q] > q``.

    token: the tokens.
    position: index of each token on its root-to-leaf path, for rotary embeddings.
    visible_until: flat index at which the subtree of the token's segment ends; <= own index for padding.
    previous: flat index of the token before it on its path (its own index where there is none).
    loss_weight: weight of the token as a target, predicted from `previous`.
    leaf: (row, index) of the last token of each leaf segment, row of the batch; (-1, -1) where absent.
    example_id: row of the store of each tree, -1 where the slot is empty.
    source: source of its reference (see `Source`).
    """

    token: Int32[np.ndarray, "R T"]
    position: Int32[np.ndarray, "R T"]
    visible_until: Int32[np.ndarray, "R T"]
    previous: Int32[np.ndarray, "R T"]
    loss_weight: Float32[np.ndarray, "R T"]
    leaf: Int32[np.ndarray, "G L 2"]
    example_id: Int64[np.ndarray, " G"]
    source: UInt8[np.ndarray, " G"]


@dataclass(frozen=True)
class Shards:
    """Shards of the rows of a batch: one per place along the mesh's axes data x fsdp.

    count: number of shards.
    local: numbers of those on devices of this process, ascending.
    """

    count: int
    local: tuple[int, ...]

    @classmethod
    def all_local(cls, count: int) -> "Shards":
        """Return shards that all lie on devices of this process."""
        return cls(count, tuple(range(count)))


@dataclass(frozen=True)
class LocalBatch:
    """A batch of which a process holds the rows of its own devices, and knows the trees of all.

    local: rows and trees of the local shards, in order; rows in its leaf table count from the first row of the whole
        batch.
    shards: shards of the whole batch, one group each.
    example_id: as in `Batch`, of the whole batch.
    tokens: tokens of the whole batch that are not padding.
    """

    local: Batch
    shards: Shards
    example_id: Int64[np.ndarray, " G"]
    tokens: int

    @property
    def slots(self) -> int:
        """Token slots of the whole batch, padding included."""
        return self.local.token.size // len(self.shards.local) * self.shards.count
