"""Strategies compute the weights of entries: pure functions of counts, gaps and difficulty.

They use single IEEE operations in float64, and results are rounded to integers once, so every machine computes the same
weights.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, UInt16

_PRIOR = 2.0
"""Weight of the guess before any feedback, in trials."""
_QUANTILE_MIN = 32
"""Smallest number of visited entries from which quantiles of gaps are taken."""


class EntryStats(NamedTuple):
    """Statistics of n entries.

    trials: number of samples; old ones lose weight.
    wins: number of samples that beat their reference.
    gap: mean centred gap at the last visit, 0 before the first one.
    difficulty: rank of the example from the easiest (0) to the hardest (1); 0.5 if unknown.
    """

    trials: UInt16[np.ndarray, " n"]
    wins: UInt16[np.ndarray, " n"]
    gap: Float32[np.ndarray, " n"]
    difficulty: Float32[np.ndarray, " n"]


@runtime_checkable
class Strategy(Protocol):
    """Rule that weights entries; users may pass a type of their own."""

    @property
    def phases(self) -> int:
        """Number of phases of a run; `notes` are computed at the start of each."""

    def notes(self, stats: EntryStats, progress: float) -> tuple[float, ...]:
        """Return numbers that all weights of a phase depend on.

        Args:
            stats: statistics of all entries.
            progress: share of the run's steps that is done, in [0, 1).
        """

    def weights(self, stats: EntryStats, notes: tuple[float, ...]) -> Float64[np.ndarray, " n"]:
        """Return the weight of each entry, in [0, 1]; only their ratios matter."""


@dataclass(frozen=True)
class Learnability:
    """Weights 4 p (1 - p), where p is the rate at which samples beat their reference: highest for p = 1/2.

    A policy gradient learns from the variance of success: Rutherford et al., "No Regrets: Investigating
    and Improving Regret Approximations for Curriculum Discovery", 2024; Foster et al., "Learning to Reason at the
    Frontier of Learnability", 2025. Before feedback p is guessed from the difficulty: 1 - rank.

    Attributes:
        floor: share of the weight that every entry keeps, so none is forgotten.
        explore: bonus of an entry without trials, relative to the highest learnability; it falls as
            1 / sqrt(1 + trials).
    """

    floor: float = 0.05
    explore: float = 0.25

    phases = 1

    def notes(self, stats: EntryStats, progress: float) -> tuple[float, ...]:
        """Return no numbers: the weights need none."""
        return ()

    def weights(self, stats: EntryStats, notes: tuple[float, ...]) -> Float64[np.ndarray, " n"]:
        """See `Strategy`."""
        guess = 1.0 - stats.difficulty.astype(np.float64)
        trials = stats.trials.astype(np.float64)
        rate = (stats.wins + _PRIOR * guess) / (trials + _PRIOR)
        learnable = 4.0 * rate * (1.0 - rate)
        bonus = self.explore / np.sqrt(1.0 + trials)
        weight: np.ndarray = (self.floor + (1.0 - self.floor) * learnable + bonus) / (1.0 + self.explore)
        return weight


@dataclass(frozen=True)
class GapBand:
    """Full weight for examples whose last centred gap lies in a band that moves during training.

    This is a proposal of this project. The band is an interval of ranks among the gaps measured so far, so it needs no
    unit: rank 1 is the gap that the policy wins by most, rank 0 the one that it loses by most. An entry without trials
    takes its rank from the difficulty of its example, the easiest having the highest rank.

    Attributes:
        start, end: middle of the band at the first and the last step, in [0, 1].
        width: width of the band, in (0, 1].
        floor: weight outside the band, relative to that inside.
        phases: number of moves of the band; its edges are recomputed at each.
    """

    start: float = 0.8
    end: float = 0.2
    width: float = 0.4
    floor: float = 0.05
    phases: int = 20

    def notes(self, stats: EntryStats, progress: float) -> tuple[float, ...]:
        """Return the lower and upper rank of the band, and the gaps at these ranks."""
        middle = self.start + (self.end - self.start) * progress
        low, high = max(0.0, middle - self.width / 2.0), min(1.0, middle + self.width / 2.0)
        gaps = np.sort(stats.gap[stats.trials > 0])
        if len(gaps) < _QUANTILE_MIN:
            return low, high, -np.inf, np.inf
        # The ends are open: a gap beyond all earlier ones lies in the band that touches its end.
        lower = -np.inf if low == 0.0 else float(gaps[int(low * (len(gaps) - 1))])
        upper = np.inf if high == 1.0 else float(gaps[int(high * (len(gaps) - 1))])
        return low, high, lower, upper

    def weights(self, stats: EntryStats, notes: tuple[float, ...]) -> Float64[np.ndarray, " n"]:
        """See `Strategy`."""
        low, high, lower, upper = notes
        rank = 1.0 - stats.difficulty.astype(np.float64)
        inside = np.where(stats.trials > 0, (stats.gap >= lower) & (stats.gap <= upper), (rank >= low) & (rank <= high))
        weight: np.ndarray = np.where(inside, 1.0, self.floor)
        return weight
