"""What a gap model should have learned: orders, antisymmetry, transitivity, calibration; rates over a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from pit.evaluate.stats import Interval, pair_accuracy, paired_mean_difference
from pit.testing.invariants.base import Case, Finding, Scores, Statistical, mean, question, share
from pit.testing.invariants.behavioural import GAP, lead, mixed
from pit.testing.scorers import Item

TIE = 0.1
"""Standard deviations of r(w,l) - r(l,w) below which two scores count as alike."""

MATCHED = 0.1
"""Relative difference below which two lengths count as equal."""

_PIT = "PIT (arXiv 2310.00898), section 3.3"
_WL, _WW, _LL, _LW = range(4)


@dataclass(frozen=True)
class Learned(Statistical):
    """What these share: the four orders of a pair."""

    kind: ClassVar[str] = "learned"

    def questions(self, case: Case) -> tuple[Item, ...]:
        """r(w,l), r(w,w), r(l,l), r(l,w)."""
        w, l = case.better, case.worse  # noqa: E741 - the paper's names
        return question(case, w, l), question(case, w, w), question(case, l, l), question(case, l, w)


@dataclass(frozen=True)
class Order(Learned):
    """The share of cases in which each order of a list of (higher, lower) holds."""

    pairs: tuple[tuple[int, int], ...]

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The share in which the least difference is above 0."""
        return share(np.min([lead(scores, *pair) for pair in self.pairs], axis=0))


def spread(scores: Scores) -> float:
    """Standard deviation of r(w,l) - r(l,w) over the data, the unit of likeness; of one case alone, its size."""
    leads = lead(scores, _WL, _LW)
    return float(np.std(leads) if len(leads) > 1 else np.abs(leads[0]))


@dataclass(frozen=True)
class Alike(Learned):
    """The share of cases in which a sum of signed scores is within `TIE` standard deviations of 0."""

    signs: tuple[int, int, int, int]

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The share."""
        return share(TIE * spread(scores) - np.abs(scores @ np.array(self.signs, np.float64)))


@dataclass(frozen=True)
class Transitive(Statistical):
    """The share of triples (better, worse, better with half its words exchanged) that are not ranked in a circle."""

    kind: ClassVar[str] = "learned"

    def usable(self, case: Case) -> bool:
        """Where the three differ."""
        return len({case.better, case.worse, mixed(case, 0.5)}) == 3

    def questions(self, case: Case) -> tuple[Item, ...]:
        """Both orders of three pairs."""
        a, b, c = case.better, case.worse, mixed(case, 0.5)
        return tuple(question(case, *pair) for pair in ((a, b), (b, a), (b, c), (c, b), (c, a), (a, c)))

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The share; the margin of a circle is its weakest link."""
        links = np.stack([lead(scores, 0, 1), lead(scores, 2, 3), lead(scores, 4, 5)])
        return share(-np.maximum(links.min(axis=0), (-links).min(axis=0)))


@dataclass(frozen=True)
class Growth(Statistical):
    """The share of steps at which a lead grows as the rival gets worse: 25, 50, then all of its words exchanged."""

    kind: ClassVar[str] = "learned"

    def usable(self, case: Case) -> bool:
        """Where three steps can be told apart."""
        return len({case.better, *(mixed(case, each) for each in _STEPS)}) == 1 + len(_STEPS)

    def questions(self, case: Case) -> tuple[Item, ...]:
        """Both orders of the answer and each rival."""
        pairs = [(case.better, mixed(case, each)) for each in _STEPS]
        return tuple(question(case, *order) for a, b in pairs for order in ((a, b), (b, a)))

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The mean share of steps."""
        leads = np.stack([lead(scores, i, i + 1) for i in range(0, 2 * len(_STEPS), 2)], axis=1)
        steps = np.diff(leads, axis=1)
        right = (np.sign(steps) + 1) / 2
        return mean(right.mean(axis=1), steps.min(axis=1))


_STEPS = (0.25, 0.5, 1.0)


def _pairs(scores: Scores) -> Float64[np.ndarray, " n"]:
    return lead(scores, 0, 3)


def _accuracy(leads: Float64[np.ndarray, " n"]) -> Interval:
    return pair_accuracy(leads, np.zeros_like(leads))


@dataclass(frozen=True)
class Accuracy(Learned):
    """The share of pairs ranked right, by the size of the gap and by which answer is longer."""

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The share, with quarters by the size of the gap and thirds by length."""
        leads = _pairs(scores)
        longer = np.array([len(case.better) - len(case.worse) for case in cases])
        order = np.argsort(np.abs(leads), kind="stable")
        table = [
            (f"gap in quarter {i + 1} of 4", _accuracy(leads[part]))
            for i, part in enumerate(np.array_split(order, 4))
            if len(part)
        ]
        by_length = (("better is shorter", longer < 0), ("as long", longer == 0), ("better is longer", longer > 0))
        table += [(label, _accuracy(leads[chosen])) for label, chosen in by_length if chosen.any()]
        return share(leads, tuple(table))


