"""Geometry of the plots in the report: axes with round ticks, and positions in per cent of the plot's box.

The templates draw the plots. With positions in per cent, text keeps its size at any width of the page.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pit.evaluate.schema import RAW, STOP_RULE, QualityPoint
from pit.report.formatting import MINUS, answer_symbol, integer, short_number
from pit.report.metrics import Curve
from pit.report.palette import SERIES

BUCKETS = 160
"""Longest curve that is drawn value by value; a longer one is drawn as this many means over a band of its extremes."""

SERIES_TITLES = {RAW: "every new answer accepted", STOP_RULE: "with the stop rule"}
"""Titles of the quality series in legends; any other series has its name."""


class Tick(NamedTuple):
    """Labelled position on an axis, in per cent from its low end."""

    position: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Range of values with round ends, and its ticks."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def position(self, value: float) -> float:
        """Return the position of `value`, in per cent from the low end."""
        return round(100.0 * (value - self.low) / (self.high - self.low), 3)


@dataclass(frozen=True)
class Bar:
    """Interval on an axis; positions in per cent."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Mark:
    """Point of a quality plot: its position, the ends of its interval, in per cent, and the measurement."""

    x: float
    y: float
    low: float
    high: float
    point: QualityPoint


@dataclass(frozen=True)
class Series:
    """Line of a quality plot."""

    name: str
    colour: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class QualityPlot:
    """Plot of quality by iteration. policy: the policy's own quality (iteration 0), as an interval on the y axis."""

    y: Axis
    x: tuple[Tick, ...]
    series: tuple[Series, ...]
    policy: Bar | None


@dataclass(frozen=True)
class Line:
    """Curve as SVG path data in a box of 100 by 100, y down.

    band: path of the band from least to largest value; empty if every value is drawn.
    last: the last value, as text.
    """

    name: str
    colour: str
    path: str
    band: str
    last: str


@dataclass(frozen=True)
class CurvePlot:
    """Small plot of metrics against steps. dropped: number of values that are not finite and so are not drawn."""

    title: str
    y: Axis
    x: tuple[Tick, ...]
    lines: tuple[Line, ...]
    dropped: int


def make_axis(values: Iterable[float], ticks: int = 4, floor: float = -math.inf, ceiling: float = math.inf) -> Axis:
    """Return the axis with round ends that holds `values`, with about `ticks` steps.

    floor, ceiling: bounds of the ends, such as 0 and 1 for shares.
    """
    values = list(values)
    low, high = min(values), max(values)
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
    """Return `value` with enough digits to differ from the next tick, `step` away.

    >>> tick_label(0.5, 0.25), tick_label(20.0, 10.0), tick_label(20000.0, 5000.0)
    ('0.50', '20', '20k')
    """
    if abs(step) >= 1000:
        return f"{value / 1000:g}k".replace("-", MINUS)
    if 0 < abs(step) < 1e-4:
        return f"{value:.1e}".replace("-", MINUS)
    digits = next(d for d in range(8) if abs(round(step, d) - step) < 1e-6 * abs(step))
    return f"{value:.{digits}f}".replace("-", MINUS) if abs(value) > 0.5 * 10**-digits else f"{0:.{digits}f}"


def make_bar(axis: Axis, low: float, value: float, high: float) -> Bar:
    """Return an interval as positions on an axis."""
    return Bar(axis.position(low), axis.position(value), axis.position(high))


def quality_plot(quality: Mapping[str, tuple[QualityPoint, ...]]) -> QualityPlot | None:
    """Return the plot of all quality series; None if they hold no point."""
    points = [point for series in quality.values() for point in series]
    if not points:
        return None
    y = make_axis((end for point in points for end in (point.low, point.high)), ticks=6)
    last = max(point.iteration for point in points)
    # A margin on both sides; series are shifted so that their intervals do not cover each other.
    x = Axis(-0.3, last + 0.3, ())
    colours = series_colours(quality)
    series = []
    for k, (name, members) in enumerate(quality.items()):
        shift = 0.05 * (k - (len(quality) - 1) / 2) * (x.high - x.low) / 4
        marks = tuple(
            Mark(x.position(p.iteration + shift), y.position(p.mean), y.position(p.low), y.position(p.high), p)
            for p in members
        )
        series.append(Series(name, colours[name], marks))
    ticks = tuple(Tick(x.position(float(i)), answer_symbol(i)) for i in range(last + 1))
    start = next((point for point in points if point.iteration == 0), None)
    policy = make_bar(y, start.low, start.mean, start.high) if start else None
    return QualityPlot(y, ticks, tuple(series), policy)


def series_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour name of each quality series: blue for `STOP_RULE`, orange for `RAW`, then the others."""
    fixed = {STOP_RULE: SERIES[0], RAW: SERIES[1]}
    others = [name for name in names if name not in fixed]
    return fixed | {name: SERIES[2 + k % (len(SERIES) - 2)] for k, name in enumerate(others)}


def curve_plot(title: str, curves: Sequence[tuple[str, Curve]]) -> CurvePlot | None:
    """Return the plot of one or more metrics against steps; None if no value is finite."""
    finite = [
        (name, [(s, v) for s, v in zip(curve.step, curve.value, strict=True) if math.isfinite(v)])
        for name, curve in curves
    ]
    dropped = sum(len(curve.step) for _, curve in curves) - sum(len(points) for _, points in finite)
    steps = [s for _, points in finite for s, _ in points]
    if not steps:
        return None
    y = make_axis((v for _, points in finite for _, v in points), ticks=3)
    first, last = min(steps), max(steps)
    lines = [
        _line(name, SERIES[k % len(SERIES)], points, y, first, last)
        for k, (name, points) in enumerate(finite)
        if points
    ]
    x = (Tick(0.0, integer(first)), Tick(100.0, integer(last))) if last > first else (Tick(0.0, integer(first)),)
    return CurvePlot(title, y, x, tuple(lines), dropped)


def _line(name: str, colour: str, points: Sequence[tuple[int, float]], y: Axis, first: int, last: int) -> Line:
    """Return the path of one curve, over steps from `first` to `last`."""

    def point_at(step: float, value: float) -> str:
        x = 100.0 * (step - first) / (last - first) if last > first else 50.0
        return f"{x:.2f} {100.0 - y.position(value):.2f}"

    ends = [round(i * len(points) / BUCKETS) for i in range(BUCKETS + 1)]
    buckets = (
        [[point] for point in points] if len(points) <= BUCKETS else [points[a:b] for a, b in itertools.pairwise(ends)]
    )
    steps = [sum(s for s, _ in part) / len(part) for part in buckets]
    means = [sum(v for _, v in part) / len(part) for part in buckets]
    path = "M" + "L".join(point_at(s, v) for s, v in zip(steps, means, strict=True))
    if len(buckets) == 1:
        path += "h0.01"  # the round cap of a line draws a single point
    band = ""
    if len(points) > BUCKETS:
        upper = [point_at(s, max(v for _, v in part)) for s, part in zip(steps, buckets, strict=True)]
        lower = [point_at(s, min(v for _, v in part)) for s, part in zip(steps, buckets, strict=True)]
        band = "M" + "L".join(upper + lower[::-1]) + "Z"
    return Line(name, colour, path, band, short_number(points[-1][1]))
