"""Shared prefixes of token sequences: their lexicographic order, and what each shares with the one before it.

In this order all sequences with a common prefix are neighbours, so that an order and one number per sequence hold the
whole trie (Kasai et al. 2001 say the same of suffixes).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32, Shaped

TokenIds = Sequence[int] | Shaped[np.ndarray, " _"]
"""One sequence of token ids."""

_LARGEST = int(np.iinfo(np.int32).max)


@dataclass(frozen=True)
class Sorted:
    """P sequences in lexicographic order.

    number: number of each sequence as it was given; equal sequences keep their order.
    tokens: the sequences.
    length: tokens of each.
    shared: length of the prefix that each has in common with the one before it; 0 for the first.
    """

    number: Int[np.ndarray, " P"]
    tokens: tuple[Int32[np.ndarray, " _"], ...]
    length: Int[np.ndarray, " P"]
    shared: Int[np.ndarray, " P"]


def sort_sequences(sequences: Sequence[TokenIds]) -> Sorted:
    """Return the sequences in lexicographic order, with what each shares with the one before it.

    Raises:
      ValueError: if there is no sequence, or one is empty or has a token that is no int32 of at least 0.

    Example:
      >>> sequences = sort_sequences([[5, 7], [5, 6, 8], [5, 6]])
      >>> sequences.number.tolist(), sequences.shared.tolist()
      ([2, 1, 0], [0, 2, 1])
    """
    arrays = [_checked(number, sequence) for number, sequence in enumerate(sequences)]
    if not arrays:
        raise ValueError("trees.pack: sequences is empty; give at least one sequence of token ids")
    # Big-endian bytes of numbers that are not negative compare as the numbers do.
    keys = [array.astype(">i4").tobytes() for array in arrays]
    order = sorted(range(len(arrays)), key=keys.__getitem__)
    tokens = tuple(arrays[i] for i in order)
    shared = [0, *(common_prefix(before, after) for before, after in itertools.pairwise(tokens))]
    return Sorted(np.array(order), tokens, np.array([array.size for array in tokens]), np.array(shared))


def common_prefix(a: Int32[np.ndarray, " _"], b: Int32[np.ndarray, " _"]) -> int:
    """Return the length of the longest common prefix of two sequences."""
    length = min(a.size, b.size)
    different = a[:length] != b[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length


def _checked(number: int, sequence: TokenIds) -> Int32[np.ndarray, " _"]:
    """Return a sequence as int32."""
    array = np.asarray(sequence)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"trees.pack: sequence {number} has shape {array.shape}; it must be a list of at least one token id: leave "
            "empty sequences out"
        )
    if array.dtype.kind not in "iu":
        raise ValueError(f"trees.pack: sequence {number} has dtype {array.dtype}; tokens must be integers")
    if array.min() < 0 or array.max() > _LARGEST:
        wrong = int(array.min() if array.min() < 0 else array.max())
        raise ValueError(
            f"trees.pack: sequence {number} has the token {wrong}; tokens must be from 0 to {_LARGEST}: cut padding off"
        )
    return array.astype(np.int32)
