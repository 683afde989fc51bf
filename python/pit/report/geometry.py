"""Where things go in the plots of the report: axes with round ticks, and positions in per cent of the plot's box.

Positions are per cent so that a plot keeps its text size at any width; the templates draw them.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pit.evaluate.schema import RAW, STOP_RULE, QualityPoint
from pit.report.metrics import Curve
from pit.report.palette import SERIES
from pit.report.words import MINUS, answer, plain

BUCKETS = 160
"""A longer curve is drawn as that many means, over the band from least to most."""


SERIES_NAMES = {RAW: "every rewriting taken", STOP_RULE: "with the stop rule"}
"""What a reader is told about the quality series; any other is called by its name."""


class Tick(NamedTuple):
    """A labelled place on an axis, in per cent from its low end."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range with round ends and its ticks."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Position of `value` in per cent from the low end."""
        return round(100.0 * (value - self.low) / (self.high - self.low), 3)


@dataclass(frozen=True)
class Bar:
    """An interval on an axis; positions in per cent."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Mark:
    """A point of a quality plot: its place, its interval's place, and what it stands for."""

    x: float
    y: float
    low: float
    high: float
    point: QualityPoint


@dataclass(frozen=True)
class Series:
    """A line of a quality plot."""

    name: str
    colour: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class QualityPlot:
    """Quality by iteration. policy: the policy's own quality (iteration 0), as an interval on the y axis."""

    y: Axis
    x: tuple[Tick, ...]
    series: tuple[Series, ...]
    policy: Bar | None


@dataclass(frozen=True)
class Line:
    """A curve as SVG path data in a box of 100 by 100, y down. band is empty where every value is drawn."""

    name: str
    colour: str
    path: str
    band: str
    last: str


@dataclass(frozen=True)
class CurvePlot:
    """A small plot of a metric against steps. dropped: values that are not finite and so are not drawn."""

    title: str
    y: Axis
    x: tuple[Tick, ...]
    lines: tuple[Line, ...]
    dropped: int


def axis(values: Iterable[float], ticks: int = 4, floor: float = -math.inf, ceiling: float = math.inf) -> Axis:
    """The axis with round ends that holds `values`, with about `ticks` steps.

    floor, ceiling: bounds that the ends do not pass, such as 0 and 1 for shares.
    """
    known = list(values)
    low, high = min(known), max(known)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        margin = 0.5 * abs(low) or 0.5
        low, high = max(floor, low - margin), min(ceiling, high + margin)
    rough = (high - low) / ticks
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    low, high = max(floor, first * step), min(ceiling, last * step)
    places = [k * step for k in range(first, last + 1) if floor - 1e-9 <= k * step <= ceiling + 1e-9]
    span = high - low
    return Axis(low, high, tuple(Tick(round(100 * (v - low) / span, 3), tick_label(v, step)) for v in places))


def tick_label(value: float, step: float) -> str:
    """`value` with the digits that tell it from its neighbours.

    >>> tick_label(0.5, 0.25), tick_label(20.0, 10.0), tick_label(20000.0, 5000.0)
    ('0.50', '20', '20k')
    """
    if abs(step) >= 1000:
        return f"{value / 1000:g}k".replace("-", MINUS)
    if 0 < abs(step) < 1e-4:
        return f"{value:.1e}".replace("-", MINUS)
    digits = next(d for d in range(8) if abs(round(step, d) - step) < 1e-6 * abs(step))
    return f"{value:.{digits}f}".replace("-", MINUS) if abs(value) > 0.5 * 10**-digits else f"{0:.{digits}f}"


def bar(on: Axis, low: float, value: float, high: float) -> Bar:
    """An interval's place on an axis."""
    return Bar(on.at(low), on.at(value), on.at(high))


