"""Plots of a run as PNG files, for pages that cannot hold the report's SVG, such as a README."""

import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pit.atomic import write_file
from pit.errors import PitError
from pit.evaluate.schema import RAW, Results
from pit.report.formatting import answer_symbol
from pit.report.geometry import SERIES_TITLES, series_colours
from pit.report.metrics import Curve, StageMetrics, stage_order
from pit.report.palette import LIGHT


class PlotError(PitError):
    """Error for a run without the data to draw."""


def quality_png(results: Results, path: Path) -> Path:
    """Write a plot of quality by iteration, with 95 % intervals and the policy's own quality, as a PNG; return `path`.

    The same results give the same bytes with the same matplotlib. Raises PlotError if the results hold no quality
    series.
    """
    points = [point for members in results.quality.values() for point in members]
    if not points:
        raise PlotError(
            "the results hold no quality by iteration, as the judge model's verdicts were left out; leave the plot out"
        )
    figure = Figure(figsize=(7.2, 3.9), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    colours = series_colours(results.quality)
    for k, (name, members) in enumerate(results.quality.items()):
        colour = LIGHT[colours[name]]
        x = [point.iteration + 0.05 * (k - (len(results.quality) - 1) / 2) for point in members]
        mean = [point.mean for point in members]
        ends = [[p.mean - p.low for p in members], [p.high - p.mean for p in members]]
        face = "white" if name == RAW else colour
        label = SERIES_TITLES.get(name, name.replace("_", " "))
        axes.errorbar(x, mean, ends, color=colour, marker="o", ms=6, mfc=face, mew=1.6, lw=1.8, label=label)
    start = next((point for point in points if point.iteration == 0), None)
    if start is not None:
        axes.axhspan(start.low, start.high, color=LIGHT["grey"], alpha=0.13, lw=0)
        axes.axhline(
            start.mean, color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)), zorder=1, label="the policy's own answer"
        )
    last = max(point.iteration for point in points)
    axes.set_xticks(range(last + 1), [answer_symbol(i) for i in range(last + 1)])
    axes.set_xlim(-0.3, last + 0.3)
    axes.set_ylabel(results.quality_measure or "quality", color=LIGHT["muted"])
    axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["muted"], length=0)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, labelcolor=LIGHT["ink"], ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return save_png(figure, path)


RL_PANELS = (
    ("score by the reward model", "objective/reward"),
    ("gold score (oracle or held-out judge)", "board/gold"),
    ("KL to the anchor, nats per answer", "objective/kl"),
    ("entropy, nats per answer", "objective/entropy"),
    ("tokens per answer", "completions/mean_length"),
    ("answers equal to the reference, share", "rollout/copy_rate"),
)
"""Title and metric of each panel of the plot of RL; a stage that logs one of these metrics is a stage of RL."""


def rl_png(metrics: StageMetrics, path: Path, titles: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write the metrics of all stages of RL, one stage after the other, as a PNG; return `path`.

    Lines show the samples of each step, dots the held-out prompts.

    Args:
        metrics: Curves of the stages of a run, as `read_metrics` returns them.
        path: File to write.
        titles: Stage name to title, in the order in which to draw the stages. Stages that it lacks follow by name, with
            their name as title.

    Raises:
        PlotError: No stage has metrics of RL.
    """
    logged = {metric for _, panel in RL_PANELS for metric in (panel, f"eval/{panel}")}
    stages = [name for name in stage_order(metrics, titles) if logged & metrics[name].keys()]
    if not stages:
        raise PlotError("no stage has metrics of RL; run a stage of RL first")
    lengths = [max(curve.step[-1] for curve in metrics[name].values()) for name in stages]
    starts = [sum(lengths[:k]) for k in range(len(stages) + 1)]
    figure = Figure(figsize=(10.0, 5.2), dpi=200, facecolor="white", layout="constrained")
    for axes, (title, metric) in zip(figure.subplots(2, 3).flat, RL_PANELS, strict=True):
        for name, start in zip(stages, starts, strict=False):
            _draw_metric(axes, metrics[name], metric, start)
        if not axes.has_data():
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=LIGHT["muted"])
            axes.set_yticks([])
        for start in starts[1:-1]:
            axes.axvline(start, color=LIGHT["muted"], lw=0.8, ls=(0, (4, 3)))
        for name, low, high in zip(stages, starts, starts[1:], strict=False):
            axes.text(
                (low + high) / 2,
                1.02,
                titles.get(name, name),
                transform=axes.get_xaxis_transform(),
                ha="center",
                # Labels of more than four stages of equal lengths would meet.
                fontsize=min(8.0, 32.0 / len(stages)),
            )
        axes.set_xlim(0, starts[-1])
        axes.set_title(title, fontsize=10, color=LIGHT["ink"], pad=16)
        axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
        axes.tick_params(colors=LIGHT["muted"], length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    figure.supxlabel("step of RL, over all stages (dots: held-out prompts)", color=LIGHT["muted"], fontsize=9)
    return save_png(figure, path)


def _draw_metric(axes: Axes, curves: Mapping[str, Curve], metric: str, start: int) -> None:
    """Draw a metric of one stage, and the same metric on held-out prompts, from step `start`."""
    if metric in curves:
        axes.plot([start + step for step in curves[metric].step], curves[metric].value, color=LIGHT["blue"], lw=1.2)
    if (held := f"eval/{metric}") in curves:
        axes.plot(
            [start + step for step in curves[held].step],
            curves[held].value,
            "o",
            color=LIGHT["orange"],
            ms=3.5,
            zorder=3,
            clip_on=False,
        )


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG, without a display; return `path`, which is replaced as a whole, a link included.

    Equal figures give equal bytes with the same matplotlib.
    """
    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    write_file(path, drawn.getvalue())
    return path
