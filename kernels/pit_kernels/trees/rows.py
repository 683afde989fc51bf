"""Packed rows of context trees, and the table by which each path is found in them."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

_NAME = "TreeRows.batches"


class TreeRows(NamedTuple):
    """Rows [B, T] that hold P paths of at most L tokens; a pytree, so that jitted functions take it.

    A path is one of the packed sequences. It lies whole in one row, where other paths share its prefix.

    token: tokens of the rows; 0 in padding.
    position: index of each token on its path, for rotary embeddings; 0 in padding.
    visible_until: flat index at which the subtree of the token ends, for `three_way_attention`; 0 in padding.
    previous: flat index of the token before it on its path; its own index where there is none, and in padding.
    leaf: (row, flat index) of the last token of each path; (-1, -1) where a slot for paths is empty.
    place: flat index of each token of each path in its row; -1 after its end.
    path: number of the packed sequence in each slot for paths; -1 where the slot is empty.
    """

    token: Int32[Any, "B T"]
    position: Int32[Any, "B T"]
    visible_until: Int32[Any, "B T"]
    previous: Int32[Any, "B T"]
    leaf: Int32[Any, "P 2"]
    place: Int32[Any, "P L"]
    path: Int32[Any, " P"]

    @property
    def tokens(self) -> int:
        """Number of tokens in the rows, padding not counted: those that a model computes."""
        return int((np.asarray(self.visible_until) > np.arange(self.token.shape[1])).sum())

    @property
    def path_tokens(self) -> int:
        """Number of tokens of all paths: those that a model would compute if nothing were shared."""
        return int((np.asarray(self.place) >= 0).sum())

    def batches(self, rows: int, paths: int | None = None, longest: int | None = None) -> list["TreeRows"]:
        """Return the rows in order as batches of one static shape; every path is in the batch of its row.

        A compiled training step takes every batch of every step if all three sizes are given.

        Args:
          rows: rows of a batch.
          paths: slots for paths in a batch; as many as the fullest batch of `rows` rows needs when None.
          longest: tokens of the longest path that fits; those of this one's longest path when None.

        Raises:
          ValueError: if a size is too small for a single row or path.
        """
        row_of_path, place = np.asarray(self.leaf)[:, 0], np.asarray(self.place)
        longest = place.shape[1] if longest is None else longest
        in_row = np.bincount(row_of_path[row_of_path >= 0], minlength=self.token.shape[0])
        if rows < 1:
            raise ValueError(f"{_NAME}: rows is {rows}; it must be at least 1")
        if paths is not None and in_row.max(initial=0) > paths:
            raise ValueError(
                f"{_NAME}: row {int(in_row.argmax())} holds {in_row.max()} paths, and paths is {paths}; raise paths to "
                f"{in_row.max()}, or pack shorter rows"
            )
        needed = int((place >= 0).sum(axis=1).max(initial=0))
        if needed > longest:
            raise ValueError(f"{_NAME}: a path has {needed} tokens, and longest is {longest}; raise it to {needed}")
        first_rows = _starts(in_row, rows, paths)
        taken = [range(first, end) for first, end in itertools.pairwise([*first_rows, self.token.shape[0]])]
        slots = max(int(in_row[part.start : part.stop].sum()) for part in taken) if paths is None else paths
        return [self._batch(part, row_of_path, rows, slots, longest) for part in taken]

    def _batch(
        self, taken: range, row_of_path: Int[np.ndarray, " P"], rows: int, slots: int, longest: int
    ) -> "TreeRows":
        """Return some rows and the paths in them, with padding up to the static shape."""
        chosen = np.flatnonzero((row_of_path >= taken.start) & (row_of_path < taken.stop))
        here, missing = slice(taken.start, taken.stop), rows - len(taken)

        def rows_of(values: Any) -> Any:
            return np.pad(np.asarray(values)[here], ((0, missing), (0, 0)))

        def slots_of(values: Any) -> Any:
            wider = [(0, slots - chosen.size)] + [(0, 0)] * (np.ndim(values) - 1)
            return np.pad(np.asarray(values)[chosen], wider, constant_values=-1)

        previous, leaf = rows_of(self.previous), slots_of(self.leaf)
        previous[len(taken) :] = np.arange(previous.shape[1])
        leaf[: chosen.size, 0] -= taken.start
        place = slots_of(self.place)[:, :longest]
        return TreeRows(
            token=rows_of(self.token),
            position=rows_of(self.position),
            visible_until=rows_of(self.visible_until),
            previous=previous,
            leaf=leaf,
            place=np.pad(place, ((0, 0), (0, longest - place.shape[1])), constant_values=-1),
            path=slots_of(self.path),
        )


def _starts(in_row: Int[np.ndarray, " B"], rows: int, paths: int | None) -> list[int]:
    """Return the first row of each batch: a batch ends when its rows or its slots for paths are full."""
    starts: list[int] = []
    held = 0
    for row, count in enumerate(in_row.tolist()):
        full = not starts or row - starts[-1] == rows or (paths is not None and held + count > paths)
        if full:
            starts.append(row)
            held = 0
        held += count
    return starts
