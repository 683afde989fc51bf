"""Reads the metrics that stages write while they train: `RUN/stages/<stage>/metrics.jsonl`, one JSON object a line."""

import json
from pathlib import Path
from typing import NamedTuple

from pit.errors import PitError


class MetricsError(PitError):
    """A line of a metrics file that is not what `docs/results.md` says."""


class Curve(NamedTuple):
    """One metric of one stage: values by step, steps ascending. A value may be NaN or infinite, as it was measured."""

    step: tuple[int, ...]
    value: tuple[float, ...]


def read_metrics(run_dir: Path) -> dict[str, dict[str, Curve]]:
    """Stage name to metric name to curve, for every stage of a run that has metrics.

    A step that was written twice, as a resumed stage does, counts with its later line. Raises MetricsError, with file
    and line, for a line that is no JSON object, has no whole `step`, or holds anything but numbers.
    """
    files = sorted(run_dir.glob("stages/*/metrics.jsonl"))
    return {file.parent.name: read_curves(file) for file in files}


def read_curves(file: Path) -> dict[str, Curve]:
    """Metric name to curve of one file, in the order in which the names first appear."""
    values: dict[str, dict[int, float]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        for name, step, value in _line(line, f"{file}:{number}"):
            values.setdefault(name, {})[step] = value
    return {name: Curve(*zip(*sorted(points.items()), strict=True)) for name, points in values.items()}


def _line(line: str, where: str) -> list[tuple[str, int, float]]:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise MetricsError(f"{where}: not JSON ({error}); a stopped run may have cut it, delete the line") from error
    step = raw.get("step") if isinstance(raw, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        raise MetricsError(f'{where}: need an object with a whole "step"; got {line[:80]!r}')
    for name, value in raw.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MetricsError(f"{where}: {name} must be a number; got {value!r}")
    return [(name, step, float(value)) for name, value in raw.items() if name != "step"]
