"""What seeds differ by: with which of its other figures a seed's comparison with best of n goes."""

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
"""What a seed's comparison with best of n may go with: the mean quality of a method, or what a reward model sees."""

ENOUGH = 8
"""Fewer seeds than this have no correlation that is worth saying."""


def trait(trial: Mapping[str, Any], kind: str, name: str) -> float | None:
    """One of a trial's `TRAITS`, where it was measured."""
    if kind == "quality":
        return float(np.mean(trial["quality"][name])) if name in trial["quality"] else None
    sought = (name, "samples of M_P^RL")
    found = [row["accuracy"] for row in trial["accuracies"] if (row["model"], row["aspect"]) == sought]
    return float(found[0]) if found else None


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, float] | None:
    """Pearson's, with Fisher's 95 % interval; nothing for few pairs, or where one side is the same in all of them.

    >>> {key: round(value, 3) for key, value in correlation([1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7]).items()}
    {'value': 0.905, 'low': 0.552, 'high': 0.983, 'seeds': 8}
    """
    if len(x) < ENOUGH or not np.std(x) or not np.std(y):
        return None
    value = float(np.corrcoef(x, y)[0, 1])
    half = 1.96 / math.sqrt(len(x) - 3)
    with np.errstate(divide="ignore"):  # of a perfect correlation both ends are itself
        low, high = (float(np.tanh(np.arctanh(value) + side)) for side in (-half, half))
    return {"value": value, "low": low, "high": high, "seeds": len(x)}


def over_draws(passes: int) -> tuple[str, str]:
    """The comparisons with best of n at as many samples, as `summary.comparisons` names them."""
    return "one pass over best of 2 by R_P", f"{passes} passes over best of {passes + 1} by R_P"


def goes_with(trials: Trials, said: Mapping[str, Any], passes: int, main: str) -> dict[str, Any]:
    """Correlations over seeds of the comparisons with best of n with each of `TRAITS`."""
    found: dict[str, Any] = {}
    for text in over_draws(passes):
        by_seed = said.get(text, {}).get("seeds", {})
        for what, (kind, name) in TRAITS.items():
            had = {seed: trait(trials[seed, main], kind, name) for seed in by_seed}
            pairs = [(value, by_seed[seed]["value"]) for seed, value in had.items() if value is not None]
            row = correlation(*zip(*pairs, strict=True)) if pairs else None
            if row is not None:
                found.setdefault(what, {})[text] = row
    return found


SURE = 0.95
"""A policy of whose coolest answers fewer are perfect is not unlucky in its draws: it is wrong by habit."""


def by_habit(trials: Trials, said: Mapping[str, Any], passes: int, main: str) -> dict[str, Any]:
    """Seeds whose y0 at temperature .2 is perfect on less than `SURE` of the prompts: what is said of those and others.

    Nothing unless there are two seeds of either kind.
    """
    cool = {
        seed: float(np.mean(np.array(trial["quality"]["t0.2/y0"]) == 1))
        for (seed, variant), trial in sorted(trials.items())
        if variant == main and "t0.2/y0" in trial["quality"]
    }
    sides = {"habit": [s for s, share in cool.items() if share < SURE], "none": [s for s in cool if cool[s] >= SURE]}
    if min(map(len, sides.values())) < 2:
        return {}
    over = {
        text: {
            side: across_seeds([said[text]["seeds"][seed]["value"] for seed in seeds])._asdict()
            for side, seeds in sides.items()
        }
        for text in (*over_draws(passes), f"{passes} passes over resampling")
    }
    return {"seeds": sides, "over": over}
