"""Other packers of trees, for comparison: the core's rule in NumPy, Grain's packers, first-fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from pit.data.packing import Layout, empty_batch
from pit.types import Batch, Topology


@dataclass
class NumpyPacker:
    """Packer with the core's rule in vectorised NumPy, for trees that fit in a row; its batches equal the core's.

    A choice examines the whole window in a few array operations; a dozen more write a batch, without a loop over
    tokens, trees or rows.

    Attributes:
        topology, layout: topology of the trees, and shape of a group.
        lengths: [example, column], content tokens.
        values, offsets: tokens of all columns, concatenated, and the start of each (example, column) in them.
        draws: examples in the order in which they enter the window.
        window: number of waiting trees.
    """

    topology: Topology
    layout: Layout
    lengths: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    draws: np.ndarray
    window: int

    @classmethod
    def over(
        cls,
        topology: Topology,
        layout: Layout,
        columns: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
        lengths: np.ndarray,
        draws: np.ndarray,
        window: int,
    ) -> "NumpyPacker":
        """Return the packer of token columns of one chunk each."""
        # A segment's closing token is read one past its content, so one more value must follow the last content.
        values = np.concatenate([column[0][0] for column in columns] + [np.zeros(1, np.int32)])
        ends = np.cumsum([0, *(len(column[0][0]) for column in columns)])
        offsets = np.stack([column[0][1][:-1] + end for column, end in zip(columns, ends, strict=False)], axis=1)
        return cls(topology, layout, lengths, values, offsets, draws, window)

    def __post_init__(self) -> None:
        self._columns = np.array([s.column for s in self.topology.segments])
        self._totals = (self.lengths[:, self._columns] + 1).sum(axis=1)
        self._drawn = self.window
        self._waiting = self.draws[: self.window].copy()
        self._age = np.arange(self.window)
        self._tokens = self._totals[self._waiting]
        # ancestors[s, a]: a is a proper ancestor of s.
        count = len(self.topology.segments)
        self._ancestors = np.zeros((count, count), np.int64)
        for s, segment in enumerate(self.topology.segments):
            if segment.parent >= 0:
                self._ancestors[s] = self._ancestors[segment.parent]
                self._ancestors[s, segment.parent] = 1

    def _take(self, slot: int) -> int:
        """Remove and return the tree in a slot of the window, and put the next draw there."""
        tree = int(self._waiting[slot])
        fresh = self.draws[self._drawn]
        self._waiting[slot], self._age[slot] = fresh, self._drawn
        self._tokens[slot] = self._totals[fresh]
        self._drawn += 1
        return tree

    def _choose(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return example, row and start of each tree of the next group."""
        placed: list[tuple[int, int, int]] = []
        for row in range(self.layout.rows):
            filled = 0
            slot = int(self._age.argmin())
            while len(placed) < self.layout.trees:
                example = self._take(slot)
                placed.append((example, row, filled))
                filled += int(self._totals[example])
                fitting = np.where(self._tokens <= self.layout.row_length - filled, self._tokens, -1)
                best = fitting.max()
                if best < 0:
                    break
                equals = np.flatnonzero(fitting == best)
                slot = int(equals[self._age[equals].argmin()])
        example, row_, start = np.array(placed).T
        return example, row_, start

    def next(self) -> Batch:
        """Return the next group as a batch."""
        example, row, start = self._choose()
        segments = self.topology.segments
        length = self.lengths[example][:, self._columns] + 1
        begin = start[:, None] + np.cumsum(length, axis=1) - length
        last = begin + length - 1
        parent = np.array([max(s.parent, 0) for s in segments])
        previous = np.where([s.parent < 0 for s in segments], begin, last[:, parent])
        position = length @ self._ancestors.T
        until = begin + length + length @ self._ancestors
        source = self.offsets[example][:, self._columns]
        batch = self._blank()
        flat = {name: getattr(batch, name).reshape(-1) for name in ("token", "position", "visible_until", "previous")}
        loss_weight = batch.loss_weight.reshape(-1)
        first = (row[:, None] * self.layout.row_length + begin).ravel()
        count = length.ravel()
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        to = np.repeat(first, count) + within
        flat["token"][to] = self.values[np.repeat(source.ravel(), count) + within]
        flat["token"][first + count - 1] = np.tile(np.concatenate(self.layout.closings.of(self.topology)), len(example))
        flat["position"][to] = np.repeat(position.ravel(), count) + within
        flat["visible_until"][to] = np.repeat(until.ravel(), count)
        flat["previous"][to] = np.repeat(begin.ravel() - 1, count) + within
        flat["previous"][first] = previous.ravel()
        loss_weight[to] = np.repeat(np.tile([float(s.loss) for s in segments], len(example)), count)
        loss_weight[row * self.layout.row_length + start] = 0
        slots = np.array([s.leaf for s in segments])
        leaves = np.flatnonzero(slots >= 0)
        batch.leaf[: len(example), slots[leaves], 0] = row[:, None]
        batch.leaf[: len(example), slots[leaves], 1] = last[:, leaves]
        batch.example_id[: len(example)] = example
        return batch

    def _blank(self) -> Batch:
        batch = empty_batch(1, self.topology, self.layout)
        batch.token[:] = self.layout.pad
        for zero in (batch.position, batch.visible_until, batch.loss_weight, batch.source):
            zero[:] = 0
        batch.previous[:] = np.arange(self.layout.row_length)
        batch.leaf[:] = -1
        batch.example_id[:] = -1
        return batch


