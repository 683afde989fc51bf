"""Two plots of a family: quality by answers sampled beside every rival, and a plain pass by step of training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _evidence.summary import best_temperatures, of_shared_seeds
from _evidence.variants import VARIANTS, Trials
from pit.report.palette import LIGHT, SERIES
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
"""What the plot draws: a variant (None: the main one), the stem of its methods, a colour and a style.

What is no PIT is dashed.
"""

SHADED = ("pit_stop", "best_of")
"""Of these, and of what is drawn at its best temperature, the range over seeds is shaded: all of it hides the lines."""

SWEPT = {"PIT, accepted": ("pit_stop", "blue", "*-"), "fine-tuned improver, kept": ("sft_plain", "teal", "*--")}
"""Drawn at the temperature that is best for it too."""


def plot(trials: Trials, passes: int, main: str, path: Path) -> None:
    """Mean quality by answers sampled a prompt, over seeds: the improver, and what the same samples buy instead."""
    figure = Figure(figsize=(7.2, 4.9), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    answers = range(1, passes + 2)
    for label, (variant, stem, colour, style) in LINES.items():
        # The n-th of best-of-n takes n answers, the k-th pass k + 1.
        names = ["y0", *(f"{stem}_{n if stem == 'best_of' else n - 1}" for n in answers[1:])]
        table = means(trials, variant or main, names, main)
        _line(axes, answers, table, label, LIGHT[colour], style, shaded=stem in SHADED and variant is None)
    found = best_temperatures(trials, passes, main, resamples=1)
    swept = found["best"]
    if "y0" in swept:
        label = f"the first answer alone, at temperature {swept['y0'].partition('/')[0][1:]}, its best"
        axes.plot([1], [found["mean_quality"][swept["y0"]]], "P", color=LIGHT["ink"], ms=9, ls="none", label=label)
    for what, (stem, colour, style) in SWEPT.items():
        best = swept.get(f"{stem}_{passes}")
        if best is not None:
            warmth = best.partition("/")[0]
            names = [f"{warmth}/y0", *(f"{warmth}/{stem}_{n - 1}" for n in answers[1:])]
            label = f"{what}, at temperature {warmth[1:]}, its best"
            _line(axes, answers, means(trials, main, names, main), label, LIGHT[colour], style)
    axes.set_xticks(answers)
    axes.set_xlabel("answers sampled a prompt, the first one and rejected ones included", color=LIGHT["muted"])
    _finish(figure, axes, path, "mean hidden quality (shaded: lowest to highest seed)")


def plot_curves(trials: Trials, main: str, path: Path) -> None:
    """What one plain pass over y0 is worth on held-out prompts, by step of the improver's RL and variant.

    Of the seeds that all variants share; the range over them is shaded of the main one alone.
    """
    figure = Figure(figsize=(7.2, 3.9), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    curves = {key: trial["learning_curve"] for key, trial in sorted(of_shared_seeds(trials).items())}
    found = {name: [curve for (_, variant), curve in curves.items() if variant == name] for name in VARIANTS}
    drawn = [name for name, of_seeds in found.items() if of_seeds and all(of_seeds)]
    for k, variant in enumerate(drawn):
        steps = [step for step, _ in found[variant][0]]
        table = np.array([[worth for _, worth in curve] for curve in found[variant]])
        colour = LIGHT[SERIES[k % len(SERIES)]]
        style = ("o-", "^--", "s:")[k // len(SERIES) % 3]
        _line(axes, steps, table, VARIANTS[variant].what, colour, style, shaded=variant == main)
    axes.set_xlabel("steps of the improver's RL", color=LIGHT["muted"])
    _finish(figure, axes, path, "quality of one plain pass")


def means(trials: Trials, variant: str, names: Sequence[str], main: str) -> np.ndarray:
    """Mean quality of methods, a row a seed of the main variant; no row where the variant lacks one of them."""
    seeds = sorted(seed for seed, name in trials if name == main)
    had = [trials[seed, variant] for seed in seeds] if all((seed, variant) in trials for seed in seeds) else []
    return np.array([[np.mean(trial["quality"][name]) for name in names] for trial in had])


def _line(
    axes: Axes, x: Sequence[int], table: np.ndarray, label: str, colour: str, style: str, *, shaded: bool = True
) -> None:
    """A mean over seeds with the range of all; nothing where there is no seed."""
    if len(table):
        axes.plot(x, table.mean(axis=0), style, color=colour, lw=1.6, ms=5, label=label)
        if shaded:
            axes.fill_between(x, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.10, lw=0)


def _finish(figure: Figure, axes: Axes, path: Path, what: str) -> None:
    axes.set_ylabel(what, color=LIGHT["muted"])
    axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=LIGHT["muted"])
    axes.legend(
        frameon=False, labelcolor=LIGHT["ink"], ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8
    )
    save_png(figure, path)
