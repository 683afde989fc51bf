"""The report of a check: tables for the terminal, JSON for programs, and a self-contained HTML page.

It holds the results of all invariants, whatever their status.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import jinja2
from rich.markup import escape
from rich.table import Table

from pit.atomic import write_file
from pit.evaluate.stats import Interval


class Status(StrEnum):
    """The outcome of one invariant."""

    HELD = "held"
    VIOLATED = "violated"
    MEASURED = "measured"
    NOT_APPLICABLE = "not applicable"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Result:
    """The result of one invariant.

    name, kind, statement, source: fields of the invariant.
    status: the outcome; a statistical invariant is measured, never held.
    detail: reason why it is violated, not applicable or not checked; for a figure, its place relative to the floor.
    examples: number of examples that were tried, or of usable cases of the data.
    interval: figure of a statistical invariant, with its 95 % interval.
    floor: figure of a scorer that knows nothing.
    table: further figures with their labels.
    counterexample: smallest counterexample, or worst case, as text.
    replay: command that checks the counterexample again.
    seconds: duration of the search.
    """

    name: str
    kind: str
    statement: str
    source: str
    status: Status
    detail: str = ""
    examples: int = 0
    interval: Interval | None = None
    floor: float | None = None
    table: tuple[tuple[str, Interval], ...] = ()
    counterexample: str = ""
    replay: str = ""
    seconds: float = 0.0

    @property
    def below_floor(self) -> bool:
        """Whether the whole interval lies below the floor."""
        return self.interval is not None and self.floor is not None and self.interval.high < self.floor


@dataclass(frozen=True)
class Report:
    """The results of one check.

    model: MODEL, as the command line names it.
    data: name of the preferences.
    seed: seed of the search.
    results: one result per invariant.
    seconds: duration of the check.
    """

    model: str
    data: str
    seed: int
    results: tuple[Result, ...]
    seconds: float

    @property
    def violations(self) -> tuple[Result, ...]:
        """Results whose invariant is violated, or whose scorer failed."""
        return tuple(result for result in self.results if result.status == Status.VIOLATED)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold; intervals are {value, low, high, n}."""
        plain = asdict(self)
        for values, result in zip(plain["results"], self.results, strict=True):
            values["interval"] = None if result.interval is None else result.interval._asdict()
            values["table"] = [{"label": label, **interval._asdict()} for label, interval in result.table]
        return plain

    def write_json(self, path: Path) -> None:
        """Write the report to a JSON file."""
        write_file(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=True) + "\n").encode())

    def write_html(self, path: Path) -> None:
        """Write the report to a self-contained HTML file."""
        page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
        write_file(path, page.render(report=self, figure=format_interval).encode("utf-8", "backslashreplace"))

    def tables(self) -> list[Table]:
        """Return the table of exact invariants and the table of figures, without empty ones."""
        exact = [r for r in self.results if r.kind == "exact"]
        figures = [r for r in self.results if r.kind != "exact"]
        return [table for table, rows in ((_exact_table(exact), exact), (_figure_table(figures), figures)) if rows]


def format_interval(interval: Interval) -> str:
    """Return a figure with its interval as text.

    >>> format_interval(Interval(0.5, 0.4, 0.6, 100))
    '0.500 [0.400, 0.600]'
    """
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


_COLOURS = {Status.HELD: "green", Status.VIOLATED: "bold red", Status.NOT_CHECKED: "yellow"}


def _coloured(result: Result) -> str:
    colour = _COLOURS.get(result.status, "dim")
    return f"[{colour}]{result.status}[/]"


def _exact_table(results: Sequence[Result]) -> Table:
    table = Table(title="Exact: a violation is a bug")
    for name, no_wrap in (("invariant", True), ("result", True), ("examples", True), ("statement, or fault", False)):
        table.add_column(name, no_wrap=no_wrap)
    for result in results:
        examples = str(result.examples) if result.examples else ""
        table.add_row(result.name, _coloured(result), examples, escape(result.detail or result.statement))
    return table


def _figure_table(results: Sequence[Result]) -> Table:
    table = Table(title="Figures over the data")
    for name, no_wrap in (("figure", True), ("value [95 %]", True), ("cases", True), ("statement", False)):
        table.add_column(name, no_wrap=no_wrap)
    for kind in dict.fromkeys(result.kind for result in results):
        table.add_section()
        table.add_row(f"[bold]{kind}[/]")
        for result in results:
            if result.kind == kind:
                value = _coloured(result) if result.interval is None else format_interval(result.interval)
                note = f" ({result.detail})" if result.detail else ""
                table.add_row(result.name, value, str(result.examples or ""), escape(f"{result.statement}{note}"))
    return table


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pit check: {{ report.model }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .6rem; vertical-align: top; }
tr { border-bottom: 1px solid #ddd; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; }
.violated { color: #b00020; font-weight: bold; } .held { color: #1b6e2c; }
</style></head><body>
<h1>pit check</h1>
<p>{{ report.model }} on {{ report.data }}; seed {{ report.seed }}; {{ "%.1f" | format(report.seconds) }} s;
{{ report.violations | length }} violated</p>
<table><thead><tr><th>invariant</th><th>kind</th><th>result</th><th>n</th><th>statement</th></tr></thead><tbody>
{% for r in report.results %}<tr><td>{{ r.name }}</td><td>{{ r.kind }}</td>
<td class="{{ r.status }}">{{ figure(r.interval) if r.interval else r.status }}</td><td>{{ r.examples or "" }}</td>
<td>{{ r.statement }} <small>({{ r.source }})</small>{% if r.detail %}<br>{{ r.detail }}{% endif %}
{% for label, value in r.table %}<br><small>{{ label }}: {{ figure(value) }}</small>{% endfor %}
{% if r.counterexample %}<details><summary>example</summary><pre>{{ r.counterexample }}</pre>
{% if r.replay %}<code>{{ r.replay }}</code>{% endif %}</details>{% endif %}</td></tr>
{% endfor %}</tbody></table></body></html>
"""
