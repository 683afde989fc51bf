"""Plot of a family: mean quality by answers sampled per prompt, for the improver and every rival."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _evidence.per_seed import Figures, table
from pit.report.palette import LIGHT
from pit.report.plots import save_png

LINES: dict[str, tuple[str | None, str, str, str]] = {
    "PIT, accepted": (None, "pit_stop", "blue", "o-"),
    "PIT, every pass kept": (None, "pit_plain", "orange", "o-"),
    "PIT with RL,2, every pass kept": ("own", "pit_plain", "orange", "^:"),
    "best of n by R_P": (None, "best_of", "ink", "s--"),
    "best of n by R_P, after more RLHF": ("more_rlhf", "best_of", "ink", "x:"),
    "resampling, accepted by the same rule": (None, "resample", "grey", "D--"),
    "fine-tuned improver, accepted": (None, "sft_stop", "teal", "v--"),
    "fine-tuned improver, every pass kept": (None, "sft_plain", "teal", "v:"),
}
"""Lines: a variant (None: the main one), the stem of its methods, a colour and a style. Rivals of PIT are dashed."""

SHADED = ("pit_stop", "best_of")
"""Stems whose range over seeds is shaded; shading all of them would hide the lines."""

SWEPT = {"PIT, accepted": ("pit_stop", "blue", "*-"), "fine-tuned improver, kept": ("sft_plain", "teal", "*--")}
"""Methods that are also drawn at their best temperature."""


def plot(figures: Figures, passes: int, main: str, path: Path) -> None:
    """Draw mean quality over seeds by answers sampled per prompt: the improver, and rivals at equal samples."""
    figure = Figure(figsize=(7.2, 4.9), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    answers = range(1, passes + 2)
    seeds = {seed for seed, variant in figures if variant == main}
    for label, (variant, stem, colour, style) in LINES.items():
        # The n-th of best-of-n takes n answers, the k-th pass k + 1.
        names = ["y0", *(f"{stem}_{n if stem == 'best_of' else n - 1}" for n in answers[1:])]
        means = table(figures, variant or main, names)
        # A variant that ran on some of the seeds only would look better or worse than it is.
        if len(means) == len(seeds):
            _line(axes, answers, means, label, LIGHT[colour], style, shaded=stem in SHADED and variant is None)
    _draw_best_temperatures(axes, figures, answers, main)
    axes.set_xticks(answers)
    axes.set_xlabel("answers sampled per prompt, the first one and rejected ones included", color=LIGHT["muted"])
    axes.set_ylabel("mean hidden quality (shaded: lowest to highest seed)", color=LIGHT["muted"])
    axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=LIGHT["muted"])
    axes.legend(
        frameon=False, labelcolor=LIGHT["ink"], ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8
    )
    save_png(figure, path)


def _draw_best_temperatures(axes: Axes, figures: Figures, answers: range, main: str) -> None:
    """Draw the first answer and the passes at the temperatures that the figures hold: the best ones."""
    names = {name for (_, variant), row in figures.items() if variant == main for name in row}
    firsts = sorted(name for name in names if name.endswith("/y0"))
    means = {name: float(table(figures, main, [name]).mean()) for name in firsts}
    if means:
        best = max(means, key=lambda name: means[name])
        label = f"the first answer alone, at temperature {best.partition('/')[0][1:]}, its best"
        axes.plot([1], [means[best]], "P", color=LIGHT["ink"], ms=9, ls="none", label=label)
    for what, (stem, colour, style) in SWEPT.items():
        lines = {}
        for first in firsts:
            warmth = first.partition("/")[0]
            line = table(figures, main, [first, *(f"{warmth}/{stem}_{n - 1}" for n in answers[1:])])
            if len(line):
                lines[warmth] = line
        if lines:
            warmth = max(lines, key=lambda name: float(lines[name][:, -1].mean()))
            label = f"{what}, at temperature {warmth[1:]}, its best"
            _line(axes, answers, lines[warmth], label, LIGHT[colour], style, shaded=True)


def _line(
    axes: Axes, x: Sequence[int], means: np.ndarray, label: str, colour: str, style: str, *, shaded: bool
) -> None:
    """Draw a mean over seeds, with the range of all seeds where it is shaded."""
    axes.plot(x, means.mean(axis=0), style, color=colour, lw=1.6, ms=5, label=label)
    if shaded:
        axes.fill_between(x, means.min(axis=0), means.max(axis=0), color=colour, alpha=0.10, lw=0)
