"""Behaviour in CheckList's three kinds (Ribeiro et al. 2020, arXiv 2005.04118).

Invariance: a change that keeps the meaning keeps the ranking. Directional expectation: a change for the worse lowers
the gap. Minimum functionality: what every reward model must rank right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from pit.evaluate.stats import pair_accuracy, paired_mean_difference
from pit.testing.invariants.base import Case, Finding, Scores, Statistical, question, share
from pit.testing.scorers import Item, Level
from pit.testing.transformations import POLITE, SPACED, TRANSFORMATIONS, Transformation

_CHECKLIST = "CheckList (arXiv 2005.04118)"
_REWORDBENCH = "reWordBench (arXiv 2503.11751)"
GAP = frozenset({Level.GAP})


def lead(scores: Scores, first: int, second: int) -> Float64[np.ndarray, " n"]:
    """r(a, b) - r(b, a) from the columns of the two orders: above 0 where a is ranked above b."""
    difference: np.ndarray = scores[:, first] - scores[:, second]
    return difference


@dataclass(frozen=True)
class Invariance(Statistical):
    """Ranking accuracy with both answers changed, less that before; in points of a share, from -1 to 1.

    both: whether both answers are changed, or only the worse one.
    """

    transformation: Transformation
    both: bool
    kind: ClassVar[str] = "invariance"

    def usable(self, case: Case) -> bool:
        """Where the change applies to what is changed."""
        texts = (case.better, case.worse) if self.both else (case.worse,)
        return all(self.transformation.applies(text) for text in texts)

    def questions(self, case: Case) -> tuple[Item, ...]:
        """Both orders, before and after."""
        change = self.transformation.apply
        better = change(case.better) if self.both else case.better
        worse = change(case.worse)
        return (
            question(case, case.better, case.worse),
            question(case, case.worse, case.better),
            question(case, better, worse),
            question(case, worse, better),
        )

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The paired difference of two accuracies."""
        before, after = lead(scores, 0, 1), lead(scores, 2, 3)
        right = [(np.sign(x) + 1) / 2 for x in (before, after)]
        zero = np.zeros(len(cases))
        table = (("accuracy before", pair_accuracy(before, zero)), ("accuracy after", pair_accuracy(after, zero)))
        # Only a ranking that was right can be lost.
        margins = np.where(before > 0, after, np.abs(after))
        return Finding(paired_mean_difference(right[1], right[0]), margins, table)


@dataclass(frozen=True)
class Beats(Statistical):
    """The share of cases in which the better answer is ranked above something made of the case."""

    rival: Callable[[Case], str]
    kind: ClassVar[str] = "minimum functionality"

    def usable(self, case: Case) -> bool:
        """Where there is something else than the answer."""
        return self.rival(case) != case.better

    def questions(self, case: Case) -> tuple[Item, ...]:
        """Both orders."""
        rival = self.rival(case)
        return question(case, case.better, rival), question(case, rival, case.better)

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The share."""
        return share(lead(scores, 0, 1))


@dataclass(frozen=True)
class Directional(Statistical):
    """The share of cases in which a change for the worse, of the better answer, lowers its lead over the worse one."""

    spoil: Callable[[Case], str]
    kind: ClassVar[str] = "directional"

    def usable(self, case: Case) -> bool:
        """Where the answer can be spoilt."""
        return self.spoil(case) != case.better

    def questions(self, case: Case) -> tuple[Item, ...]:
        """Both orders of the pair, whole and spoilt."""
        spoilt = self.spoil(case)
        return (
            question(case, case.better, case.worse),
            question(case, case.worse, case.better),
            question(case, spoilt, case.worse),
            question(case, case.worse, spoilt),
        )

    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The share."""
        return share(lead(scores, 0, 1) - lead(scores, 2, 3))


def half(text: str) -> str:
    """The first half of the words.

    >>> half("one two three four")
    'one two'
    """
    words = text.split(" ")
    return " ".join(words[: len(words) // 2])


def mixed(case: Case, share_of_words: float) -> str:
    """The better answer with a share of its words, spread evenly, taken from the answer to another prompt."""
    words, others = case.better.split(" "), case.other.split(" ") or ["..."]
    count = round(share_of_words * len(words))
    places = {int((k + 0.5) * len(words) / count) for k in range(count)} if count else set()
    return " ".join(others[i % len(others)] if i in places else word for i, word in enumerate(words))


def repeated(text: str) -> str:
    """The text with its last word said six times more."""
    words = text.split()
    return " ".join([*words, *words[-1:] * 6])


def _unchanged(transformation: Transformation, *, both: bool = True) -> Invariance:
    who = "both answers" if both else "the worse answer"
    return Invariance(
        name=f"survives_{transformation.name.replace(' ', '_')}",
        statement=f"accuracy with {transformation.name} in {who} = accuracy without",
        source=_REWORDBENCH,
        needs=GAP,
        floor=None,
        transformation=transformation,
        both=both,
    )


def _beats(name: str, what: str, rival: Callable[[Case], str]) -> Beats:
    return Beats(name, f"r(w, {what}) > r({what}, w)", _CHECKLIST, GAP, 0.5, rival)


BEHAVIOURAL: tuple[Statistical, ...] = (
    *map(_unchanged, TRANSFORMATIONS),
    _unchanged(POLITE, both=False),
    _unchanged(SPACED, both=False),
    Directional(
        "half_is_worse", "lead(w) > lead(first half of w)", _CHECKLIST, GAP, 0.5, lambda case: half(case.better)
    ),
    Directional(
        "mixed_is_worse", "lead(w) > lead(half of it other words)", _CHECKLIST, GAP, 0.5, lambda c: mixed(c, 0.5)
    ),
    _beats("above_nothing", "empty", lambda case: ""),
    _beats("above_off_topic", "another prompt's answer", lambda case: case.other),
    _beats("above_copy_of_prompt", "the prompt", lambda case: case.prompt[-1].content),
    _beats("above_repetition", "w with its end repeated", lambda case: repeated(case.better)),
)
"""Behavioural invariants of any gap scorer."""
