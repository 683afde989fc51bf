"""The suite's figures as a picture: a panel per problem and direction, contenders side by side, ours in colour."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pit_kernels.microbench.suite import Row
from pit_kernels.microbench.tables import OURS, bundles_a_tile, columns, groups, us_a_tree

_TITLE = "Static counts of compiled programs, none measured on a chip; ours in colour, (n x) is a multiple of ours"

_OURS, _OTHERS = "#1f6f8b", "#b9c1c7"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw a bar for each contender's figure, with its ratio to ours; one line of panels per problem.

    Rows of `tile` problems show bundles per 512 x 512 tile, the others estimated microseconds per tree.

    Raises:
      ValueError: if there are no rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("there is nothing to draw: no contender has a figure")
    panels = groups(rows)
    places = sorted({(target, direction != "forward", direction) for _, direction, target in panels})
    lines = list(dict.fromkeys((row.operation, row.problem) for row in sorted(rows, key=_line)))
    heights = [max(len(columns([row for row in rows if row.problem == name])), 2) for _, name in lines]
    figure = Figure(figsize=(4.1 * len(places), 1.0 + sum(0.75 + 0.26 * n for n in heights)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(lines), len(places), squeeze=False, height_ratios=[n + 1.5 for n in heights])
    for line, (operation, problem) in enumerate(lines):
        for column, (target, _, direction) in enumerate(places):
            axis = grid[line][column]
            panel = [row for row in panels.get((problem, direction, target), []) if row.operation == operation]
            if not panel:
                axis.set_axis_off()
                continue
            _panel(axis, panel, columns([row for row in rows if row.problem == problem and row.operation == operation]))
            what = {"forward": "forward", "both": "forward + backward"}.get(direction, direction)
            if panel[0].figures.get("tile") and direction == "both":
                what = "backward"
            name = problem if operation == "three_way_attention" else operation
            axis.set_title(f"{name} · {target} · {what}", fontsize=9, loc="left", fontweight="bold")
    figure.suptitle(_TITLE, fontsize=11, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def _line(row: Row) -> tuple[Any, ...]:
    return not row.figures.get("tile"), row.operation != "three_way_attention", row.operation, row.problem


def _panel(axis: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    tile = bool(rows[0].figures.get("tile"))
    figure = bundles_a_tile if tile else us_a_tree
    values = {row.contender: figure(row) for row in rows}
    shown = [name for name in names if name in values]
    places = [names.index(name) for name in shown]
    colours = [_OURS if name.startswith(OURS) else _OTHERS for name in shown]
    bars = axis.barh(places, [values[name] for name in shown], height=0.72, color=colours)
    ours = values.get(OURS)
    labels = []
    for name in shown:
        value = values[name]
        text = f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
        labels.append(text if ours is None or name == OURS else f"{text}  ({value / ours:.2f}x)")
    axis.bar_label(bars, labels=labels, padding=3, fontsize=8.5)
    axis.set_xlim(0, max(values.values()) * 1.48)
    # A contender without a figure here keeps its place, so that panels of a line can be compared.
    axis.set_ylim(max(len(names), 2) - 0.4, -0.6)
    axis.set_yticks(range(len(names)), [name if name in values else "" for name in names])
    trees = rows[0].units > 1
    axis.set_xlabel("bundles per tile" if tile else f"estimated us per {'tree' if trees else 'call'}", fontsize=8)
    axis.tick_params(labelsize=8.5)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith(OURS) else "normal")
    axis.spines[["top", "right", "left"]].set_visible(False)
