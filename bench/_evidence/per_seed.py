"""One figure per seed: the CSV file from which the tables and plots of the pages are made.

It holds mean qualities and win rates minus lose rates of finished trials, so that a page can be made again without the
archives of raw results, which it is counted from.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from _evidence.summary import best_of_swept, comparisons
from _evidence.variants import Trials
from pit.evaluate.stats import delta

Figures = Mapping[tuple[int, str], Mapping[str, float]]
"""Figures by (seed, variant) of one family: mean quality by method, points by comparison."""

KEYS = ("family", "seed", "variant")
"""Columns that name a row."""

STEMS = ("pit_plain", "pit_stop", "best_of", "resample", "sft_plain", "sft_stop")
"""Methods with a number: so many passes, or draws."""

BEST_OVER_FIRST = "last pass, accepted, over y0, each at its best temperature"
BEST_OVER_FINE_TUNED = "last pass, accepted, over the fine-tuned improver's plain one, each at its best temperature"
"""Comparisons at the best temperatures, in addition to those of `summary.comparisons`."""

SINGLE = ("y0", "sft_policy", "other_reference_1", "empty_reference_1")
"""Methods without one."""


def qualities(trials: Trials, passes: int, main: str) -> dict[tuple[int, str], dict[str, float]]:
    """Return mean quality by (seed, variant) and method, at temperature 1 and at the best temperature."""
    best = best_of_swept(trials, passes, main)[1].values()
    prefixes = {name.partition("/")[0] + "/" for name in best}
    kept: dict[tuple[int, str], dict[str, float]] = {}
    for key, trial in sorted(trials.items()):
        names = [name for name in trial["quality"] if name in SINGLE or name.rpartition("_")[0] in STEMS]
        names += [name for name in trial["quality"] if any(name.startswith(prefix) for prefix in prefixes)]
        kept[key] = {name: float(np.mean(trial["quality"][name])) for name in names}
    return kept


def points(trials: Trials, passes: int, main: str) -> dict[tuple[int, str], dict[str, float]]:
    """Return win rate minus lose rate by (seed, main variant) and comparison, where both sides were measured."""
    values: dict[tuple[int, str], dict[str, float]] = {}
    # Passes against the pass before are in the detailed tables; pages have no use for them.
    asked = {text: sides for text, sides in comparisons(passes, main).items() if not text.startswith("pass ")}
    best = best_of_swept(trials, passes, main)[1]
    last = best.get(f"pit_stop_{passes}")
    for text, rival in ((BEST_OVER_FIRST, "y0"), (BEST_OVER_FINE_TUNED, f"sft_plain_{passes}")):
        if last is not None and rival in best:
            asked[text] = ((main, last), (main, best[rival]))
    for seed in sorted({seed for seed, _ in trials}):
        for text, sides in asked.items():
            scores = [trials.get((seed, variant), {}).get("quality", {}).get(name) for variant, name in sides]
            if scores[0] is not None and scores[1] is not None:
                worth = delta(np.array(scores[0]), np.array(scores[1]), resamples=1)
                values.setdefault((seed, main), {})[text] = worth.value
    return values


def figures(trials: Trials, passes: int, main: str) -> dict[tuple[int, str], dict[str, float]]:
    """Return qualities and points of one family."""
    compared = points(trials, passes, main)
    return {key: {**row, **compared.get(key, {})} for key, row in qualities(trials, passes, main).items()}


def to_csv(by_family: Mapping[str, Figures]) -> str:
    """Return the file: a row per family, seed and variant, a column per figure; qualities to 4 decimals, points to 1.

    >>> print(to_csv({"relay": {(7, "own"): {"y0": 0.5, "one pass over y0": 12.34}}}), end="")
    family,seed,variant,y0,one pass over y0
    relay,7,own,.5,12.3
    """
    rows = [(family, *key, row) for family, figures in by_family.items() for key, row in sorted(figures.items())]
    columns = list(dict.fromkeys(name for *_, row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEYS, *columns])
    for family, seed, variant, row in rows:
        writer.writerow([family, seed, variant, *(_short(name, row.get(name)) for name in columns)])
    return text.getvalue()


def read_csv(path: Path) -> dict[str, dict[tuple[int, str], dict[str, float]]]:
    """Return the figures of every family; a figure that a trial does not have is left out.

    Raises:
        ValueError: the file does not begin with the columns `KEYS`, or a figure is not a number.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        head = next(reader, [])
        if tuple(head[:3]) != KEYS:
            raise ValueError(f"{path}: the first columns are {head[:3]}, they must be {list(KEYS)}; restore the file")
        by_family: dict[str, dict[tuple[int, str], dict[str, float]]] = {}
        for family, seed, variant, *cells in reader:
            row = {name: float(cell) for name, cell in zip(head[3:], cells, strict=True) if cell}
            by_family.setdefault(family, {})[int(seed), variant] = row
    return by_family


def values(by_trial: Figures, variant: str, name: str) -> list[float]:
    """Return one figure of a variant, a value per seed that has it, seeds ascending."""
    return [row[name] for (_, of), row in sorted(by_trial.items()) if of == variant and name in row]


def table(by_trial: Figures, variant: str, names: Sequence[str]) -> np.ndarray:
    """Return several figures of a variant: a row per seed that has all of them, a column per name."""
    rows = [row for (_, of), row in sorted(by_trial.items()) if of == variant and all(name in row for name in names)]
    return np.array([[row[name] for name in names] for row in rows])


def _short(name: str, value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.1f}" if " " in name else f"{value:.4f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) and text not in ("0.0",) else text
