"""Obvious and slow Python twins of the C++ core, written from its contract; the tests compare the two exactly."""

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

from pit.types import Batch, Topology

MASK32 = 2**32 - 1
MASK64 = 2**64 - 1
EPOCH_KEY, ROUND_KEY, SOURCE, SHUFFLE = 0, 1, 2, 4


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK32, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


def random_bits(key, stream, index, attempt=0):
    out = philox([index & MASK32, index >> 32, attempt, stream], [key & MASK32, key >> 32])
    return out[1] << 32 | out[0]


def uniform_below(key, stream, index, n):
    attempt = 0
    while True:
        product = random_bits(key, stream, index, attempt) * n
        if product % 2**64 >= 2**64 % n:
            return product >> 64
        attempt += 1


def _mix(x, before, between):
    x = (x ^ before) * 0xD2511F53 & MASK32
    x ^= x >> 15
    return (x + between) * 0xCD9E8D57 & MASK32


@cache
def _shuffled(n, key):
    out = list(range(n))
    for i in reversed(range(1, n)):
        place = uniform_below(key, SHUFFLE, i, i + 1)
        out[i], out[place] = out[place], out[i]
    return out


def permute(n, key, index):
    if n <= 256:
        return _shuffled(n, key)[index]
    bits = (n - 1).bit_length() // 2
    left_size = -(-n // 2**bits)
    words = [random_bits(key, ROUND_KEY, r) for r in range(8)]
    keys = [(word & MASK32, word >> 32) for word in words]
    while True:
        left, right = divmod(index, 2**bits)
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            left = (left + (_mix(right, *first) * left_size >> 32)) % left_size
            right ^= _mix(left, *second) >> 32 - bits
        index = left * 2**bits + right
        if index < n:
            return index


def draw(seed, examples, stages, k, step):
    """Draw k, made at `step`: (example, source)."""
    epoch, place = divmod(k, examples)
    example = permute(examples, random_bits(seed, EPOCH_KEY, epoch), place)
    weights = [w for first, w in stages if first <= step][-1]
    outcomes = uniform_below(seed, SOURCE, k, sum(weights))
    for source, weight in enumerate(weights):
        if outcomes < weight:
            return example, source
        outcomes -= weight
    raise AssertionError("weights do not add up")


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def path(topology: Topology, segment):
    out = []
    while segment >= 0:
        out.append(segment)
        segment = topology.segments[segment].parent
    return out


def tips(topology: Topology):
    parents = {s.parent for s in topology.segments}
    return [i for i in range(len(topology.segments)) if i not in parents]


def split(topology: Topology, lengths, row_length):
    """Pieces of a tree: (segments, owned segments) as sets; `lengths` are those of its segments."""
    pieces, covered = [set()], set()
    owned = [set()]
    for tip in tips(topology):
        bigger = pieces[-1] | set(path(topology, tip))
        if sum(lengths[s] for s in bigger) > row_length:
            pieces.append(set())
            owned.append(set())
            bigger = set(path(topology, tip))
        owned[-1] |= bigger - covered
        pieces[-1] = bigger
        covered |= bigger
    return list(zip(pieces, owned, strict=True))


class Placed(NamedTuple):
    """A placed piece: the fields of a core Plan, one record per piece."""

    tree: int
    group: int
    row: int
    start: int
    length: int
    segments: frozenset[int]
    owned: frozenset[int]


@dataclass
class TwinPlan:
    trees: list[tuple[int, int, int]] = field(default_factory=list)  # (example, source, group)
    pieces: list[Placed] = field(default_factory=list)


@dataclass
class Packer:
    """Fills groups from a window, a list of (example, source) from the oldest to the youngest."""

    topology: Topology
    lengths: np.ndarray
    row_length: int
    rows_per_group: int
    trees_per_group: int
    window: list[tuple[int, int]] = field(default_factory=list)
    closings: tuple[tuple[int, ...], ...] = ((3,), (4,), (5,))

    def refill(self):
        pass

    def segments(self, example):
        return [int(self.lengths[example, s.column]) + len(self.closings[s.kind]) for s in self.topology.segments]

    def total(self, tree):
        return sum(self.segments(tree[0]))

    def pieces(self, tree):
        return split(self.topology, self.segments(tree[0]), self.row_length)

    def place(self, tree, group, row, filled, plan):
        plan.trees.append((*tree, group))
        for i, (segments, owned) in enumerate(self.pieces(tree)):
            length = sum(self.segments(tree[0])[s] for s in segments)
            start = filled[row + i]
            index = len(plan.trees) - 1
            plan.pieces.append(Placed(index, group, row + i, start, length, frozenset(segments), frozenset(owned)))
            filled[row + i] += length
        self.window.remove(tree)

    def fill_group(self, group, plan):
        filled = [0] * self.rows_per_group
        first = len(plan.trees)
        for row in range(self.rows_per_group):
            if len(plan.trees) - first == self.trees_per_group:
                break
            if filled[row] == 0:
                self.refill()
                fitting = [t for t in self.window if len(self.pieces(t)) <= self.rows_per_group - row]
                if not fitting:
                    break
                self.place(fitting[0], group, row, filled, plan)
            while len(plan.trees) - first < self.trees_per_group:
                self.refill()
                fitting = [t for t in self.window if self.total(t) <= self.row_length - filled[row]]
                if not fitting:
                    break
                # max returns the first of equals, which is the oldest.
                self.place(max(fitting, key=self.total), group, row, filled, plan)


@dataclass
class TwinPlanner(Packer):
    groups_per_step: int = 1
    window_size: int = 1
    seed: int = 0
    stages: list[tuple[int, list[int]]] = field(default_factory=list)
    step: int = 0
    draws: int = 0

    def refill(self):
        while len(self.window) < self.window_size:
            self.window.append(draw(self.seed, len(self.lengths), self.stages, self.draws, self.step))
            self.draws += 1

    def next_step(self):
        plan = TwinPlan()
        for group in range(self.groups_per_step):
            self.fill_group(group, plan)
        self.step += 1
        return plan


def empty_batch(groups, plan):
    """Arrays of the right shapes for `groups` groups, filled with a value that no batch holds."""
    rows, trees = groups * plan.rows_per_group, groups * plan.trees_per_group
    shape = (rows, plan.row_length)
    return Batch(
        token=np.full(shape, -77, np.int32),
        position=np.full(shape, -77, np.int32),
        visible_until=np.full(shape, -77, np.int32),
        previous=np.full(shape, -77, np.int32),
        loss_weight=np.full(shape, np.nan, np.float32),
        leaf=np.full((trees, plan.topology.leaves, 2), -77, np.int32),
        example_id=np.full(trees, -77, np.int64),
        source=np.full(trees, 77, np.uint8),
    )


def _descendants(topology, segment):
    return {s for s in range(len(topology.segments)) if segment in path(topology, s)}


def _fill_piece(batch, piece, row, slot, topology, contents, closings):
    """Write a piece segment by segment; `contents[s]` are the content tokens of segment s."""
    spans, at = {}, piece.start
    for s in sorted(piece.segments):
        spans[s] = range(at, at + len(contents[s]) + len(closings[topology.segments[s].kind]))
        at = spans[s].stop
    for s, span in spans.items():
        segment = topology.segments[s]
        route = [i for a in reversed(path(topology, s)) for i in spans[a]]  # flat indices from the root to here
        for i, token in zip(span, [*contents[s], *closings[segment.kind]], strict=True):
            place = route.index(i)
            batch.token[row, i] = token
            batch.position[row, i] = place
            batch.visible_until[row, i] = max(spans[d].stop for d in _descendants(topology, s) & piece.segments)
            batch.previous[row, i] = route[place - 1] if place > 0 else i
            # The model writes the content and the first closing token; the rest is the format's.
            written = i - span.start <= len(contents[s])
            batch.loss_weight[row, i] = float(segment.loss and s in piece.owned and place > 0 and written)
        if s in piece.owned and segment.leaf >= 0:
            batch.leaf[slot, segment.leaf] = (row, span.stop - 1)


def materialise(plan, twin: TwinPlan, first, last, topology, contents, closings, pad):
    """Return the batch of groups [first, last); `contents(example)` are the content tokens of its segments."""
    batch = empty_batch(last - first, plan)
    batch.token[:] = pad
    batch.position[:] = 0
    batch.visible_until[:] = 0
    batch.previous[:] = np.arange(plan.row_length)
    batch.loss_weight[:] = 0
    batch.leaf[:] = -1
    batch.example_id[:] = -1
    batch.source[:] = 0
    slots, used = {}, dict.fromkeys(range(first, last), 0)
    for index, (example, source, group) in enumerate(twin.trees):
        if first <= group < last:
            slots[index] = (group - first) * plan.trees_per_group + used[group]
            used[group] += 1
            batch.example_id[slots[index]] = example
            batch.source[slots[index]] = source
    for piece in twin.pieces:
        if piece.tree in slots:
            row = (piece.group - first) * plan.rows_per_group + piece.row
            example = twin.trees[piece.tree][0]
            _fill_piece(batch, piece, row, slots[piece.tree], topology, contents(example), closings)
    return batch
