"""Gates: rules about the main variant of the first family, written before the runs that they judge."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

GATED = "describe"
"""Family that must pass the gates."""


@dataclass(frozen=True)
class Gate:
    """A figure over seeds with its lower bounds.

    what: the gate in words.
    comparison: name of a comparison of the summary.
    figure: `over_seeds`, win rate minus lose rate, or `quality_over_seeds`, mean quality; both in points.
    low: bound that the lower end of the 95 % t-interval must exceed.
    value: least mean.
    """

    what: str
    comparison: str
    figure: Literal["over_seeds", "quality_over_seeds"] = "over_seeds"
    low: float = 0.0
    value: float = -math.inf

    @property
    def rule(self) -> str:
        """Rule in words.

        >>> Gate("all passes", "5 passes", low=10.0, value=20.0).rule
        'mean at least +20, t-interval above +10'
        """
        mean = "" if math.isinf(self.value) else f"mean at least {self.value:+g}, "
        return f"{mean}t-interval above {self.low:{'+' if self.low else ''}g}"

    def judged(self, comparisons: Mapping[str, Any]) -> dict[str, Any]:
        """Return value, interval and verdict (`held`); the verdict is None where fewer than two seeds were measured."""
        over = comparisons.get(self.comparison, {}).get(self.figure)
        unit = "win rate minus lose rate" if self.figure == "over_seeds" else "change of mean quality"
        result = {"gate": self.what, "rule": self.rule, "unit": f"{unit}, points", "held": None}
        if over is None:
            return result
        held = over["low"] > self.low and over["value"] >= self.value
        return result | {key: over[key] for key in ("value", "low", "high", "seeds", "above", "below")} | {"held": held}


def gates(passes: int) -> list[Gate]:
    """Return the gates of the main variant of `GATED`."""
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
