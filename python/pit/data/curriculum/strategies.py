"""How weights follow from what was seen: small types, pure functions of counts, gaps and difficulty.

Arithmetic is of single IEEE operations in float64, rounded to integers once, so that every machine computes the same
weights.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, UInt16

_PRIOR = 2.0
"""Trials that the guess before any feedback is worth."""
_QUANTILE_MIN = 32
"""Entries that must have been seen before their gaps say what a small or a large one is."""


class Seen(NamedTuple):
    """What is known of some entries.

    trials: samples, old ones fading; wins: those that beat their reference.
    gap: mean centred gap at the last visit, 0 before.
    difficulty: rank of the example from the easiest (0) to the hardest (1); 0.5 where nothing is known.
    """

    trials: UInt16[np.ndarray, " n"]
    wins: UInt16[np.ndarray, " n"]
    gap: Float32[np.ndarray, " n"]
    difficulty: Float32[np.ndarray, " n"]


@runtime_checkable
class Strategy(Protocol):
    """Weights of entries; a user's own type works as well."""

    @property
    def phases(self) -> int:
        """How often in a run `notes` are taken anew."""

    def notes(self, seen: Seen, progress: float) -> tuple[float, ...]:
        """Numbers that all weights of a phase share.

        Args:
            seen: all entries.
            progress: share of the run's steps that is done, in [0, 1).
        """

    def weights(self, seen: Seen, notes: tuple[float, ...]) -> Float64[np.ndarray, " n"]:
        """Weights in [0, 1] of some entries; only their ratios matter."""


@dataclass(frozen=True)
class Learnability:
    """Priority to what is neither won nor lost always: 4 p (1 - p), p the rate at which samples beat their reference.

    The variance of a success is what a policy gradient can learn from: Rutherford et al., "No Regrets: Investigating
    and Improving Regret Approximations for Curriculum Discovery", 2024; Foster et al., "Learning to Reason at the
    Frontier of Learnability", 2025. Before feedback p is guessed from the difficulty: 1 - rank.

    Attributes:
        floor: share of the weight that every entry keeps, so that none is forgotten.
        explore: bonus of an entry never seen, relative to the highest learnability; it falls as 1 / sqrt(1 + trials).
    """

    floor: float = 0.05
    explore: float = 0.25

    phases = 1

    def notes(self, seen: Seen, progress: float) -> tuple[float, ...]:
        """None are needed."""
        return ()

    def weights(self, seen: Seen, notes: tuple[float, ...]) -> Float64[np.ndarray, " n"]:
        """See `Strategy`."""
        guess = 1.0 - seen.difficulty.astype(np.float64)
        trials = seen.trials.astype(np.float64)
        rate = (seen.wins + _PRIOR * guess) / (trials + _PRIOR)
        learnable = 4.0 * rate * (1.0 - rate)
        bonus = self.explore / np.sqrt(1.0 + trials)
        weight: np.ndarray = (self.floor + (1.0 - self.floor) * learnable + bonus) / (1.0 + self.explore)
        return weight


@dataclass(frozen=True)
class GapBand:
    """Priority to examples whose last centred gap lies in a band that moves with training; a proposal of this project.

    The band is one of ranks among the gaps seen so far, so it needs no unit: it begins at `start` (1: the gaps that the
    policy wins by most) and ends at `end` (0: those it loses by most), `width` wide. An entry never seen counts by the
    difficulty of its example, the easiest having the highest rank.

    Attributes:
        start, end: middle of the band at the first and the last step, in [0, 1].
        width: of the band, in (0, 1].
        floor: weight outside the band, relative to that inside.
        phases: steps of the band's way; its edges are measured anew at each.
    """

    start: float = 0.8
    end: float = 0.2
    width: float = 0.4
    floor: float = 0.05
    phases: int = 20

    def notes(self, seen: Seen, progress: float) -> tuple[float, ...]:
        """(lower, upper) rank of the band, and the gaps at those ranks."""
        middle = self.start + (self.end - self.start) * progress
        low, high = max(0.0, middle - self.width / 2.0), min(1.0, middle + self.width / 2.0)
        gaps = np.sort(seen.gap[seen.trials > 0])
        if len(gaps) < _QUANTILE_MIN:
            return low, high, -np.inf, np.inf
        # Ends of the ranks are open, so that a gap beyond all that were seen is in the band that touches that end.
        lower = -np.inf if low == 0.0 else float(gaps[int(low * (len(gaps) - 1))])
        upper = np.inf if high == 1.0 else float(gaps[int(high * (len(gaps) - 1))])
        return low, high, lower, upper

    def weights(self, seen: Seen, notes: tuple[float, ...]) -> Float64[np.ndarray, " n"]:
        """See `Strategy`."""
        low, high, lower, upper = notes
        rank = 1.0 - seen.difficulty.astype(np.float64)
        inside = np.where(seen.trials > 0, (seen.gap >= lower) & (seen.gap <= upper), (rank >= low) & (rank <= high))
        weight: np.ndarray = np.where(inside, 1.0, self.floor)
        return weight
