"""Learned invariants of a gap scorer: orders, antisymmetry, transitivity, calibration.

All are rates over a data set; w is the better and l the worse answer of a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from pit.evaluate.stats import Interval, pair_accuracy, paired_mean_difference
from pit.testing.invariants.base import Case, Measurement, Scores, Statistical, mean, share
from pit.testing.invariants.behavioural import GAP, lead, replace_words
from pit.testing.scorers import Item

TIE = 0.1
"""Difference below which two scores count as equal, in standard deviations of r(w,l) - r(l,w)."""

MATCHED = 0.1
"""Relative difference up to which two lengths count as equal."""

_PIT = "PIT (arXiv 2310.00898), section 3.3"
_WL, _WW, _LL, _LW = range(4)


@dataclass(frozen=True)
class Learned(Statistical):
    """A learned invariant of the four gaps among the two answers of a pair."""

    kind: ClassVar[str] = "learned"

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return the items of r(w,l), r(w,w), r(l,l) and r(l,w)."""
        w, l = case.better, case.worse  # noqa: E741 - the paper's names
        pairs = ((w, l), (w, w), (l, l), (l, w))
        return tuple(Item(case.prompt, output, reference) for output, reference in pairs)


@dataclass(frozen=True)
class Order(Learned):
    """The share of cases in which several orders hold at once.

    pairs: columns (higher, lower) of each order.
    """

    pairs: tuple[tuple[int, int], ...]

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share of cases whose smallest difference is positive."""
        return share(np.min([lead(scores, *pair) for pair in self.pairs], axis=0))


def spread(scores: Scores) -> float:
    """Return the standard deviation of r(w,l) - r(l,w) over the data, or its absolute value for a single case."""
    leads = lead(scores, _WL, _LW)
    return float(np.std(leads) if len(leads) > 1 else np.abs(leads[0]))


@dataclass(frozen=True)
class Alike(Learned):
    """The share of cases in which a signed sum of the four scores is within `TIE` standard deviations of 0.

    signs: sign of each score in the sum.
    """

    signs: tuple[int, int, int, int]

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share."""
        return share(TIE * spread(scores) - np.abs(scores @ np.array(self.signs, np.float64)))


@dataclass(frozen=True)
class Transitive(Statistical):
    """The share of triples (better, worse, better with half its words replaced) that are not ranked in a cycle."""

    kind: ClassVar[str] = "learned"

    def usable(self, case: Case) -> bool:
        """Return whether the three answers differ."""
        return len({case.better, case.worse, replace_words(case, 0.5)}) == 3

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return both orders of the three pairs."""
        a, b, c = case.better, case.worse, replace_words(case, 0.5)
        return tuple(Item(case.prompt, *pair) for pair in ((a, b), (b, a), (b, c), (c, b), (c, a), (a, c)))

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share; the margin of a cycle is its weakest link."""
        links = np.stack([lead(scores, 0, 1), lead(scores, 2, 3), lead(scores, 4, 5)])
        return share(-np.maximum(links.min(axis=0), (-links).min(axis=0)))


@dataclass(frozen=True)
class Growth(Statistical):
    """The share of steps at which a lead grows as the rival gets worse: 25, 50, then 100 % of its words replaced."""

    kind: ClassVar[str] = "learned"

    def usable(self, case: Case) -> bool:
        """Return whether all rivals differ."""
        return len({case.better, *(replace_words(case, step) for step in _STEPS)}) == 1 + len(_STEPS)

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return both orders of the answer and each rival."""
        pairs = [(case.better, replace_words(case, step)) for step in _STEPS]
        return tuple(Item(case.prompt, *order) for a, b in pairs for order in ((a, b), (b, a)))

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the mean share of steps."""
        leads = np.stack([lead(scores, i, i + 1) for i in range(0, 2 * len(_STEPS), 2)], axis=1)
        steps = np.diff(leads, axis=1)
        grown = (np.sign(steps) + 1) / 2
        return mean(grown.mean(axis=1), steps.min(axis=1))


_STEPS = (0.25, 0.5, 1.0)


def _pairs(scores: Scores) -> Float64[np.ndarray, " n"]:
    return lead(scores, 0, 3)


def _accuracy(leads: Float64[np.ndarray, " n"]) -> Interval:
    return pair_accuracy(leads, np.zeros_like(leads))


@dataclass(frozen=True)
class Accuracy(Learned):
    """The share of pairs ranked correctly, with a table by size of the gap and by length."""

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share, with its table: quarters by size of the gap, three groups by length."""
        leads = _pairs(scores)
        difference = np.array([len(case.better) - len(case.worse) for case in cases])
        order = np.argsort(np.abs(leads), kind="stable")
        table = [
            (f"gap in quarter {i + 1} of 4", _accuracy(leads[quarter]))
            for i, quarter in enumerate(np.array_split(order, 4))
            if len(quarter)
        ]
        by_length = (
            ("better is shorter", difference < 0),
            ("equal length", difference == 0),
            ("better is longer", difference > 0),
        )
        table += [(label, _accuracy(leads[chosen])) for label, chosen in by_length if chosen.any()]
        return share(leads, tuple(table))


@dataclass(frozen=True)
class MatchedLength(Learned):
    """The share of pairs ranked correctly among pairs of about equal length, where length cannot help."""

    def usable(self, case: Case) -> bool:
        """Return whether the lengths match."""
        longest = max(len(case.better), len(case.worse))
        return abs(len(case.better) - len(case.worse)) <= MATCHED * longest

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share."""
        return share(_pairs(scores))


