"""Comparison of a report with an earlier one of the same rows: what got worse, and what got better.

A figure has changed where its interval and the earlier one do not meet. Both are of the same rows, so this is a strict
rule: small changes of a figure pass.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pit.testing.errors import CheckError
from pit.testing.report import Report, Result, Status, format_interval


class Direction(StrEnum):
    """The direction of a change."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "same"


@dataclass(frozen=True)
class Change:
    """The change of one invariant.

    name: name of the invariant.
    direction: whether it is worse, better or about the same.
    was, now: earlier and present result, as text.
    """

    name: str
    direction: Direction
    was: str
    now: str


def compare(report: Report, baseline: Report, where: Path) -> tuple[Change, ...]:
    """Return the change of each invariant that both reports have.

    Args:
        report: the present report.
        baseline: the earlier one.
        where: file of the earlier one, for messages.

    Raises:
        CheckError: the reports are of different rows.
    """
    if report.digest != baseline.digest:
        raise CheckError(
            f"--baseline {where}: was measured on other rows ({baseline.rows} of {baseline.data}, here {report.rows} "
            f"of {report.data}), so its figures cannot be compared; give the same --data and --rows, or write a new one"
        )
    earlier = {result.name: result for result in baseline.results}
    pairs = [(earlier[result.name], result) for result in report.results if result.name in earlier]
    return tuple(Change(now.name, direction(was, now), _text(was), _text(now)) for was, now in pairs)


def direction(was: Result, now: Result) -> Direction:
    """Return whether a result got worse or better.

    Worse is an invariant that is violated and was not, one that was held or measured and no longer is, and a figure
    whose interval lies on the worse side of the earlier one.
    """
    if was.interval is not None and now.interval is not None:
        before, after = (_badness(result) for result in (was, now))
        if after[0] > before[1]:
            return Direction.WORSE
        return Direction.BETTER if after[1] < before[0] else Direction.SAME
    rank = {Status.VIOLATED: 2, Status.NOT_CHECKED: 1, Status.NOT_APPLICABLE: 1, Status.HELD: 0, Status.MEASURED: 0}
    if rank[was.status] == rank[now.status]:
        return Direction.SAME
    return Direction.WORSE if rank[now.status] > rank[was.status] else Direction.BETTER


def _badness(result: Result) -> tuple[float, float]:
    """Return the ends of an interval of how bad a figure is: the negated figure, or its distance from the ideal."""
    assert result.interval is not None
    low, high = result.interval.low, result.interval.high
    if result.ideal is None:
        return -high, -low
    ends = sorted((abs(low - result.ideal), abs(high - result.ideal)))
    return (0.0 if low <= result.ideal <= high else ends[0]), ends[1]


def _text(result: Result) -> str:
    return result.status.value if result.interval is None else format_interval(result.interval)