def quality_plot(quality: Mapping[str, tuple[QualityPoint, ...]]) -> QualityPlot | None:
    """The places of every quality series; None where there is no point at all."""
    points = [point for series in quality.values() for point in series]
    if not points:
        return None
    y = axis((end for point in points for end in (point.low, point.high)), ticks=6)
    last = max(point.iteration for point in points)
    # A margin on both sides, and series side by side where their intervals would cover each other.
    low, span = -0.3, last + 0.6
    colours = series_colours(quality)
    series = []
    for k, (name, members) in enumerate(quality.items()):
        shift = 0.05 * (k - (len(quality) - 1) / 2) * span / 4
        marks = tuple(
            Mark(round(100 * (p.iteration + shift - low) / span, 3), y.at(p.mean), y.at(p.low), y.at(p.high), p)
            for p in members
        )
        series.append(Series(name, colours[name], marks))
    ticks = tuple(Tick(round(100 * (i - low) / span, 3), answer(i)) for i in range(last + 1))
    start = next((point for point in points if point.iteration == 0), None)
    policy = bar(y, start.low, start.mean, start.high) if start else None
    return QualityPlot(y, ticks, tuple(series), policy)


def series_colours(names: Iterable[str]) -> dict[str, str]:
    """Colour names of quality series: blue for the stop rule, orange for every rewriting taken, then the rest."""
    fixed = {STOP_RULE: SERIES[0], RAW: SERIES[1]}
    others = [name for name in names if name not in fixed]
    return fixed | {name: SERIES[2 + k % (len(SERIES) - 2)] for k, name in enumerate(others)}


def curve_plot(title: str, curves: Sequence[tuple[str, Curve]]) -> CurvePlot | None:
    """A plot of one or more metrics against steps; None where no value is finite."""
    finite = [
        (name, [(s, v) for s, v in zip(curve.step, curve.value, strict=True) if math.isfinite(v)])
        for name, curve in curves
    ]
    dropped = sum(len(curve.step) for _, curve in curves) - sum(len(points) for _, points in finite)
    steps = [s for _, points in finite for s, _ in points]
    if not steps:
        return None
    y = axis((v for _, points in finite for _, v in points), ticks=3)
    first, last = min(steps), max(steps)
    lines = [
        _line(name, SERIES[k % len(SERIES)], points, y, first, last)
        for k, (name, points) in enumerate(finite)
        if points
    ]
    x = (
        (Tick(0.0, plain_step(first)), Tick(100.0, plain_step(last)))
        if last > first
        else (Tick(0.0, plain_step(first)),)
    )
    return CurvePlot(title, y, x, tuple(lines), dropped)


def plain_step(step: int) -> str:
    """A step number with separators."""
    return f"{step:,}"


def _line(name: str, colour: str, points: Sequence[tuple[int, float]], y: Axis, first: int, last: int) -> Line:
    def place(step: float, value: float) -> str:
        x = 100.0 * (step - first) / (last - first) if last > first else 50.0
        return f"{x:.2f} {100.0 - y.at(value):.2f}"

    ends = [round(i * len(points) / BUCKETS) for i in range(BUCKETS + 1)]
    buckets = (
        [[point] for point in points] if len(points) <= BUCKETS else [points[a:b] for a, b in itertools.pairwise(ends)]
    )
    steps = [sum(s for s, _ in part) / len(part) for part in buckets]
    means = [sum(v for _, v in part) / len(part) for part in buckets]
    path = "M" + "L".join(place(s, v) for s, v in zip(steps, means, strict=True))
    if len(buckets) == 1:
        path += "h0.01"  # a single point is drawn by the round cap of a line
    band = ""
    if len(points) > BUCKETS:
        upper = [place(s, max(v for _, v in part)) for s, part in zip(steps, buckets, strict=True)]
        lower = [place(s, min(v for _, v in part)) for s, part in zip(steps, buckets, strict=True)]
        band = "M" + "L".join(upper + lower[::-1]) + "Z"
    return Line(name, colour, path, band, plain(points[-1][1]))
