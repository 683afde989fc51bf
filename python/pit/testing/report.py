"""The report of a check, and its JSON; `pit.testing.tables` and `pit.testing.page` show it.

It holds the results of all invariants, whatever their status. Fields of the JSON are added within a `SCHEMA` and never
change their meaning; docs/testing.md lists them.
"""

import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from pit.atomic import write_file
from pit.evaluate.stats import Interval
from pit.testing.errors import CheckError

SCHEMA = "pit-check/1"
"""Name and version of the format of the JSON."""


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
    ideal: figure of a perfect scorer; None where larger is better.
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
    ideal: float | None = None
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
    rows: number of rows of the data.
    digest: hex digest of the rows, so that two reports can be compared.
    notes: further remarks on the check, a line each.
    """

    model: str
    data: str
    seed: int
    results: tuple[Result, ...]
    seconds: float
    rows: int = 0
    digest: str = ""
    notes: tuple[str, ...] = ()

    @property
    def violations(self) -> tuple[Result, ...]:
        """Results whose invariant is violated, or whose scorer failed."""
        return tuple(result for result in self.results if result.status == Status.VIOLATED)

    def of_status(self, status: Status) -> tuple[Result, ...]:
        """Return the results with a status."""
        return tuple(result for result in self.results if result.status == status)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold; intervals are {value, low, high, n}."""
        plain = {"schema": SCHEMA, **asdict(self)}
        for values, result in zip(plain["results"], self.results, strict=True):
            values["interval"] = None if result.interval is None else result.interval._asdict()
            values["table"] = [{"label": label, **interval._asdict()} for label, interval in result.table]
        return plain

    def write_json(self, path: Path) -> None:
        """Write the report to a JSON file."""
        write_file(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=True) + "\n").encode())

    @classmethod
    def read_json(cls, path: Path) -> "Report":
        """Read a report.

        Raises:
            CheckError: the file does not hold one of this schema.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema"] != SCHEMA:
                raise ValueError(f"its schema is {values['schema']!r}, not {SCHEMA!r}")
            known = _known(cls, values)
            known["results"] = tuple(map(_result, values["results"]))
            known["notes"] = tuple(values.get("notes", ()))
            return cls(**known)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckError(
                f"{path}: does not hold a report of `pit check --json` ({type(error).__name__}: {reason}); write one "
                f"with --json {path}"
            ) from error


def _known(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a type among some values; later versions may have more."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _result(values: dict[str, Any]) -> Result:
    interval = values["interval"]
    table = tuple((row["label"], Interval(row["value"], row["low"], row["high"], row["n"])) for row in values["table"])
    return Result(
        **{
            **_known(Result, values),
            "status": Status(values["status"]),
            "interval": None if interval is None else Interval(**interval),
            "table": table,
        }
    )


def format_interval(interval: Interval) -> str:
    """Return a figure with its interval as text.

    >>> format_interval(Interval(0.5, 0.4, 0.6, 100))
    '0.500 [0.400, 0.600]'
    """
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
