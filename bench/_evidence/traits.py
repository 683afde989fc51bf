"""Traits of seeds: which of a seed's other figures correlate with its comparisons with best of n."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from _evidence.variants import Trials
from pit.evaluate.across import across_seeds

TRAITS: dict[str, tuple[str, str]] = {
    "y0": ("quality", "y0"),
    "y0 at temperature .2": ("quality", "t0.2/y0"),
    "M_P, one answer": ("quality", "sft_policy"),
    "one plain pass": ("quality", "pit_plain_1"),
    "one plain pass on another prompt's answer": ("quality", "other_reference_1"),
    "fine-tuned improver, one plain pass": ("quality", "sft_plain_1"),
    "R_P's accuracy on samples of M_P^RL": ("accuracy", "R_P"),
    "R_PIT's accuracy on samples of M_P^RL": ("accuracy", "R_PIT symmetric"),
}
"""Candidates for a correlation: the mean quality of a method, or the accuracy of a reward model."""

ENOUGH = 8
"""Least number of seeds for a correlation."""

SURE = 0.95
"""Least share of perfect answers at temperature .2 of a policy that fails by chance; below it, it fails by habit."""


def trait(trial: Mapping[str, Any], kind: str, name: str) -> float | None:
    """Return one of a trial's `TRAITS`, None where it was not measured."""
    if kind == "quality":
        return float(np.mean(trial["quality"][name])) if name in trial["quality"] else None
    sought = (name, "samples of M_P^RL")
    accuracies = [row["accuracy"] for row in trial["accuracies"] if (row["model"], row["aspect"]) == sought]
    return float(accuracies[0]) if accuracies else None


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, float] | None:
    """Return Pearson's correlation with Fisher's 95 % interval.

    None for fewer than `ENOUGH` pairs, or where one side has the same value in all of them.

    >>> {key: round(value, 3) for key, value in correlation([1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7]).items()}
    {'value': 0.905, 'low': 0.552, 'high': 0.983, 'seeds': 8}
    """
    if len(x) < ENOUGH or not np.std(x) or not np.std(y):
        return None
    value = float(np.corrcoef(x, y)[0, 1])
    half = 1.96 / math.sqrt(len(x) - 3)
    with np.errstate(divide="ignore"):  # both ends of a perfect correlation are the correlation itself
        low, high = (float(np.tanh(np.arctanh(value) + side)) for side in (-half, half))
    return {"value": value, "low": low, "high": high, "seeds": len(x)}


def over_draws(passes: int) -> tuple[str, str]:
    """Return the names of the comparisons with best of n at equal samples, as `summary.comparisons` has them."""
    return "one pass over best of 2 by R_P", f"{passes} passes over best of {passes + 1} by R_P"


def correlations(trials: Trials, compared: Mapping[str, Any], passes: int, main: str) -> dict[str, Any]:
    """Return the correlation over seeds of each of `TRAITS` with each comparison with best of n."""
    rows: dict[str, Any] = {}
    for text in over_draws(passes):
        by_seed = compared.get(text, {}).get("seeds", {})
        for what, (kind, name) in TRAITS.items():
            measured = {seed: trait(trials[seed, main], kind, name) for seed in by_seed}
            pairs = [(value, by_seed[seed]["value"]) for seed, value in measured.items() if value is not None]
            row = correlation(*zip(*pairs, strict=True)) if pairs else None
            if row is not None:
                rows.setdefault(what, {})[text] = row
    return rows


def split_by_habit(trials: Trials, compared: Mapping[str, Any], passes: int, main: str) -> dict[str, Any]:
    """Return the comparisons with draws apart for seeds whose policy fails by habit and for all others.

    A policy fails by habit if fewer than `SURE` of its answers at temperature .2 are perfect. The result is empty
    unless there are two seeds of either kind.
    """
    shares = {
        seed: float(np.mean(np.array(trial["quality"]["t0.2/y0"]) == 1))
        for (seed, variant), trial in sorted(trials.items())
        if variant == main and "t0.2/y0" in trial["quality"]
    }
    sides = {
        "habit": [seed for seed, share in shares.items() if share < SURE],
        "none": [seed for seed, share in shares.items() if share >= SURE],
    }
    if min(map(len, sides.values())) < 2:
        return {}
    over = {
        text: {
            side: across_seeds([compared[text]["seeds"][seed]["value"] for seed in seeds])._asdict()
            for side, seeds in sides.items()
        }
        for text in (*over_draws(passes), f"{passes} passes over resampling")
    }
    return {"seeds": sides, "over": over}
