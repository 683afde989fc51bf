"""Packing of token sequences into rows in which shared prefixes stand once."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from pit_kernels.trees.planning import plan_rows
from pit_kernels.trees.rows import TreeRows
from pit_kernels.trees.sharing import Sorted, TokenIds, sort_sequences


def pack(sequences: Sequence[TokenIds], *, row_length: int, share: bool = True) -> TreeRows:
    """Return rows that hold every sequence as a path, with common prefixes written once per row.

    Sequences that start alike form a tree, whatever their order. A tree longer than a row is split, and each of its
    pieces repeats the prefixes that it needs. Trees are placed largest first, each into the fullest row that it fits
    into. The rows depend on the set of sequences alone; slot i for paths is sequence i.

    Args:
      sequences: token ids of each sequence, from its first token to its last; equal ones share everything.
      row_length: T, tokens of a row. TPU kernels work on blocks of 128 tokens and pad rows that are no multiple.
      share: whether prefixes are shared; without, the same paths stand apart, for comparison.

    Raises:
      ValueError: if a sequence is empty, has tokens that are no int32 of at least 0, or is longer than a row.

    Example:
      >>> rows = pack([[5, 6, 7], [5, 6, 8, 9]], row_length=6)
      >>> rows.token.tolist(), rows.position.tolist(), rows.visible_until.tolist()
      ([[5, 6, 7, 8, 9, 0]], [[0, 1, 2, 2, 3, 0]], [[5, 5, 3, 5, 5, 0]])
      >>> rows.place.tolist()
      [[0, 1, 2, -1], [0, 1, 3, 4]]
    """
    paths = sort_sequences(sequences)
    longest = int(paths.length.argmax())
    if paths.length[longest] > row_length:
        raise ValueError(
            f"trees.pack: sequence {paths.number[longest]} has {paths.length[longest]} tokens, and row_length is "
            f"{row_length}; a path lies in one row: raise row_length to {paths.length[longest]}, or cut the sequence"
        )
    if not share:
        paths = Sorted(paths.number, paths.tokens, paths.length, np.zeros_like(paths.shared))
    plan = plan_rows(paths.length, paths.shared, row_length)
    rows = _empty(len(plan), row_length, paths)
    for row, of_row in enumerate(plan):
        _write(rows, row, of_row, paths)
    return rows


def _empty(rows: int, row_length: int, paths: Sorted) -> TreeRows:
    """Return rows of padding, with empty tables of paths."""
    count = paths.length.size
    token, position, visible_until = np.zeros((3, rows, row_length), np.int32)
    previous = np.tile(np.arange(row_length, dtype=np.int32), (rows, 1))
    leaf, place = np.full((count, 2), -1, np.int32), np.full((count, paths.length.max()), -1, np.int32)
    return TreeRows(token, position, visible_until, previous, leaf, place, np.arange(count, dtype=np.int32))


def _write(rows: TreeRows, row: int, of_row: Sequence[int], paths: Sorted) -> None:
    """Write the paths of a row, in lexicographic order: each adds what it does not share with the one before it."""
    length = paths.length[list(of_row)]
    # What two paths share is the least of what neighbours between them share.
    between = itertools.pairwise(of_row)
    shared = np.array([0, *(int(paths.shared[before + 1 : after + 1].min()) for before, after in between)])
    start = np.concatenate([[0], np.cumsum(length - shared)])
    # Places of the tokens of the path that was written last: the next one shares the first of them.
    at = np.zeros(int(length.max()), np.int32)
    for path, first, begin, end in zip(of_row, shared.tolist(), start[:-1].tolist(), start[1:].tolist(), strict=True):
        tokens, number = paths.tokens[path], paths.number[path]
        rows.token[row, begin:end] = tokens[first:]
        rows.position[row, begin:end] = np.arange(first, tokens.size)
        rows.previous[row, begin:end] = np.arange(begin - 1, end - 1)
        if begin < end:
            rows.previous[row, begin] = at[first - 1] if first else begin
        at[first : tokens.size] = np.arange(begin, end)
        rows.place[number, : tokens.size] = at[: tokens.size]
        rows.leaf[number] = row, at[tokens.size - 1]
    rows.visible_until[row, : start[-1]] = _subtree_ends(length, shared, start)


def _subtree_ends(
    length: Int[np.ndarray, " p"], shared: Int[np.ndarray, " p"], start: Int[np.ndarray, " q"]
) -> Int32[np.ndarray, " t"]:
    """Return the end of the subtree of every token of a row.

    It is where the first later path starts that leaves before the token: one that shares no more than the tokens
    before it. Paths are read backwards, and `later` holds those that some earlier token may find.

    Args:
      length: tokens of each of the p paths of the row, in lexicographic order.
      shared: length of the prefix that each has in common with the one before it.
      start: where in the row the tokens that each adds start; last the end of the row's tokens (q = p + 1).
    """
    ends = np.zeros(int(start[-1]), np.int32)
    later = [(0, int(start[-1]))]
    for path in range(length.size - 1, -1, -1):
        depth, first, begin = int(length[path]), int(shared[path]), int(start[path])
        while depth > first:
            leaves, where = later[-1]
            upper = max(leaves, first)
            ends[begin + upper - first : begin + depth - first] = where
            depth = upper
            if leaves > first:
                later.pop()
        if later[-1][0] == first:
            later.pop()
        later.append((first, begin))
    return ends