@dataclass(frozen=True)
class MatchedLength(Learned):
    """The share of pairs ranked right among those of about equal length, where length cannot help."""

    def usable(self, case: Case) -> bool:
        """Where lengths match."""
        longest = max(len(case.better), len(case.worse))
        return abs(len(case.better) - len(case.worse)) <= MATCHED * longest

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The share."""
        return share(_pairs(scores))


@dataclass(frozen=True)
class LengthBias(Learned):
    """How much more often the longer answer is preferred than it is the better one; 0 for a scorer free of it."""

    def usable(self, case: Case) -> bool:
        """Where one is longer."""
        return len(case.better) != len(case.worse)

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The paired difference of two shares."""
        longer = np.array([len(case.better) > len(case.worse) for case in cases])
        leads = _pairs(scores)
        preferred = (np.sign(np.where(longer, leads, -leads)) + 1) / 2
        return Finding(
            paired_mean_difference(preferred, longer.astype(np.float64)), np.where(longer, np.abs(leads), leads)
        )


@dataclass(frozen=True)
class Calibration(Learned):
    """Expected calibration error of sigmoid(r(w,l) - r(l,w)) as the probability of being right (Guo et al. 2017).

    The table is the reliability curve: how often the scorer is right at each confidence.
    """

    bins: int = 5

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The error, with a bootstrap interval over cases at fixed bins."""
        leads = _pairs(scores)
        confidence = 1 / (1 + np.exp(-np.abs(leads)))
        right = (np.sign(leads) + 1) / 2
        place = np.minimum(((confidence - 0.5) * 2 * self.bins).astype(int), self.bins - 1)
        chosen = [place == i for i in range(self.bins)]
        table = tuple(
            (f"confidence {confidence[each].mean():.2f}", _accuracy(leads[each])) for each in chosen if each.any()
        )
        # Within a bin the signed differences average; the error weighs bins by their size.
        signed = np.zeros(len(cases))
        for each in chosen:
            if each.any():
                off = right[each] - confidence[each]
                signed[each] = off * (1.0 if off.mean() >= 0 else -1.0)
        found = mean(signed, signed).interval
        # Which side of the diagonal a bin lies on is taken as known, so that the mean may be drawn below 0.
        return Finding(
            found._replace(low=max(found.low, 0.0)), np.where(right == 0, -confidence, 1 - confidence), table
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
    Transitive("transitivity", "no circle a > b > c > a", "an order is transitive; chance leaves 3 of 4", GAP, 0.75),
    Growth("growth", "lead(w over w with 25, 50, 100 % other words) grows", "known quality difference", GAP, 0.5),
    Accuracy("accuracy", "r(w,l) > r(l,w)", "RewardBench (arXiv 2403.13787)", GAP, 0.5),
    MatchedLength("matched_length", "r(w,l) > r(l,w) where lengths differ by < 10 %", "matched pairs", GAP, 0.5),
    LengthBias("length_bias", "P(longer preferred) - P(longer better)", "matched pairs", GAP, None),
    Calibration("calibration", "E |P(right) - confidence|", "Guo et al. 2017 (arXiv 1706.04599)", GAP, None),
)
"""Learned invariants of any gap scorer."""