def grain_rows(
    elements: Sequence[np.ndarray], kind: str, row_length: int, bins: int
) -> Iterator[dict[str, np.ndarray]]:
    """Return the rows of a packer of Grain for token arrays: "first_fit", "best_fit" or "concat_then_split"."""
    parent = grain.MapDataset.source(elements).map(_as_feature).to_iter_dataset(grain.ReadOptions(num_threads=0))
    lengths = {"token": row_length}
    if kind == "concat_then_split":
        return iter(grain.experimental.ConcatThenSplitIterDataset(parent, length_struct=lengths))
    packers = {
        "first_fit": grain.experimental.FirstFitPackIterDataset,
        "best_fit": grain.experimental.BestFitPackIterDataset,
    }
    return iter(packers[kind](parent, length_struct=lengths, num_packing_bins=bins, shuffle_bins=False))


def _as_feature(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"token": tokens}


def grain_fill(totals: np.ndarray, kind: str, row_length: int, bins: int) -> float:
    """Return the share of token slots that a packer of Grain fills."""
    elements = [np.ones(total, np.int32) for total in totals]
    rows = filled = 0
    for row in grain_rows(elements, kind, row_length, bins):
        rows += 1
        filled += int((row["token_segment_ids"] > 0).sum())
    return filled / (rows * row_length)


def first_fit_fill(totals: np.ndarray, row_length: int) -> float:
    """Return the share of token slots that first-fit fills if every row of the epoch stays open."""
    room = np.full(len(totals), row_length)
    for total in totals:
        room[int((room >= total).argmax())] -= total
    used = int((room < row_length).sum())
    return float(totals.sum() / (used * row_length))


def other_fills(totals: np.ndarray, row_length: int) -> dict[str, float]:
    """Return the fill of every other packer, for sequences in the given order."""
    fills = {"first_fit": first_fit_fill(totals, row_length)}
    for kind in ("first_fit", "best_fit"):
        for bins in (32, 1024):
            fills[f"grain_{kind}_{bins}"] = grain_fill(totals, kind, row_length, bins)
    fills["grain_concat_then_split"] = grain_fill(totals, "concat_then_split", row_length, 0)
    return {name: round(fill, 5) for name, fill in fills.items()}