@dataclass(frozen=True)
class LengthBias(Learned):
    """The share in which the longer answer is preferred minus the share in which it is better; 0 without a bias."""

    ideal: ClassVar[float | None] = 0.0

    def usable(self, case: Case) -> bool:
        """Return whether one answer is longer."""
        return len(case.better) != len(case.worse)

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the paired difference of the two shares."""
        longer = np.array([len(case.better) > len(case.worse) for case in cases])
        leads = _pairs(scores)
        preferred = (np.sign(np.where(longer, leads, -leads)) + 1) / 2
        return Measurement(
            paired_mean_difference(preferred, longer.astype(np.float64)), np.where(longer, np.abs(leads), leads)
        )


@dataclass(frozen=True)
class OrderBias(Learned):
    """The share of pairs won by the output in both orders minus the share won by the reference; 0 without a bias.

    An offset that all gaps share is removed by the two gaps of an answer over itself.
    """

    ideal: ClassVar[float | None] = 0.0

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the mean of the two signs; the table has the share that one place wins whichever answer it holds."""
        offset = (scores[:, _WW] + scores[:, _LL]) / 2
        first, second = scores[:, _WL] - offset, scores[:, _LW] - offset
        signs = (np.sign(first) + np.sign(second)) / 2
        table = (("one place wins both orders", mean(np.abs(signs), -np.abs(signs)).interval),)
        # Both gaps have one sign where a place wins; the smaller one is what an answer would need to win over it.
        margins = np.where(first * second > 0, -np.minimum(np.abs(first), np.abs(second)), np.abs(first - second))
        return Measurement(mean(signs, margins).interval, margins, table)


@dataclass(frozen=True)
class Calibration(Learned):
    """Expected calibration error of sigmoid(r(w,l) - r(l,w)) as the probability of being correct (Guo et al. 2017).

    The table is the reliability curve: accuracy at each confidence.

    bins: number of equal bins of the confidence, from 0.5 to 1.
    """

    bins: int = 5
    ideal: ClassVar[float | None] = 0.0

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the error, with a bootstrap interval over cases at fixed bins."""
        leads = _pairs(scores)
        confidence = 1 / (1 + np.exp(-np.abs(leads)))
        correct = (np.sign(leads) + 1) / 2
        place = np.minimum(((confidence - 0.5) * 2 * self.bins).astype(int), self.bins - 1)
        bins = [place == i for i in range(self.bins)]
        table = tuple(
            (f"confidence {confidence[members].mean():.2f}", _accuracy(leads[members]))
            for members in bins
            if members.any()
        )
        # The error is |mean(accuracy - confidence)| per bin, weighted by the size of the bin.
        signed = np.zeros(len(cases))
        for members in bins:
            if members.any():
                error = correct[members] - confidence[members]
                signed[members] = error * (1.0 if error.mean() >= 0 else -1.0)
        interval = mean(signed, signed).interval
        # The side of the diagonal on which a bin lies is taken as known, so a resampled mean may be negative.
        return Measurement(
            interval._replace(low=max(interval.low, 0.0)), np.where(correct == 0, -confidence, 1 - confidence), table
        )


def _order(name: str, statement: str, *pairs: tuple[int, int]) -> Order:
    return Order(name, statement, _PIT, GAP, 0.5 if len(pairs) == 1 else None, pairs)


LEARNED: tuple[Statistical, ...] = (
    _order("order_wl_ww", "r(w,l) >= r(w,w)", (_WL, _WW)),
    _order("order_wl_ll", "r(w,l) >= r(l,l): copying the reference gains nothing", (_WL, _LL)),
    _order("order_wl_lw", "r(w,l) >= r(l,w)", (_WL, _LW)),
    _order("order_ww_lw", "r(w,w) >= r(l,w)", (_WW, _LW)),
    _order("order_ll_lw", "r(l,l) >= r(l,w)", (_LL, _LW)),
    _order("order", "r(w,l) >= r(w,w), r(l,l) >= r(l,w)", (_WL, _WW), (_WL, _LL), (_WW, _LW), (_LL, _LW)),
    Alike("identity_alike", f"|r(w,w) - r(l,l)| < {TIE} sd of r(w,l) - r(l,w)", _PIT, GAP, None, (0, 1, -1, 0)),
    Alike("antisymmetry", f"|r(w,l) + r(l,w) - r(w,w) - r(l,l)| < {TIE} sd", _PIT, GAP, None, (1, -1, -1, 1)),
    Transitive(
        "transitivity", "no cycle a > b > c > a", "random preferences are transitive in 3 of 4 triples", GAP, 0.75
    ),
    Growth(
        "growth",
        "lead(w over w with 25, 50, 100 % of words replaced) grows",
        "known differences in quality",
        GAP,
        0.5,
    ),
    Accuracy("accuracy", "r(w,l) > r(l,w)", "RewardBench (arXiv 2403.13787)", GAP, 0.5),
    MatchedLength("matched_length", "r(w,l) > r(l,w) where lengths differ by <= 10 %", "matched pairs", GAP, 0.5),
    LengthBias("length_bias", "P(longer preferred) - P(longer better)", "matched pairs", GAP, None),
    OrderBias(
        "order_bias",
        "P(output wins both orders) - P(reference wins both orders)",
        "position bias of judges (arXiv 2306.05685)",
        GAP,
        None,
    ),
    Calibration("calibration", "E |P(correct) - confidence|", "Guo et al. 2017 (arXiv 1706.04599)", GAP, None),
)
"""Learned invariants of every gap scorer."""
