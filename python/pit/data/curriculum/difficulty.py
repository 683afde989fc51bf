"""Difficulty of an example before any training: raw measures of a fold, and their ranks."""

import numpy as np
from jaxtyping import Float32, Float64

from pit.data.edit import column_similarity
from pit.data.store import Fold
from pit.types import COLUMNS


def ranks(values: Float64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Return the rank of each value, from the smallest (0) to the largest (1); equal values share their mean rank.

    Example:
        >>> ranks(np.array([3.0, 1.0, 1.0, 9.0]))
        array([0.6666667 , 0.16666667, 0.16666667, 1.        ], dtype=float32)
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean = (last - 1 + last - count) / 2.0
    return np.asarray(mean[place] / max(len(values) - 1, 1), np.float32)


def tree_length(fold: Fold) -> Float64[np.ndarray, " n"]:
    """Return the number of tokens of the prompt and both answers of each row: long examples count as hard."""
    return np.asarray(fold.lengths().sum(axis=1), np.float64)


def answer_similarity(fold: Fold) -> Float64[np.ndarray, " n"]:
    """Return the edit similarity of the two answers of each row, in tokens: similar pairs count as hard."""
    return column_similarity(fold.table, COLUMNS.index("better"), COLUMNS.index("worse"))
