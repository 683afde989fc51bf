"""The report of a check as a self-contained HTML page, and its badge as an SVG file.

The page needs no network and no script; it follows the reader's choice of light or dark colours.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jinja2

from pit.atomic import write_file
from pit.evaluate.stats import Interval
from pit.testing.baseline import Change, Direction
from pit.testing.findings import findings_of
from pit.testing.report import Report, Result, Status, format_interval
from pit.testing.tables import RULER_COLUMNS, is_matched, ruler_rows

_BADGE_LETTER = 6.6
"""Width of a letter of the badge, in pixels."""


class Bar(NamedTuple):
    """Places on the axis of a figure, in percent of its width: the ends of the interval, the value, and the floor."""

    low: float
    width: float
    value: float
    floor: float | None


def bar_of(interval: Interval, floor: float | None, low: float = 0.0, high: float = 1.0) -> Bar:
    """Return the places of an interval on an axis from `low` to `high`.

    >>> bar_of(Interval(0.5, 0.25, 0.75, 9), 0.5)
    Bar(low=25.0, width=50.0, value=50.0, floor=50.0)
    """

    def place(number: float) -> float:
        return round(100 * min(max((number - low) / (high - low), 0.0), 1.0), 2)

    start, end = place(interval.low), place(interval.high)
    return Bar(start, round(end - start, 2), place(interval.value), None if floor is None else place(floor))


def write_page(path: Path, report: Report, changes: Sequence[Change] = ()) -> None:
    """Write the page of a report.

    Args:
        path: the HTML file.
        report: the report.
        changes: changes since a baseline, if there is one.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = resources.files("pit.testing").joinpath("page.html.j2").read_text(encoding="utf-8")
    figures = [result for result in report.results if result.kind != "exact" and not is_matched(result)]
    page = environment.from_string(source).render(
        report=report,
        findings=findings_of(report),
        counts=[(status.value, len(report.of_status(status))) for status in Status if report.of_status(status)],
        exact=[result for result in report.results if result.kind == "exact" and not _is_absent(result)],
        pairs=[result for result in report.results if is_matched(result)],
        figures=[result for result in figures if not _is_absent(result)],
        absent=[result for result in report.results if _is_absent(result)],
        rulers=next((result for result in figures if result.name == "above_rulers" and result.table), None),
        ruler_columns=RULER_COLUMNS,
        ruler_rows=ruler_rows,
        changes=[change for change in changes if change.direction != Direction.SAME],
        compared=len(changes),
        figure=format_interval,
        bar=_bar,
    )
    write_file(path, page.encode("utf-8", "backslashreplace"))


def _is_absent(result: Result) -> bool:
    """Return whether a result belongs into the list of what was not measured."""
    return result.status == Status.NOT_APPLICABLE or (result.kind != "exact" and result.interval is None)


def _bar(result: Result) -> Bar:
    assert result.interval is not None
    signed = is_matched(result) or result.interval.low < 0 or 0 in (result.ideal, result.floor)
    return bar_of(result.interval, 0.0 if signed else result.floor, -1.0 if signed else 0.0)


def badge_text(report: Report) -> str:
    """Return the right half of the badge.

    >>> badge_text(Report("m", "d", 0, (), 0.0))
    '0 held'
    """
    if report.violations:
        return f"{len(report.violations)} violated"
    held = f"{len(report.of_status(Status.HELD))} held"
    accuracy = next((result.interval for result in report.results if result.name == "accuracy"), None)
    return held if accuracy is None else f"{held}, accuracy {accuracy.value:.2f}"


def write_badge(path: Path, report: Report) -> str:
    """Write the badge of a report as an SVG file, and return the line of Markdown that shows it."""
    left, right = "pit check", badge_text(report)
    widths = [round(_BADGE_LETTER * len(text) + 12) for text in (left, right)]
    colour = "#b3261e" if report.violations else "#1b6e2c"
    label = f"{left}: {right}"
    source = resources.files("pit.testing").joinpath("badge.svg.j2").read_text(encoding="utf-8")
    badge = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    image = badge.render(left=left, right=right, widths=widths, colour=colour, label=label)
    write_file(path, image.encode())
    return f"![{label}]({path.as_posix()})"
