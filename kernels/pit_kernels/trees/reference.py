"""The slow, obvious twins of packed trees: each path in a row of its own, and rows read token by token."""

from collections.abc import Sequence

import numpy as np

from pit_kernels.trees.rows import TreeRows
from pit_kernels.trees.sharing import TokenIds

Prefix = tuple[int, ...]
"""Tokens from the first of a path to one of its tokens: all that a model's value at the token may depend on."""


def separate_rows(sequences: Sequence[TokenIds], row_length: int) -> TreeRows:
    """Return each sequence at the start of a row of its own, with nothing shared.

    Example:
      >>> separate_rows([[5, 6], [5, 7, 8]], 4).token.tolist()
      [[5, 6, 0, 0], [5, 7, 8, 0]]
    """
    count, longest = len(sequences), max(len(sequence) for sequence in sequences)
    token, position, until = np.zeros((3, count, row_length), np.int32)
    previous = np.tile(np.arange(row_length, dtype=np.int32), (count, 1))
    leaf, place = np.full((count, 2), -1, np.int32), np.full((count, longest), -1, np.int32)
    for row, sequence in enumerate(sequences):
        for t, number in enumerate(sequence):
            token[row, t], position[row, t], until[row, t] = number, t, len(sequence)
            previous[row, t] = max(t - 1, 0)
            place[row, t] = t
        leaf[row] = row, len(sequence) - 1
    return TreeRows(token, position, until, previous, leaf, place, np.arange(count, dtype=np.int32))


def prefix_at(tree: TreeRows, row: int, t: int) -> Prefix:
    """Return the tokens from the first of a path to flat index t of a row, found by `previous`."""
    tokens = [int(tree.token[row, t])]
    while tree.previous[row, t] != t:
        t = int(tree.previous[row, t])
        tokens.append(int(tree.token[row, t]))
    return tuple(reversed(tokens))


def packing_fault(tree: TreeRows, sequences: Sequence[TokenIds], *, share: bool = True) -> str | None:
    """Return the first rule that packed rows break, or None: slow, and with no idea of how they were packed.

    Args:
      tree: the rows.
      sequences: what was packed.
      share: whether no row may hold the same prefix twice.
    """
    tables = _fault_of_tables(tree, sequences)
    if tables is not None:
        return tables
    for row in range(tree.token.shape[0]):
        fault = _fault_of_row(tree, row, {tuple(map(int, s)) for s in sequences}, share)
        if fault is not None:
            return f"row {row}: {fault}"
    return None


def _fault_of_tables(tree: TreeRows, sequences: Sequence[TokenIds]) -> str | None:
    """Return what is wrong with the tables of paths."""
    if sorted(int(path) for path in tree.path if path >= 0) != list(range(len(sequences))):
        return f"path is {np.asarray(tree.path).tolist()}, which is not every sequence once"
    for slot, path in enumerate(np.asarray(tree.path).tolist()):
        if path < 0:
            continue
        row, last = (int(x) for x in tree.leaf[slot])
        places = [int(t) for t in tree.place[slot] if t >= 0]
        read = [int(tree.token[row, t]) for t in places]
        expected = [int(token) for token in sequences[path]]
        if read != expected:
            return f"path {path} reads {read}, and the sequence is {expected}"
        if places[-1] != last:
            return f"path {path} ends at {places[-1]}, and its leaf is {last}"
        if prefix_at(tree, row, last) != tuple(expected):
            return f"path {path} differs from what previous leads to"
    return None


def _fault_of_row(tree: TreeRows, row: int, sequences: set[Prefix], share: bool) -> str | None:
    """Return what is wrong with the tokens of a row."""
    until = [int(end) for end in tree.visible_until[row]]
    alive = [t for t, end in enumerate(until) if end > t]
    on_path: dict[int, set[int]] = {}
    seen: set[Prefix] = set()
    for t in range(len(until)):
        if t not in alive:
            if (int(tree.position[row, t]), until[t], int(tree.previous[row, t])) != (0, 0, t):
                return f"padding at {t} has a position, an end or a token before it"
            continue
        before = int(tree.previous[row, t])
        on_path[t] = {t} if before == t else on_path[before] | {t}
        prefix = prefix_at(tree, row, t)
        if int(tree.position[row, t]) != len(prefix) - 1:
            return f"token {t} has position {tree.position[row, t]}, and {len(prefix) - 1} tokens before it"
        if share and prefix in seen:
            return f"the prefix {list(prefix)} stands twice"
        seen.add(prefix)
        visible = {key for key in range(t + 1) if t < until[key]}
        if visible != on_path[t]:
            return f"token {t} sees {sorted(visible)}, and its path is {sorted(on_path[t])}"
    if not all(any(path[: len(prefix)] == prefix for path in sequences) for prefix in seen):
        return "a token belongs to no sequence"
    return None
