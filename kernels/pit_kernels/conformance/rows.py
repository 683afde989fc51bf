"""Rows of context trees to judge attention on, as `visible_until` of segments written one after another."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

LENGTHS = (1, 1, 2, 3, 17, 60, 127, 128, 129)
"""Lengths of segments that reveal mistakes: one token, and about a block."""


def write_segments(tokens: int, segments: Sequence[tuple[int, int, bool]]) -> Int32[np.ndarray, " T"]:
    """Return `visible_until` of segments (depth, length, is_padding) written one after another, cut off at T tokens.

    A segment's subtree ends where the next segment of the same or a smaller depth starts. Padding belongs to no tree
    and ends none: it may lie inside one, as in the classic layout of fixed slots.

    Example:
      >>> write_segments(6, [(0, 2, False), (1, 1, False), (1, 2, False), (0, 1, True)]).tolist()
      [6, 6, 3, 6, 6, 0]
    """
    until = np.zeros(tokens, np.int32)
    open_segments: list[tuple[int, int, int]] = []
    position = 0

    def close(depth: int) -> None:
        while open_segments and open_segments[-1][0] >= depth:
            _, start, end = open_segments.pop()
            until[start:end] = position

    for depth, length, is_padding in segments:
        end = min(position + length, tokens)
        if not is_padding:
            close(depth)
            open_segments.append((depth, position, end))
        position = end
    close(0)
    return until


def path_positions(until: Int32[np.ndarray, " T"]) -> Int32[np.ndarray, " T"]:
    """Return the position of each token on its path, the number of other tokens that it sees; 0 in padding.

    Example:
      >>> path_positions(write_segments(6, [(0, 2, False), (1, 1, False), (1, 2, False), (0, 1, True)])).tolist()
      [0, 1, 2, 2, 3, 0]
    """
    index = np.arange(until.size)
    alive = until > index
    seen = (index[None, :] < index[:, None]) & (index[:, None] < until[None, :]) & alive[:, None]
    positions: Int32[np.ndarray, " T"] = seen.sum(axis=1).astype(np.int32)
    return positions


def named_rows(tokens: int) -> dict[str, list[tuple[int, int, bool]]]:
    """Return rows, each for one kind of mistake, as segments for `write_segments`."""
    return {
        "one tree fills the row": [(0, tokens, False)],
        "all padding": [(0, tokens, True)],
        "deep: each token a child of the one before": [(depth, 1, False) for depth in range(tokens)],
        "wide: one root token and leaves of one token": [(0, 1, False)] + [(1, 1, False)] * (tokens - 1),
        "every token its own tree": [(0, 1, False)] * tokens,
        "segments of 127, 128 and 129": [
            (0, 127, False),
            (1, 128, False),
            (1, 129, False),
            (0, 1, False),
            (0, tokens - 386, False),
        ],
        "packed sequences with padding at the end": [(0, 127, False), (0, 129, False), (0, 130, False)],
        "a tree starts after padding of more than a block": [
            (0, 129, True),
            (0, 60, False),
            (1, 60, False),
            (1, 51, False),
        ],
    }


def is_packed(row: Int32[np.ndarray, " T"]) -> bool:
    """Return whether segment ids can express a row: its trees are single segments, with padding at the end only."""
    alive = row > np.arange(row.size)
    count = int(alive.sum())
    if not alive[:count].all():
        return False
    starts = np.flatnonzero(np.diff(row[:count], prepend=-1))
    return bool(np.array_equal(row[starts], np.append(starts[1:], count))) if count else True
