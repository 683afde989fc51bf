"""Plots of a run as image files, for pages that cannot hold the report's own SVG, such as a README."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pit.evaluate.schema import RAW, Results
from pit.report.geometry import SERIES_NAMES, series_colours
from pit.report.palette import LIGHT
from pit.report.words import answer


def quality_png(results: Results, path: Path) -> Path:
    """Writes the plot of quality by iteration, with 95 % intervals and the policy's own quality, as a PNG.

    The same results give the same bytes with the same matplotlib. Returns `path`; raises ValueError where the
    results hold no quality series.
    """
    points = [point for members in results.quality.values() for point in members]
    if not points:
        raise ValueError("the results hold no quality by iteration; there is nothing to plot")
    figure = Figure(figsize=(7.2, 3.9), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    colours = series_colours(results.quality)
    for k, (name, members) in enumerate(results.quality.items()):
        colour = LIGHT[colours[name]]
        x = [point.iteration + 0.05 * (k - (len(results.quality) - 1) / 2) for point in members]
        mean = [point.mean for point in members]
        ends = [[p.mean - p.low for p in members], [p.high - p.mean for p in members]]
        face = "white" if name == RAW else colour
        label = SERIES_NAMES.get(name, name.replace("_", " "))
        axes.errorbar(x, mean, ends, color=colour, marker="o", ms=6, mfc=face, mew=1.6, lw=1.8, label=label)
    start = next((point for point in points if point.iteration == 0), None)
    if start is not None:
        axes.axhspan(start.low, start.high, color=LIGHT["grey"], alpha=0.13, lw=0)
        axes.axhline(
            start.mean, color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)), zorder=1, label="the policy's own answer"
        )
    last = max(point.iteration for point in points)
    axes.set_xticks(range(last + 1), [answer(i) for i in range(last + 1)])
    axes.set_xlim(-0.3, last + 0.3)
    axes.set_ylabel(results.quality_measure or "quality", color=LIGHT["muted"])
    axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["muted"], length=0)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, labelcolor=LIGHT["ink"], ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
