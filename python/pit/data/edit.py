"""Edit similarity of token or word sequences, computed by the C++ core.

It is 1 - Levenshtein distance / length of the longer sequence: 1 for equal sequences, 0 where no item is in common.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from pit.data import _core
from pit.data.packing import token_table
from pit.data.tokens import Tokens

Items = Sequence[int | str] | np.ndarray
"""Token ids or words; only their equality counts."""


def edit_similarity(first: Tokens | Sequence[Items], second: Tokens | Sequence[Items]) -> Float64[np.ndarray, " n"]:
    """Return the edit similarity of each pair (first[i], second[i]), in [0, 1]; 1 for two empty sequences.

    Args:
        first: n sequences of token ids or words.
        second: n sequences; insertions, deletions and replacements that turn one into the other count 1 each.

    Raises:
        ValueError: the numbers of sequences differ.

    >>> edit_similarity([[1, 2, 3], [], [4]], [[1, 3], [], [5]]).round(3).tolist()
    [0.667, 1.0, 0.0]
    >>> edit_similarity(["a b c d".split()], ["a b c x".split()]).tolist()
    [0.75]
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} sequences to compare with {len(second)}; give as many of each")
    if isinstance(first, Tokens) and isinstance(second, Tokens):
        return column_similarity(token_table([first, second]), 0, 1)
    numbers: dict[Any, int] = {}
    return column_similarity(_core.TokenTable([[_column(first, numbers)], [_column(second, numbers)]]), 0, 1)


def column_similarity(table: _core.TokenTable, a: int, b: int) -> Float64[np.ndarray, " rows"]:
    """Return the edit similarity of each row of column `a` to the same row of column `b`.

    Raises:
        CoreError: no such column.
    """
    longest = np.maximum(table.lengths()[:, [a, b]].max(axis=1), 1)
    similarity: np.ndarray = 1.0 - table.edit_distances(a, b) / longest
    return similarity


def _column(sequences: Tokens | Sequence[Items], numbers: dict[Any, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return one column as values and offsets, items replaced by numbers in the order of their first appearance."""
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    items = (numbers.setdefault(item, len(numbers)) for sequence in sequences for item in sequence)
    return np.fromiter(items, np.int32, int(offsets[-1])), offsets
