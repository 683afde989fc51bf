"""The time of a check: texts of examples that a slow model can read, and remarks on what there was no time for."""

import time
from collections.abc import Sequence
from typing import Any

from pit.testing.errors import InvariantError
from pit.testing.invariants.base import Exact
from pit.testing.report import Result, Status
from pit.testing.scorers import Item, Method, gaps, methods_of
from pit.testing.strategies.text import LONGEST
from pit.types import Message

_EXAMPLE_SHARE = 0.01
"""Share of the time that one example of long texts should take at most."""

_SHORTEST = 256
"""Length in characters below which the longest text of examples is not bounded."""


def longest_text(scorer: Any, seconds: float | None) -> int:
    """Return the length of the longest text of examples, in characters, at which one example takes a moment.

    Args:
        scorer: the scorer, which is timed if it has a gap.
        seconds: time of the whole check; None for no limit.
    """
    if seconds is None or Method.GAP not in methods_of(scorer):
        return LONGEST
    item = Item((Message("user", "why"),), *(word * (_SHORTEST // len(word)) for word in ("red ", "blue ")))
    try:
        gaps(scorer, [item])  # The first call may compile.
        begin = time.perf_counter()
        gaps(scorer, [item])
    except InvariantError:
        return LONGEST  # Which invariant fails is said by the search.
    longest, of_item = LONGEST, time.perf_counter() - begin
    # An example has up to four items, and a longer one beside them.
    while longest > _SHORTEST and 4 * of_item * longest / _SHORTEST > _EXAMPLE_SHARE * seconds:
        longest //= 2
    return longest


def left_out(results: Sequence[Result], examples: int, rows: int, of_rows: int) -> list[str]:
    """Return lines that say what there was no time for.

    Args:
        results: the results of all invariants.
        examples: examples of each exact invariant that were asked for.
        rows: rows that figures are of.
        of_rows: rows of the data.
    """
    held = [each for each in results if each.status == Status.HELD and each.kind == Exact.kind]
    fewest = min((each.examples for each in held), default=examples)
    short = sum(each.examples < examples for each in held)
    lines = []
    if short:
        lines.append(
            f"{short} of {len(held)} exact invariants that hold had no time for all of {examples} "
            f"examples after the fixed ones; the fewest are {fewest}"
        )
    if rows < of_rows:
        lines.append(f"figures are of {rows} of {of_rows} rows, for which there was time")
    return lines
