"""The report of a check as tables for the terminal: exact invariants, matched pairs, rulers, figures, changes."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from pit.testing.baseline import Change, Direction
from pit.testing.invariants.behavioural import AFTER, BEFORE
from pit.testing.invariants.choices import RULERS
from pit.testing.report import Report, Result, Status, format_interval

_COLOURS = {Status.HELD: "green", Status.VIOLATED: "bold red", Status.NOT_CHECKED: "yellow"}
_ARROWS = {Direction.WORSE: "bold red", Direction.BETTER: "green", Direction.SAME: "dim"}


def tables_of(report: Report, changes: Sequence[Change] = ()) -> list[Table]:
    """Return the tables of a report, without empty ones.

    Args:
        report: the report.
        changes: changes since a baseline, if there is one; all measured ones are shown, so that a bias that moved from
            one axis to another is seen.
    """
    given = [result for result in report.results if result.status != Status.NOT_APPLICABLE]
    exact = [result for result in given if result.kind == "exact"]
    pairs = [result for result in given if is_matched(result)]
    figures = [result for result in given if result.kind != "exact" and not is_matched(result)]
    tables = [
        (_exact_table(exact), exact),
        (_pair_table(pairs), pairs),
        (_figure_table(figures), figures),
        *((_ruler_table(result), result.table) for result in figures if result.name == "above_rulers"),
        *((_part_table(result), result.table) for result in figures if result.kind == "sampler"),
        (_change_table(changes), changes),
    ]
    return [table for table, rows in tables if rows]


def absent_line(report: Report) -> str:
    """Return a line about the invariants that are not applicable, by reason; "" without one.

    >>> one = Result("a", "exact", "", "", Status.NOT_APPLICABLE, "needs draw()")
    >>> absent_line(Report("m", "d", 0, (one, one), 0.0))
    'not applicable: 2 (needs draw(): a, a)'
    """
    reasons: dict[str, list[str]] = {}
    for result in report.of_status(Status.NOT_APPLICABLE):
        reasons.setdefault(result.detail, []).append(result.name)
    count = sum(map(len, reasons.values()))
    listed = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())
    return f"not applicable: {count} ({listed})" if count else ""


def is_matched(result: Result) -> bool:
    """Return whether a result is the accuracy of pairs before and after a change."""
    return tuple(label for label, _ in result.table) == (BEFORE, AFTER)


def ruler_rows(result: Result) -> list[tuple[str, list[str]]]:
    """Return a row for each subset of the result of `above_rulers`: model, each ruler, and the smallest difference."""
    rows: dict[str, list[str]] = {}
    for label, interval in result.table:
        subset, _, column = label.rpartition(": ")
        difference = column.startswith("model - ")
        text = f"{format_interval(interval)} ({column[8:]})" if difference else f"{interval.value:.3f}"
        rows.setdefault(f"{subset} ({interval.n})", []).append(text)
    return list(rows.items())


RULER_COLUMNS = ("subset (n)", "model", *RULERS, "model - ruler [95 %]")
"""Heads of the table of rulers."""


def _coloured(result: Result) -> str:
    colour = _COLOURS.get(result.status, "dim")
    return f"[{colour}]{result.status}[/]"


def _table(title: str, *columns: tuple[str, bool]) -> Table:
    table = Table(title=title)
    for name, no_wrap in columns:
        table.add_column(name, no_wrap=no_wrap)
    return table


def _exact_table(results: Sequence[Result]) -> Table:
    columns = ("invariant", True), ("result", True), ("examples", True), ("statement, or fault", False)
    table = _table("Exact: a violation is a bug", *columns)
    for result in results:
        examples = str(result.examples) if result.examples else ""
        table.add_row(result.name, _coloured(result), examples, escape(result.detail or result.statement))
    return table


def _pair_table(results: Sequence[Result]) -> Table:
    columns = ("axis", True), ("before", True), ("after", True), ("change [95 %]", True), ("pairs", True)
    table = _table("Matched pairs: accuracy before and after a change without merit", *columns)
    for result in results:
        assert result.interval is not None
        before, after = (f"{interval.value:.3f}" for _, interval in result.table)
        lost = result.interval.high < 0
        change = f"[bold red]{format_interval(result.interval)}[/]" if lost else format_interval(result.interval)
        table.add_row(result.name, before, after, change, str(result.examples))
    return table


def _figure_table(results: Sequence[Result]) -> Table:
    columns = ("figure", True), ("value [95 %]", True), ("cases", True), ("statement", False)
    table = _table("Figures over the data", *columns)
    for kind in dict.fromkeys(result.kind for result in results):
        table.add_section()
        table.add_row(f"[bold]{kind}[/]")
        for result in results:
            if result.kind == kind:
                value = _coloured(result) if result.interval is None else format_interval(result.interval)
                note = f" ({result.detail})" if result.detail else ""
                table.add_row(result.name, value, str(result.examples or ""), escape(f"{result.statement}{note}"))
    return table


def _ruler_table(result: Result) -> Table:
    table = _table("Rulers: shares of questions ranked right", *((name, False) for name in RULER_COLUMNS))
    for subset, cells in ruler_rows(result):
        table.add_row(escape(subset), *map(escape, cells))
    return table


def _part_table(result: Result) -> Table:
    table = _table(f"{result.name}: {result.statement}", ("part", True), ("value [95 %]", True), ("n", True))
    for label, interval in result.table:
        ends = " ".join(f"{end:.2g}" for end in interval[:3])
        table.add_row(escape(label), ends, str(interval.n))
    return table


def _change_table(changes: Sequence[Change]) -> Table:
    columns = ("invariant", True), ("baseline", True), ("now", True), ("change", True)
    table = _table("Since the baseline", *columns)
    for change in changes:
        if change.was != change.now or change.direction != Direction.SAME:
            colour = _ARROWS[change.direction]
            table.add_row(change.name, change.was, change.now, f"[{colour}]{change.direction}[/]")
    return table
