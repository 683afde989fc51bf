"""Readers of the metrics that stages log: `RUN/stages/<stage>/metrics.jsonl`, one JSON object per line.

`docs/reference/metrics.md` describes the files.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pit.errors import PitError


class MetricsError(PitError):
    """Error for a line of a metrics file that breaks the format."""


class Curve(NamedTuple):
    """Values of one metric of one stage, steps ascending. A value may be NaN or infinite."""

    step: tuple[int, ...]
    value: tuple[float, ...]


StageMetrics = Mapping[str, Mapping[str, Curve]]
"""Stage name to metric name to curve."""


def read_metrics(run_dir: Path) -> dict[str, dict[str, Curve]]:
    """Return stage name to metric name to curve, for every stage of a run that has metrics.

    A resumed stage may log a step twice; the later line counts. Raises MetricsError, with file and line, for a line
    that is not a JSON object, has no integer `step`, or holds anything but numbers.
    """
    files = sorted(run_dir.glob("stages/*/metrics.jsonl"))
    return {file.parent.name: read_curves(file) for file in files}


def read_curves(file: Path) -> dict[str, Curve]:
    """Return metric name to curve of one file, in the order in which the names first appear.

    Raises MetricsError as `read_metrics` does.
    """
    values: dict[str, dict[int, float]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        for name, step, value in _parse_line(line, f"{file}:{number}"):
            values.setdefault(name, {})[step] = value
    return {name: Curve(*zip(*sorted(points.items()), strict=True)) for name, points in values.items()}


def stage_order(metrics: StageMetrics, order: Iterable[str]) -> list[str]:
    """Return the stages that have metrics: first those in `order`, then the others by name.

    >>> curves = {"loss": Curve((0,), (1.0,))}
    >>> stage_order({"a": curves, "b": curves, "c": curves}, ["c", "x", "b"])
    ['c', 'b', 'a']
    """
    known = [name for name in dict.fromkeys(order) if name in metrics]
    return known + sorted(set(metrics) - set(known))


def _parse_line(line: bytes, where: str) -> list[tuple[str, int, float]]:
    """Return (metric, step, value) of every metric on a line."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MetricsError(f"{where} is not JSON ({error}); if a killed run cut it off, delete the line") from error
    step = raw.get("step") if isinstance(raw, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        raise MetricsError(
            f'{where}: must be an object with an integer "step"; got {line[:80].decode(errors="replace")!r}; delete '
            "the line"
        )
    for name, value in raw.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MetricsError(f"{where}: {name} = {value!r:.80} must be a number; delete the line")
    try:
        return [(name, step, float(value)) for name, value in raw.items() if name != "step"]
    except OverflowError as error:
        raise MetricsError(f"{where}: a number is too large ({error}); delete the line") from error
