"""Plots of a run as image files, for pages that cannot hold the report's own SVG, such as a README."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pit.errors import PitError
from pit.evaluate.schema import RAW, Results
from pit.report.geometry import SERIES_NAMES, series_colours
from pit.report.metrics import Curve
from pit.report.palette import LIGHT
from pit.report.words import answer


class PlotError(PitError):
    """A run has nothing of what is to be drawn."""


def quality_png(results: Results, path: Path) -> Path:
    """Writes the plot of quality by iteration, with 95 % intervals and the policy's own quality, as a PNG.

    The same results give the same bytes with the same matplotlib. Returns `path`; raises PlotError where the
    results hold no quality series.
    """
    points = [point for members in results.quality.values() for point in members]
    if not points:
        raise PlotError("the results hold no quality by iteration; evaluate the run first (pit evaluate)")
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
    return save_png(figure, path)


RL_PANELS = (
    ("score of the reward model", "objective/reward"),
    ("gold (oracle or held-out judge)", "board/gold"),
    ("KL to the anchor, nats an answer", "objective/kl"),
    ("entropy, nats an answer", "objective/entropy"),
    ("tokens of an answer", "completions/mean_length"),
    ("share of answers equal to their reference", "rollout/copy_rate"),
)
"""Title and metric of each panel of the plot of RL."""

RL_STAGES = {"rl-policy": "M_P", "rl-first": "RL,0", "rl-second": "RL,1", "rl-third": "RL,2"}


def rl_png(metrics: Mapping[str, Mapping[str, Curve]], path: Path) -> Path:
    """Writes what RL did, step by step and stage by stage, as a PNG.

    Lines are the samples of each step, dots held-out prompts where they were measured.

    Args:
        metrics: curves of the stages of a run, as `read_metrics` gives them.
        path: file to write.

    Raises:
        PlotError: no stage of RL has metrics.
    """
    ran = [name for name in RL_STAGES if name in metrics]
    if not ran:
        raise PlotError("no stage of RL has metrics; run one first (pit rl policy)")
    lengths = [max(curve.step[-1] for curve in metrics[name].values()) for name in ran]
    starts = [sum(lengths[:k]) for k in range(len(ran) + 1)]
    figure = Figure(figsize=(10.0, 5.2), dpi=200, facecolor="white", layout="constrained")
    for axes, (title, metric) in zip(figure.subplots(2, 3).flat, RL_PANELS, strict=True):
        for name, start in zip(ran, starts, strict=False):
            _draw(axes, metrics[name], metric, start)
        if not axes.has_data():
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=LIGHT["muted"])
            axes.set_yticks([])
        for start in starts[1:-1]:
            axes.axvline(start, color=LIGHT["muted"], lw=0.8, ls=(0, (4, 3)))
        for name, low, high in zip(ran, starts, starts[1:], strict=False):
            axes.text(
                (low + high) / 2, 1.02, RL_STAGES[name], transform=axes.get_xaxis_transform(), ha="center", fontsize=8
            )
        axes.set_xlim(0, starts[-1])
        axes.set_title(title, fontsize=10, color=LIGHT["ink"], pad=16)
        axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
        axes.tick_params(colors=LIGHT["muted"], length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    figure.supxlabel("step of RL, all stages (dots: held-out prompts)", color=LIGHT["muted"], fontsize=9)
    return save_png(figure, path)


def _draw(axes: Axes, curves: Mapping[str, Curve], metric: str, start: int) -> None:
    """A metric of one stage, and the same of held-out prompts."""
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
    """Writes a figure without a display; equal figures are equal bytes with the same matplotlib. Returns `path`."""
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
