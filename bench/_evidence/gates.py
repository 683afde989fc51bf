"""What must hold, and how soon training gets somewhere: rules written before the runs they judge."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from _evidence.variants import Trials

GATED = "describe"
"""The family that must pass the gates."""

BELOW_END = 0.01
"""The target: so much below what the main variant ends at, mean over seeds, in quality."""


@dataclass(frozen=True)
class Gate:
    """A figure over seeds, and where it must be.

    what: in words.
    comparison: of the summary's.
    figure: `over_seeds`, win rate minus lose rate, or `quality_over_seeds`, mean quality; both in points.
    low: the lower end of its 95 % t-interval must be above this.
    value: the mean must be at least this.
    """

    what: str
    comparison: str
    figure: Literal["over_seeds", "quality_over_seeds"] = "over_seeds"
    low: float = 0.0
    value: float = -math.inf

    @property
    def rule(self) -> str:
        """What is asked, in words.

        >>> Gate("all passes", "5 passes", low=10.0, value=20.0).rule
        'mean at least +20, t-interval above +10'
        """
        mean = "" if math.isinf(self.value) else f"mean at least {self.value:+g}, "
        return f"{mean}t-interval above {self.low:{'+' if self.low else ''}g}"

    def judged(self, comparisons: Mapping[str, Any]) -> dict[str, Any]:
        """Value and interval over seeds, and whether the gate holds; None where there are no two seeds to say."""
        over = comparisons.get(self.comparison, {}).get(self.figure)
        unit = "win rate minus lose rate" if self.figure == "over_seeds" else "change of mean quality"
        said = {"gate": self.what, "rule": self.rule, "unit": f"{unit}, points", "held": None}
        if over is None:
            return said
        held = over["low"] > self.low and over["value"] >= self.value
        return said | {key: over[key] for key in ("value", "low", "high", "seeds", "above", "below")} | {"held": held}


def gates(passes: int) -> list[Gate]:
    """What must hold of the main variant on the first family, `GATED`."""
    return [
        Gate(f"y{passes} over y0, accepted", f"{passes} passes, accepted", low=10.0, value=20.0),
        *(
            Gate(
                f"y{k} against y{k - 1}, accepted",
                f"pass {k} over the answer before, accepted",
                "quality_over_seeds",
                low=-0.5,
            )
            for k in range(1, passes + 1)
        ),
        Gate("one plain pass over y0", "one plain pass"),
        Gate("own reference over another prompt's", "own reference over another prompt's"),
        Gate("M_P^RL over M_P", "M_P^RL over M_P"),
    ]


def steps_to_target(trials: Trials, main: str) -> dict[str, Any]:
    """Of each variant and seed the RL step of the first checkpoint that reached the target, None where none did.

    A checkpoint is worth what one plain pass over y0 is, on held-out prompts, the same for all variants of a seed.
    """
    curves = {key: trial["learning_curve"] for key, trial in sorted(trials.items()) if trial["learning_curve"]}
    ends = [curve[-1][1] for (_, variant), curve in curves.items() if variant == main]
    if not ends:
        return {}
    target = float(np.mean(ends)) - BELOW_END
    found: dict[str, dict[int, int | None]] = {}
    for (seed, variant), curve in curves.items():
        found.setdefault(variant, {})[seed] = next((step for step, worth in curve if worth >= target), None)
    rule = f"first checkpoint that reaches the end of {main}, mean over seeds, less {BELOW_END:g}"
    return {"rule": rule, "target": round(target, 4), "steps": found}
