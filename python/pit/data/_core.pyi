"""The C++ core: random numbers, permutations, the curriculum, planning and writing of packed trees.

Everything is deterministic: the same arguments give the same result on every machine. Array arguments must be
C-contiguous and of exactly the dtype named here; nothing is converted. Heavy calls release the GIL.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, final

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8, UInt16, UInt32, UInt64
from typing_extensions import Buffer

from pit.types import Batch

_Stages: TypeAlias = Sequence[tuple[int, Sequence[int]]]

class _ArrowStream(Protocol):
    """Record batches over the Arrow PyCapsule interface, for example a pyarrow.RecordBatchReader."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

class CoreError(ValueError):
    """Bad input to the core; the message names the thing, its value, the rule and the remedy."""

def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10: four 32-bit words from a counter of four and a key of two (Salmon et al., SC 2011)."""

def uniform_below(key: int, stream: int, index: int, n: int) -> int:
    """The number in [0, n) at `index` of a stream, without bias; n in [1, 2^64)."""

@final
class Permutation:
    """A keyed bijection of [0, n), n in [0, 2^48], at O(1) time an index and a fixed amount of memory."""

    def __init__(self, n: int, key: int) -> None: ...
    def __len__(self) -> int: ...
    def apply(self, index: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Where each index goes; CoreError for one outside [0, n)."""

    def invert(self, index: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """The inverse of `apply`."""

@final
class StagedCurriculum:
    """Draws (example, reference source): a fresh permutation each epoch, sources from integer weights by step.

    One thread at a time may use it.

    seed: any 64-bit number.
    examples: how many there are, at least 1.
    stages: (first_step, weights), the first at step 0, increasing; weights[s] is the weight of `pit.types.Source` s.
    """

    def __init__(self, seed: int, examples: int, stages: _Stages) -> None: ...
    def draw(self, step: int, count: int) -> tuple[Int64[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
        """The next `count` draws, (example ids, sources), with the weights of `step`."""

    @property
    def draws(self) -> int:
        """Number of draws so far."""

    def state(self) -> bytes:
        """What `restore` needs to go on from here."""

    def restore(self, state: bytes) -> None:
        """Goes on from a state; CoreError if it is damaged or of other settings."""

@final
class FeedbackCurriculum:
    """A table of what was seen of each (example, reference source), integer weights, and weighted draws with feedback.

    Entry e is (example, source) with e = example * len(sources) + rank of the source; 12.6 bytes each. Steps follow
    one another: `advance`, `draw`, and so on; `update` sends the feedback of each drawn step once, in order. Step s
    sees the feedback of all steps <= s - lag and of no later one. Weights are 0 until assigned; their sum is exact. One
    thread at a time may use it.

    seed: any 64-bit number.
    examples: how many there are, at least 1.
    sources: the values of `pit.types.Source` that can be drawn, increasing.
    lag: steps after which feedback is seen, at least 1.
    memory: trials at which an entry's counts are halved, in [2, 65535].
    config_hash, data_hash: 64-bit hashes that a restored state must agree with.
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
        """The step that is drawn next."""

    @property
    def update_step(self) -> int:
        """The step whose feedback is expected next."""

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
        """Takes the gaps of a step's samples, in any order; CoreError, and no change, for a step skipped, sent twice or
        not drawn yet, an entry that cannot be drawn, a gap that is not finite, or a sample given twice.
        """

    def advance(self) -> Int64[np.ndarray, " n"]:
        """Applies what `step` may see, gives the entries that changed, increasing; CoreError if it has not arrived."""

    def draw(self, count: int) -> tuple[Int64[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
        """`count` draws for `step`, (example ids, sources), with replacement, after `advance`; ends the step."""

    def seen(
        self, entries: Int64[np.ndarray, " n"] | None = None
    ) -> tuple[UInt16[np.ndarray, " n"], UInt16[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """(trials, wins, mean gap at the last visit) of some entries, or of all."""

    def set_weights(self, entries: Int64[np.ndarray, " n"], weights: UInt32[np.ndarray, " n"]) -> None:
        """Changes some weights, O(log entries) each."""

    def assign_weights(self, weights: UInt32[np.ndarray, " entries"]) -> None:
        """Sets all weights, O(entries)."""

    def state(self, step: int, notes: Sequence[float]) -> bytes:
        """What `restore` needs to go on from `step`, at most lag before the one that is drawn next; later draws and
        what they saw are left out. notes: numbers of the caller's own.
        """

    def restore(self, state: bytes) -> list[float]:
        """Goes on from a state, with all weights 0, and gives its notes; CoreError, and no change, if it is damaged or
        of other settings or other data.
        """

@final
class Topology:
    """The core's copy of a `pit.types.Topology`: one entry a segment, at most 64 segments.

    parents: index of the parent, -1 for the root; segments are in depth-first order.
    columns: token column that fills the segment.
    kinds: `pit.types.SegmentKind`.
    loss: whether the segment's tokens carry loss.
    leaf_slots: slot in the leaf table, -1 for none.
    """

    def __init__(
        self,
        parents: Sequence[int],
        columns: Sequence[int],
        kinds: Sequence[int],
        loss: Sequence[bool],
        leaf_slots: Sequence[int],
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def leaves(self) -> int:
        """Number of leaf slots L."""

@final
class Plan:
    """Where every tree of some groups lies; its arrays are read-only views.

    P trees and Q pieces are listed group by group in the order of their placement; the slot of a tree in its group's
    part of the leaf table is its rank among the trees of the group.
    """

    @property
    def step(self) -> int:
        """The step that is planned; 0 from `plan_trees`."""

    @property
    def groups(self) -> int:
        """Number of groups."""

    @property
    def topology(self) -> Topology:
        """The topology of every tree."""

    @property
    def row_length(self) -> int:
        """T, tokens of a row."""

    @property
    def rows_per_group(self) -> int:
        """Rows of a group."""

    @property
    def trees_per_group(self) -> int:
        """Leaf-table slots of a group, the most trees it holds."""

    @property
    def tree_example(self) -> Int64[np.ndarray, " P"]:
        """Row of `lengths` each tree is made from."""

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
        """Bit s: segment s is in the piece and in no earlier one of its tree; only these carry loss and leaves."""

@final
class Planner:
    """Plans training steps one after another; its draw position and its window are its whole state.

    A segment has its content's length + 1 tokens (the closing role token). Row by row, the oldest waiting tree whose
    pieces fit in the rows left opens the row, then the largest waiting tree that fits follows (the older of equals),
    until none fits or the group has `trees_per_group`. A tree longer than a row is split: its tips are taken
    depth-first into pieces of at most a row, each with all its ancestors, one row a piece, all in one group. The
    oldest tree goes first in every group, so a tree is placed at most `window` groups after it is drawn (`window` rows
    where no tree is split). Calls are serialised, so threads may share a planner.

    lengths: content tokens of each column of each example; copied.
    row_length: T. rows_per_group, trees_per_group: sizes of a group. groups_per_step: groups of each plan.
    window: how many drawn trees wait, in [1, 2^24].
    config_hash, data_hash: 64-bit hashes that a restored state must agree with.
    stages: as in `StagedCurriculum`; a tree is drawn with the weights of the step that draws it.

    Raises CoreError for an example that fits in no group: a root-to-leaf path longer than a row, or more pieces than
    a group has rows.
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
        """The plan of `step`, after which `step` is one more."""

    @property
    def step(self) -> int:
        """The step that is planned next."""

    @property
    def draws(self) -> int:
        """Trees drawn so far, those that wait included."""

    def state(self) -> bytes:
        """What `restore` needs to go on from here."""

    def restore(self, state: bytes) -> None:
        """Goes on from a state; CoreError, and no change, if it is damaged or of another config or other data."""

def plan_trees(
    lengths: Int32[np.ndarray, "examples columns"],
    topology: Topology,
    *,
    row_length: int,
    rows_per_group: int,
    trees_per_group: int,
) -> Plan:
    """Packs every row of `lengths` once, into as many groups as it takes, as `Planner` with a window of all of them."""

@final
class TokenTable:
    """Token columns held without a copy.

    columns: for each column its chunks (values i32[], offsets i64[]): row r of a chunk is
        values[offsets[r]:offsets[r + 1]]. Columns may be chunked differently. The arrays are kept alive and must not
        change. CoreError if an offset decreases or leaves its values, or columns differ in rows.
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
        """A table over memory-mapped Arrow files, whose columns are large lists of int32 without nulls.

        Offsets are checked now; tokens and checksum of a record batch when one of its rows is first read.

        files: for each its name (for messages), its map, its record batches in order as an Arrow C stream, the sizes
            in bytes of each column's buffers of offsets and of values (the stream carries none), and for each batch
            the expected CRC-32 over the offsets and values of each column in turn.
        columns: names of the columns, in order.
        vocab_size: tokens are 0..vocab_size - 1.

        Raises CoreError for other columns, nulls, wrong offsets, and buffers that do not fit their sizes or lie
        outside the map (those of compressed files are copies on the heap).
        """

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def columns(self) -> int:
        """Number of columns."""

    def lengths(self) -> Int32[np.ndarray, "rows columns"]:
        """Tokens of every row of every column, what planning wants."""

    def row(self, row: int) -> list[Int32[np.ndarray, " tokens"]]:
        """Tokens of one row, one read-only view a column; IndexError for no such row, CoreError for a damaged batch."""

    def verify(self) -> None:
        """Verifies every record batch again; CoreError if one is damaged. Arrays in memory have nothing to verify."""

    def edit_distances(self, a: int, b: int) -> Int32[np.ndarray, " rows"]:
        """Levenshtein distance, in tokens, of each row of column `a` to the same row of column `b`."""

def materialise(
    plan: Plan,
    first_group: int,
    last_group: int,
    table: TokenTable,
    *,
    closing: Sequence[int],
    pad: int,
    threads: int = 1,
    out: Batch,
) -> None:
    """Writes groups [first_group, last_group) of a plan into the arrays of `out`, every element of them.

    With n groups, R = n * rows_per_group and G = n * trees_per_group; T, L are the plan's. Padding has token `pad`,
    position 0, visible_until 0, previous = own index, weight 0; an unused tree slot has leaf (-1, -1), example -1,
    source 0. A leaf's row counts from the first row of `out`. Loss weight is 1 on the tokens of owned segments with
    loss (closing token included), but for the first token of a tree.

    closing: token id that closes a segment, by `pit.types.SegmentKind`.
    threads: how many share the rows, in [1, 256]; what is written does not depend on it.
    out: any object with the fields of `pit.types.Batch`, C-contiguous and writable.

    Raises CoreError for a group range, a shape or a table that is not the plan's, and for a number of threads that is
    out of range; `out` may then be partly written.
    """
