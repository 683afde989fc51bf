"""How hard an example is before anything was tried: raw measures of a fold, and their ranks."""

import numpy as np
from jaxtyping import Float32, Float64

from pit.data.store import Fold
from pit.types import COLUMNS


def ranks(values: Float64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Place of each value in their order, from the smallest (0) to the largest (1); equal values share their mean.

    Example:
        >>> ranks(np.array([3.0, 1.0, 1.0, 9.0]))
        array([0.6666667 , 0.16666667, 0.16666667, 1.        ], dtype=float32)
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean = (last - 1 + last - count) / 2.0
    return np.asarray(mean[place] / max(len(values) - 1, 1), np.float32)


def tree_length(fold: Fold) -> Float64[np.ndarray, " n"]:
    """Tokens of prompt and both answers: long examples are taken to be hard."""
    return np.asarray(fold.lengths().sum(axis=1), np.float64)


def edit_distance(fold: Fold) -> Float64[np.ndarray, " n"]:
    """Closeness of the two answers, 1 - Levenshtein distance / length of the longer: near pairs are hard to tell."""
    better, worse = COLUMNS.index("better"), COLUMNS.index("worse")
    longest = np.maximum(fold.lengths()[:, [better, worse]].max(axis=1), 1)
    closeness: np.ndarray = 1.0 - fold.table.edit_distances(better, worse) / longest
    return closeness
