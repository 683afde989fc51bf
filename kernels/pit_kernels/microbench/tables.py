"""The suite's figures as tables of Markdown, a line per problem and a column per contender."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.suite import Row

OURS = "pallas_tpu"
"""The contender that others are compared with."""

ON_PATHS, AS_TOKENS = "pallas_tpu_paths", "pallas_tpu_btnh"
"""Ours on the packed paths that peers get, and ours called with the tokens before the heads."""

ORDER = (OURS, "tokamax", "jax_splash", "jax_flash", "xla")
"""Columns, where a contender of the name has a figure; others follow."""


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables of kernels/README.md: microseconds per tree of every operation, bundles of the hot tiles."""
    parts = []
    tiles = [row for row in rows if row.figures.get("tile")]
    if tiles:
        title = "Bundles of a 512 x 512 tile, heads of width 128"
        parts.append(_table(f"{title}, peers in blocks of 512 x 512", tiles, bundles_in_first_blocks, "{:,.0f}"))
        parts.append(_table(f"{title}, peers in their best blocks", tiles, bundles_a_tile, "{:,.0f}"))
    for operation in sorted({row.operation for row in rows}):
        timed = [row for row in rows if row.operation == operation and not row.figures.get("tile")]
        unit = "per tree" if any(row.units > 1 for row in timed) else "per call"
        if timed:
            parts.append(_table(f"Estimated us {unit}, {operation}", timed, us_a_tree, "{:,.2f}"))
    factors = factors_of(rows)
    if factors:
        parts.append("\n".join(["Factors of ours / best other on trees:", "", *factors]))
    return "\n\n".join(parts)


def factors_of(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table that takes "ours / best other" on trees apart; none without a row of ours on paths.

    Sharing is ours on trees over ours on the paths that the peers get; the tile is the ratio of the hot tiles, ours and
    the best other in its best blocks, partly visible; what is left is skipping: blocks that no query sees, and all that
    a kernel does beside its hot tile.
    """
    head = (
        "| problem | direction | target | ours / best other | sharing | tile | skipping | tokens before heads / ours |"
    )
    out = [head, "|---|---|---|" + "---:|" * 5]
    by_tile = groups([row for row in rows if row.figures.get("tile")])
    for (problem, direction, target), group in groups([row for row in rows if not row.figures.get("tile")]).items():
        us = {row.contender: us_a_tree(row) for row in group}
        whole = ratio(group, us_a_tree)
        if whole is None or ON_PATHS not in us:
            continue
        tile = ratio(by_tile.get(("tile-512-partial", direction, target), []), bundles_a_tile)
        sharing = us[OURS] / us[ON_PATHS]
        rest = None if tile is None else whole / sharing / tile
        layout = us[AS_TOKENS] / us[OURS] if AS_TOKENS in us else None
        cells = ("" if x is None else f"{x:.2f}" for x in (whole, sharing, tile, rest, layout))
        out.append(f"| {problem} | {direction} | {target} | {' | '.join(cells)} |")
    return out if len(out) > 2 else []


def us_a_tree(row: Row) -> float:
    """Return the estimated microseconds per tree of the work."""
    return float(row.figures["us"]) / row.units


def bundles_a_tile(row: Row) -> float:
    """Return the cycles of a hot 512 x 512 tile."""
    return float(row.figures["tile"]["bundles"])


def bundles_in_first_blocks(row: Row) -> float:
    """Return the cycles of a hot tile with the first tiles of the sweep, or with the only ones."""
    first = next((tried for tried in row.figures.get("sweep", []) if tried.get("tile")), row.figures)
    return float(first["tile"]["bundles"])


def ratio(rows: Sequence[Row], figure: Callable[[Row], float]) -> float | None:
    """Return our figure over the least of the others; None where one of the two is missing."""
    ours = [figure(row) for row in rows if row.contender == OURS]
    others = [figure(row) for row in rows if not row.contender.startswith(OURS)]
    return ours[0] / min(others) if ours and others else None


def groups(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Return the rows by problem, direction and target, in the order that tables show."""
    by_key: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=_place):
        by_key.setdefault((row.problem, row.direction, row.target), []).append(row)
    return by_key


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the names of the contenders in the order that tables show."""
    names = {row.contender for row in rows}
    return [name for name in ORDER if name in names] + sorted(names - set(ORDER))


def _place(row: Row) -> tuple[Any, ...]:
    known = list(GENERATIONS)
    target = known.index(row.target) if row.target in known else len(known)
    return row.operation, row.problem, row.direction != "forward", target, row.target


def _table(title: str, rows: Sequence[Row], figure: Callable[[Row], float], form: str) -> str:
    names = columns(rows)
    out = [f"{title}:", ""]
    out.append("| problem | direction | target | " + " | ".join(names) + " | ours / best other |")
    out.append("|---|---|---|" + "---:|" * (len(names) + 1))
    for key, group in groups(rows).items():
        by_name = {row.contender: row for row in group}
        cells = [form.format(figure(by_name[name])) if name in by_name else "" for name in names]
        share = ratio(group, figure)
        out.append("| " + " | ".join((*key, *cells, "" if share is None else f"{share:.2f}")) + " |")
    return "\n".join(out)


def hot_of(row: Row) -> dict[str, Any] | None:
    """Return the hot piece that most cycles of a row go to."""
    pieces = [kernel["hot"] for kernel in row.figures.get("kernels", []) if kernel["hot"]]
    return max(pieces, key=lambda hot: hot["bundles"] * hot["passes"], default=None)


TABLE = "kernels table"
"""Name of the place in kernels/README.md that the whole suite's tables go to."""


def write_table(path: Path, rows: Sequence[Row], name: str = TABLE) -> None:
    """Put the tables of some rows into their place in a file.

    Raises:
      ValueError: if the file has no such place.
    """
    write_place(path, name, markdown(rows))


def write_place(path: Path, name: str, text: str) -> None:
    """Put a text between the two lines of a file that mark the place of a name.

    Raises:
      ValueError: if the file lacks one of the lines.
    """
    first, last = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    before = path.read_text(encoding="utf-8")
    begin, end = before.find(first), before.find(last)
    if begin < 0 or end < begin:
        raise ValueError(f"{path} has no place for the table; it must hold the lines {first} and {last}")
    path.write_text(f"{before[:begin]}{first}\n{text}\n{before[end:]}", encoding="utf-8")
