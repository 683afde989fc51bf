"""Controllers of an RL stage: the KL coefficient and the running scale of its scores.

Both are saved with every checkpoint and resume from there with the same bits. The scale is
that of Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from pit.config import RlConfig
from pit.losses.rl import adapted_beta


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of all values so far, in float64."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def merged(self, values: Float32[np.ndarray, "*n"]) -> "Moments":
        """Return the moments of these values and more.

        >>> moments = Moments().merged(np.array([1, 2], np.float32)).merged(np.array([6], np.float32))
        >>> moments.mean, moments.squares
        (3.0, 14.0)
        """
        exact = values.astype(np.float64)
        count, mean = exact.size, float(exact.mean())
        squares, total = float(np.sum((exact - mean) ** 2)), self.count + count
        delta = mean - self.mean
        return Moments(
            total,
            self.mean + delta * count / total,
            self.squares + squares + delta * delta * self.count * count / total,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation; 1 where all values are equal or there are none, so that scores can be divided by it."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0


@dataclass(frozen=True)
class Controllers:
    """KL coefficient (score per nat) of the next step, and the moments of the scores so far (none if not asked for)."""

    beta: float
    scores: Moments = field(default_factory=Moments)

    def seen(self, config: RlConfig, scores: Float32[np.ndarray, "G N"]) -> "Controllers":
        """Return the controllers after the scores of a step, before they are shaped."""
        return Controllers(self.beta, self.scores.merged(scores)) if config.running_scale else self

    def adapted(self, config: RlConfig, kl_nats: float) -> "Controllers":
        """Return the controllers after a step whose samples had that mean KL."""
        if config.kl.target is None:
            return self
        return Controllers(adapted_beta(self.beta, kl_nats, target=config.kl.target, gain=config.kl.gain), self.scores)

    def state(self) -> dict[str, Any]:
        """Return JSON values from which `of` makes the same bits.

        >>> Controllers.of(Controllers(0.1, Moments(2, 0.3, 1e-9)).state()) == Controllers(0.1, Moments(2, 0.3, 1e-9))
        True
        """
        scores = self.scores
        return {"beta": self.beta, "scores": [scores.count, scores.mean, scores.squares]}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Controllers":
        """Return the controllers of a saved state."""
        count, mean, squares = state["scores"]
        return cls(float(state["beta"]), Moments(int(count), float(mean), float(squares)))
