"""The draws of a curriculum, as a table for the terminal and as a plot. The draws come from a run or a simulation."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from pit.data.curriculum import Visit
from pit.report.palette import LIGHT
from pit.report.plots import save_png
from pit.types import Source

PERIODS = 10
"""Number of rows of the table."""

_COLOURS = {Source.NONE: "grey", Source.WORSE: "orange", Source.BETTER: "blue", Source.POLICY: "teal"}


class Period(NamedTuple):
    """Draws of consecutive steps.

    first, last: steps.
    difficulty: rank of each example drawn, from the easiest (0) to the hardest (1).
    shares: share of the draws from each source of references.
    gap: mean gap of the samples over their references; None if there are no references.
    wins: share of the samples with a gap above 0; None if there are no references.
    new: number of examples that were drawn for the first time.
    """

    first: int
    last: int
    difficulty: Float32[np.ndarray, " n"]
    shares: dict[Source, float]
    gap: float | None
    wins: float | None
    new: int


def periods(visits: list[Visit], difficulty: Float32[np.ndarray, " examples"]) -> list[Period]:
    """Return the draws in at most `PERIODS` periods.

    Args:
        visits: Draws of each step.
        difficulty: Rank of each example, from the easiest (0) to the hardest (1).
    """
    result, visited = [], set[int]()
    for part in np.array_split(np.arange(len(visits)), min(PERIODS, len(visits))):
        members = [visits[i] for i in part]
        ids = np.concatenate([visit.draws.ids for visit in members])
        sources = np.concatenate([visit.draws.sources for visit in members])
        gaps = [visit.gap for visit in members if visit.gap is not None]
        gap = np.concatenate(gaps) if gaps else None
        new = set(ids.tolist()) - visited
        visited |= new
        result.append(
            Period(
                members[0].draws.step,
                members[-1].draws.step,
                difficulty[ids],
                {source: float((sources == source).mean()) for source in Source if (sources == source).any()},
                None if gap is None else float(gap.mean()),
                None if gap is None else float((gap > 0).mean()),
                len(new),
            )
        )
    return result


def curriculum_table(title: str, visits: list[Visit], difficulty: Float32[np.ndarray, " examples"]) -> Table:
    """Return a table with one row per period: difficulty, sources, gaps, and the number of first visits."""
    rows = periods(visits, difficulty)
    sources = sorted({source for period in rows for source in period.shares})
    names = [source.name.lower() for source in sources]
    table = Table("steps", "difficulty [10 %, 90 %]", *names, "mean gap", "gap > 0", "first visits", title=title)
    for period in rows:
        low, high = np.quantile(period.difficulty, [0.1, 0.9])
        table.add_row(
            f"{period.first}-{period.last}",
            f"{period.difficulty.mean():.2f} [{low:.2f}, {high:.2f}]",
            *(f"{period.shares.get(source, 0.0):.0%}" for source in sources),
            "" if period.gap is None else f"{period.gap:+.2f}",
            "" if period.wins is None else f"{period.wins:.0%}",
            f"{period.new:,}",
        )
    count = visit_counts(visits, len(difficulty))
    table.caption = (
        f"{count.sum():,} draws of {len(count):,} examples: mean {count.mean():.1f}, most {count.max():,}, "
        f"{(count == 0).mean():.0%} never drawn"
    )
    return table


def visit_counts(visits: list[Visit], examples: int) -> np.ndarray:
    """Return the number of draws of each example."""
    return np.bincount(np.concatenate([visit.draws.ids for visit in visits]), minlength=examples)


def curriculum_png(title: str, visits: list[Visit], difficulty: Float32[np.ndarray, " examples"], path: Path) -> Path:
    """Write a plot of difficulty, sources of references, and visits by difficulty, as a PNG; return `path`."""
    figure = Figure(figsize=(10.5, 3.4), dpi=160, facecolor="white", layout="constrained")
    figure.suptitle(title, color=LIGHT["ink"], fontsize=11)
    over_steps, shares, counts = figure.subplots(1, 3)
    _draw_difficulty(over_steps, visits, difficulty)
    _draw_sources(shares, visits)
    _draw_visits(counts, visits, difficulty)
    for axes in (over_steps, shares, counts):
        axes.tick_params(colors=LIGHT["muted"], length=0, labelsize=8)
        axes.xaxis.label.set_color(LIGHT["muted"])
        axes.spines[:].set_visible(False)
        axes.title.set(color=LIGHT["ink"], fontsize=9)
    return save_png(figure, path)


def _draw_difficulty(axes: Axes, visits: list[Visit], difficulty: np.ndarray) -> None:
    steps = np.array([visit.draws.step for visit in visits])
    ranks = [difficulty[visit.draws.ids] for visit in visits]
    x = np.repeat(steps, [len(values) for values in ranks])
    axes.plot(x, np.concatenate(ranks), ".", ms=1.5, color=LIGHT["grey"], alpha=0.5, rasterized=True)
    parts = np.array_split(np.arange(len(visits)), min(25, len(visits)))
    middle = [float(steps[part].mean()) for part in parts]
    quantiles = np.array([np.quantile(np.concatenate([ranks[i] for i in part]), [0.1, 0.5, 0.9]) for part in parts])
    axes.fill_between(middle, quantiles[:, 0], quantiles[:, 2], color=LIGHT["blue"], alpha=0.18, lw=0)
    axes.plot(middle, quantiles[:, 1], color=LIGHT["blue"], lw=2)
    axes.set_ylim(-0.02, 1.02)
    axes.set(title="difficulty of the draws (median, 10-90 %)", xlabel="step")


def _draw_sources(axes: Axes, visits: list[Visit]) -> None:
    present = sorted({Source(int(s)) for visit in visits for s in np.unique(visit.draws.sources)})
    parts = np.array_split(np.arange(len(visits)), min(40, len(visits)))
    middle = [float(np.mean([visits[i].draws.step for i in part])) for part in parts]
    columns = [np.concatenate([visits[i].draws.sources for i in part]) for part in parts]
    shares = np.array([[float((column == source).mean()) for column in columns] for source in present])
    names, colours = [s.name.lower() for s in present], [LIGHT[_COLOURS[s]] for s in present]
    axes.stackplot(middle, shares, labels=names, colors=colours, alpha=0.8)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8, labelcolor=LIGHT["ink"], loc="upper right")
    axes.set(title="sources of the references", xlabel="step")


def _draw_visits(axes: Axes, visits: list[Visit], difficulty: np.ndarray) -> None:
    count = visit_counts(visits, len(difficulty))
    axes.plot(difficulty, count, ".", ms=3, color=LIGHT["blue"], alpha=0.35, rasterized=True)
    axes.axhline(float(count.mean()), color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    axes.set(title="visits per example (dashed: mean)", xlabel="difficulty, from easiest to hardest")
