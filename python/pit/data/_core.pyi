"""The C++ core: random numbers, permutations, curricula, token tables, packing and writing of trees.

Everything is deterministic: the same arguments give the same result on every machine. Array arguments must be
C-contiguous and have exactly the given dtype; nothing is converted. Heavy calls release the GIL.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, final

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8, UInt16, UInt32, UInt64
from typing_extensions import Buffer

from pit.types import Batch

_Stages: TypeAlias = Sequence[tuple[int, Sequence[int]]]

class _ArrowStream(Protocol):
    """Stream of record batches over the Arrow PyCapsule interface, for example a pyarrow.RecordBatchReader."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

class CoreError(ValueError):
    """Bad input to the core; the message gives name, value, rule and remedy."""

def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Return the four 32-bit words of Philox4x32-10 for a counter of four words and a key of two.

    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """

def uniform_below(key: int, stream: int, index: int, n: int) -> int:
    """Return the unbiased number in [0, n) at `index` of a stream; n in [1, 2^64)."""

@final
class Permutation:
    """A keyed bijection of [0, n), n in [0, 2^48], with O(1) time per index and a fixed amount of memory."""

    def __init__(self, n: int, key: int) -> None: ...
    def __len__(self) -> int: ...
    def apply(self, index: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Return the image of each index; raise CoreError for an index outside [0, n)."""

    def invert(self, index: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Return the preimage of each index; raise CoreError for an index outside [0, n)."""

@final
class StagedCurriculum:
    """Curriculum of draws (example, reference source): one permutation per epoch, sources by weights per step.

    Only one thread at a time may use it.

    seed: any 64-bit number.
    examples: number of examples, at least 1.
    stages: (first_step, weights), the first at step 0, increasing; weights[s] is the weight of `pit.types.Source` s.
    """

    def __init__(self, seed: int, examples: int, stages: _Stages) -> None: ...
    def draw(self, step: int, count: int) -> tuple[Int64[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
        """Return the next `count` draws, (example ids, sources), with the weights of `step`."""

    @property
    def draws(self) -> int:
        """Number of draws so far."""

    def state(self) -> bytes:
        """Return the state from which `restore` continues."""

    def restore(self, state: bytes) -> None:
        """Continue from a state; raise CoreError if it is damaged or belongs to other settings."""

@final
class FeedbackCurriculum:
    """Statistics and integer weights of (example, reference source) entries, with weighted draws and feedback.

    Entry e = example * len(sources) + rank of the source takes 12.6 bytes. Each step calls `advance`, then `draw`;
    `update` sends the feedback of each drawn step once, in order. Step s sees the feedback of all steps <= s - lag and
    of no later one. Weights are 0 until assigned; their sum is exact. Only one thread at a time may use it.

    seed: any 64-bit number.
    examples: number of examples, at least 1.
    sources: the values of `pit.types.Source` that can be drawn, increasing.
    lag: delay of the feedback in steps, at least 1.
    memory: trials at which an entry's counts are halved, in [2, 65535].
    config_hash, data_hash: 64-bit hashes that a restored state must match.
    """

    def __init__(
        self,
        *,
        seed: int,
        examples: int,
        sources: Sequence[int],
        lag: int,
        memory: int,
        config_hash: int,
        data_hash: int,
    ) -> None: ...
    @property
    def entries(self) -> int:
        """Number of entries."""

    @property
    def step(self) -> int:
        """Next step to draw."""

    @property
    def update_step(self) -> int:
        """Next step whose feedback is expected."""

    @property
    def total(self) -> int:
        """Sum of all weights."""

    def update(
        self,
        step: int,
        example: Int64[np.ndarray, " n"],
        source: UInt8[np.ndarray, " n"],
        sample: Int32[np.ndarray, " n"],
        gap: Float32[np.ndarray, " n"],
    ) -> None:
        """Accept the gaps of a step's samples, in any order.

        Raise CoreError, and change nothing, for a step that was skipped, sent twice or not drawn, an entry that cannot
        be drawn, a gap that is not finite, or a repeated sample.
        """

    def advance(self) -> Int64[np.ndarray, " n"]:
        """Apply the feedback that `step` may see, and return the changed entries, increasing.

        Raise CoreError if some of that feedback has not arrived.
        """

    def draw(self, count: int) -> tuple[Int64[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
        """Return `count` draws for `step`, (example ids, sources), with replacement, and increment `step`.

        Raise CoreError before `advance`, or if all weights are 0.
        """

    def stats(
        self, entries: Int64[np.ndarray, " n"] | None = None
    ) -> tuple[UInt16[np.ndarray, " n"], UInt16[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Return (trials, wins, mean gap at the last visit) of some entries, or of all."""

    def set_weights(self, entries: Int64[np.ndarray, " n"], weights: UInt32[np.ndarray, " n"]) -> None:
        """Set some weights, O(log entries) each."""

    def assign_weights(self, weights: UInt32[np.ndarray, " entries"]) -> None:
        """Set all weights, O(entries)."""

    def state(self, step: int, notes: Sequence[float]) -> bytes:
        """Return the state from which `restore` continues at `step`, without later draws and the feedback they saw.

        step: at most lag before the next one.
        notes: numbers that the caller wants to keep.
        """

    def restore(self, state: bytes) -> list[float]:
        """Continue from a state, with all weights 0, and return its notes.

        Raise CoreError, and change nothing, if it is damaged or belongs to other settings or other data.
        """

@final
class Topology:
    """The core's copy of a `pit.types.Topology`: one entry per segment, at most 64 segments.

    parents: index of the parent, -1 for the root; segments are in depth-first order.
    columns: token column that fills the segment.
    closings: tokens that close the segment, at least one.
    loss: whether the segment's content and its first closing token carry loss.
    leaf_slots: slot in the leaf table, -1 for none.
    """

    def __init__(
        self,
        parents: Sequence[int],
        columns: Sequence[int],
        closings: Sequence[Sequence[int]],
        loss: Sequence[bool],
        leaf_slots: Sequence[int],
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def leaves(self) -> int:
        """Number of leaf slots L."""

@final
class Plan:
    """The place of every tree of some groups; its arrays are read-only views.

    P trees and Q pieces are listed by group, in the order of their placement; the slot of a tree in its group's part of
    the leaf table is its rank among the trees of the group.
    """

    @property
    def step(self) -> int:
        """Step of the plan; 0 from `plan_trees`."""

    @property
    def groups(self) -> int:
        """Number of groups."""

    @property
    def topology(self) -> Topology:
        """Topology of every tree."""

    @property
    def row_length(self) -> int:
        """T, the tokens of a row."""

    @property
    def rows_per_group(self) -> int:
        """Rows of a group."""

    @property
    def trees_per_group(self) -> int:
        """Leaf-table slots of a group, its maximal number of trees."""

    @property
    def tree_example(self) -> Int64[np.ndarray, " P"]:
        """Row of `lengths` of each tree."""

    @property
    def tree_source(self) -> UInt8[np.ndarray, " P"]:
        """`pit.types.Source` of each tree."""

    @property
    def tree_group(self) -> Int32[np.ndarray, " P"]:
        """Group of each tree."""

    @property
    def piece_tree(self) -> Int32[np.ndarray, " Q"]:
        """Tree of each piece; a piece is a connected part of a tree that lies in one row."""

    @property
    def piece_row(self) -> Int32[np.ndarray, " Q"]:
        """Row of each piece, local to its group."""

    @property
    def piece_start(self) -> Int32[np.ndarray, " Q"]:
        """Index of each piece's first token in its row."""

    @property
    def piece_length(self) -> Int32[np.ndarray, " Q"]:
        """Tokens of each piece, closing tokens included."""

    @property
    def piece_segments(self) -> UInt64[np.ndarray, " Q"]:
        """Bit s: segment s of the topology is in the piece."""

    @property
    def piece_owned(self) -> UInt64[np.ndarray, " Q"]:
        """Bit s: segment s is in the piece and in no earlier piece of its tree; only these carry loss and leaves."""

@final
class Planner:
    """Planner of training steps in order; its draw position and its window are its whole state.

    A segment has the length of its content and its closing tokens. Row by row, the oldest waiting tree
    whose pieces fit in the remaining rows opens the row, then the largest waiting tree that fits follows (the older of
    equal ones), until none fits or the group has `trees_per_group`. A tree longer than a row is split: its tips are
    taken depth-first into pieces of at most a row, each with all its ancestors, one row per piece, all in one group.
    The oldest tree goes first in every group, so a tree is placed at most `window` groups after it is drawn (`window`
    rows if no tree is split). Calls are serialised, so threads may share a planner.

    lengths: content tokens of each column of each example; copied.
    row_length: T, the tokens of a row.
    rows_per_group, trees_per_group: sizes of a group.
    groups_per_step: groups of each plan.
    window: number of drawn trees that wait, in [1, 2^24].
    config_hash, data_hash: 64-bit hashes that a restored state must match.
    stages: as in `StagedCurriculum`; a tree is drawn with the weights of the step that draws it.

    Raise CoreError for an example that fits in no group: a root-to-leaf path longer than a row, or more pieces than a
    group has rows.
    """

    def __init__(
        self,
        lengths: Int32[np.ndarray, "examples columns"],
        topology: Topology,
        *,
        row_length: int,
        rows_per_group: int,
        groups_per_step: int,
        trees_per_group: int,
        window: int,
        seed: int,
        config_hash: int,
        data_hash: int,
        stages: _Stages,
    ) -> None: ...
    def next_step(self) -> Plan:
        """Return the plan of `step`, and increment `step`."""

    @property
    def step(self) -> int:
        """Next step to plan."""

    @property
    def draws(self) -> int:
        """Trees drawn so far, including the waiting ones."""

    def state(self) -> bytes:
        """Return the state from which `restore` continues."""

    def restore(self, state: bytes) -> None:
        """Continue from a state.

        Raise CoreError, and change nothing, if it is damaged or belongs to another config or other data.
        """

def plan_trees(
    lengths: Int32[np.ndarray, "examples columns"],
    topology: Topology,
    *,
    row_length: int,
    rows_per_group: int,
    trees_per_group: int,
) -> Plan:
    """Pack every row of `lengths` once, into as many groups as needed, like a `Planner` whose window holds them all."""

@final
class TokenTable:
    """Token columns, held without a copy.

    columns: the chunks (values i32[], offsets i64[]) of each column: row r of a chunk is
        values[offsets[r]:offsets[r + 1]]. Columns may be chunked differently. The arrays are kept alive and must not
        change. CoreError if an offset decreases or leaves its values, or columns differ in their number of rows.
    """

    def __init__(
        self, columns: Sequence[Sequence[tuple[Int32[np.ndarray, " v"], Int64[np.ndarray, " o"]]]]
    ) -> None: ...
    @staticmethod
    def from_arrow(
        files: Sequence[
            tuple[str, Buffer, _ArrowStream, Int64[np.ndarray, "batches columns 2"], UInt32[np.ndarray, " batches"]]
        ],
        columns: Sequence[str],
        vocab_size: int,
    ) -> TokenTable:
        """Return a table over memory-mapped Arrow files, whose columns are large lists of int32 without nulls.

        Offsets are checked now; tokens and checksum of a record batch when one of its rows is first read.

        files: for each file its name (for messages), its map, its record batches in order as an Arrow C stream, the
            sizes in bytes of each column's buffers of offsets and of values (the stream does not carry them), and for
            each batch the expected CRC-32 over the offsets and values of each column in turn.
        columns: names of the columns, in order.
        vocab_size: tokens are 0..vocab_size - 1.

        Raise CoreError for other columns, nulls, wrong offsets, and buffers that do not fit their sizes or lie outside
        the map (as the decompressed copies of compressed files do).
        """

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def columns(self) -> int:
        """Number of columns."""

    def lengths(self) -> Int32[np.ndarray, "rows columns"]:
        """Return the number of tokens of every row and column, which a planner needs."""

    def row(self, row: int) -> list[Int32[np.ndarray, " tokens"]]:
        """Return the tokens of a row, one read-only view per column.

        Raise IndexError if there is no such row, CoreError if its record batch is damaged.
        """

    def verify(self) -> None:
        """Verify every record batch again, and raise CoreError if one is damaged; arrays in memory need no check."""

    def edit_distances(self, a: int, b: int) -> Int32[np.ndarray, " rows"]:
        """Return the Levenshtein distance, in tokens, of each row of column `a` to the same row of column `b`."""

def materialise(
    plan: Plan,
    first_group: int,
    last_group: int,
    table: TokenTable,
    *,
    pad: int,
    threads: int = 1,
    out: Batch,
) -> None:
    """Write groups [first_group, last_group) of a plan into the arrays of `out`, every element of them.

    With n groups, R = n * rows_per_group and G = n * trees_per_group; the plan gives T and L. Padding has token `pad`,
    position 0, visible_until 0, previous = its index, weight 0; an unused tree slot has leaf (-1, -1), example -1,
    source 0. The row of a leaf counts from the first row of `out`. Loss weight is 1 on the tokens of owned segments
    with loss, up to the first closing token, except for the first token of a tree.

    pad: token id of padding.
    threads: number of threads, in [1, 256]; the result does not depend on it.
    out: any object with the fields of `pit.types.Batch`, C-contiguous and writable.

    Raise CoreError for a group range outside the plan, a shape or a table that does not fit it, and a number of threads
    out of range; `out` may then be partly written.
    """
