"""The one type for columns of token sequences: all tokens in one array, and where each sequence begins."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Bool, Int32, Int64


@dataclass(frozen=True, eq=False)
class Tokens(Sequence[Int32[np.ndarray, " _"]]):
    """n sequences of token ids; sequence i is `values[offsets[i] : offsets[i + 1]]`.

    values: the tokens of all sequences, one after the other.
    offsets: begin of each sequence, and the end of the last one; the first is 0.
    """

    values: Int32[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " n_plus_1"]

    @classmethod
    def of(cls, sequences: "Sequences") -> "Tokens":
        """Return the column of some sequences; one that is a column already is returned as it is.

        >>> Tokens.of([[1, 2], [], [3]]).rows()
        [[1, 2], [], [3]]
        """
        if isinstance(sequences, Tokens):
            return sequences
        arrays = [np.asarray(each, np.int32) for each in sequences]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays, dtype=np.int32) if arrays else np.zeros(0, np.int32), offsets)

    @classmethod
    def padded(cls, values: Int32[np.ndarray, "n C"], length: Int32[np.ndarray, " n"]) -> "Tokens":
        """Return the first `length` tokens of each row of a padded array.

        >>> Tokens.padded(np.array([[1, 2], [3, 0]], np.int32), np.array([2, 1], np.int32)).rows()
        [[1, 2], [3]]
        """
        offsets = np.zeros(len(values) + 1, np.int64)
        np.cumsum(length, out=offsets[1:])
        return cls(values[np.arange(values.shape[1])[None, :] < length[:, None]], offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Int32[np.ndarray, " length"]: ...
    @overload
    def __getitem__(self, index: slice) -> "Tokens": ...
    def __getitem__(self, index: int | slice) -> "Int32[np.ndarray, ' length'] | Tokens":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        index = range(len(self))[index]
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Int32[np.ndarray, " length"]]:
        for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.values[begin:end]

    @property
    def length(self) -> Int32[np.ndarray, " n"]:
        """Number of tokens of each sequence."""
        return np.diff(self.offsets).astype(np.int32)

    def rows(self) -> list[list[int]]:
        """Return the sequences as lists of ints."""
        return [sequence.tolist() for sequence in self]

    def take(self, index: Int64[np.ndarray, " m"] | Sequence[int]) -> "Tokens":
        """Return some of the sequences, in the order of `index`; one may come several times.

        >>> Tokens.of([[1, 2], [3]]).take([1, 1, 0]).rows()
        [[3], [3], [1, 2]]
        """
        return Tokens.of([self[int(i)] for i in index])

    def where(self, chosen: Bool[np.ndarray, " n"], other: "Tokens") -> "Tokens":
        """Return the sequences of this column where `chosen`, those of the other column elsewhere.

        >>> Tokens.of([[1], [2]]).where(np.array([True, False]), Tokens.of([[], [7, 8]])).rows()
        [[1], [7, 8]]
        """
        return Tokens.of([a if choice else b for choice, a, b in zip(chosen, self, other, strict=True)])

    def equal(self, other: "Tokens") -> Bool[np.ndarray, " n"]:
        """Return which sequences are the same in both columns.

        >>> Tokens.of([[1], [2]]).equal(Tokens.of([[1], [2, 2]])).tolist()
        [True, False]
        """
        return np.array([np.array_equal(a, b) for a, b in zip(self, other, strict=True)], bool)


Sequences = Tokens | Iterable[Sequence[int] | np.ndarray]
"""Token sequences in any form that `Tokens.of` takes."""


def joined(*columns: Tokens | int) -> Tokens:
    """Return the columns joined sequence by sequence; a number stands for that token in every sequence.

    >>> joined(Tokens.of([[1], [2, 3]]), 9, Tokens.of([[4], []])).rows()
    [[1, 9, 4], [2, 3, 9]]
    """
    n = next(len(column) for column in columns if isinstance(column, Tokens))
    parts = [[np.array([column], np.int32)] * n if isinstance(column, int) else column for column in columns]
    return Tokens.of([np.concatenate(sequence) for sequence in zip(*parts, strict=True)])
