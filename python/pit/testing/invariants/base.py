"""What an invariant is: a name, a statement, its source, the level it needs, and a check of one example.

An exact invariant holds for any weights, so that a violation is a bug; it is searched with Hypothesis and its
counterexamples shrink. A statistical one holds more or less: it is a rate, or a mean, with an interval over a data set.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from hypothesis import strategies as st
from jaxtyping import Float64

from pit.evaluate.stats import Interval, accuracy_interval, mean_interval
from pit.testing.faults import Violation
from pit.testing.scorers import Item, Level, Prompt, gaps, levels_of
from pit.types import Preference


class Material(NamedTuple):
    """What examples are made from: the scorer (its row format), and the preferences of the data."""

    scorer: Any
    rows: Sequence[Preference]


@dataclass(frozen=True)
class Invariant(ABC):
    """What all invariants share.

    name: what `--invariant` takes.
    statement: in mathematics.
    source: where it comes from.
    needs: levels without which it is not applicable.
    """

    name: str
    statement: str
    source: str
    needs: frozenset[Level]
    kind: ClassVar[str]

    def applicable(self, scorer: object) -> bool:
        """Whether the scorer has the levels that are needed."""
        return self.needs <= levels_of(scorer)

    def missing(self, scorer: object) -> str:
        """The methods that the scorer lacks."""
        return ", ".join(sorted(f"{level.value}()" for level in self.needs - levels_of(scorer)))

    @abstractmethod
    def check(self, scorer: Any, example: Any) -> None:
        """Check one example.

        Raises:
            Violation: it does not hold.
        """


@dataclass(frozen=True)
class Exact(Invariant):
    """An invariant of any weights.

    tolerance: the rule by which a difference counts as arithmetic.
    """

    tolerance: str
    kind: ClassVar[str] = "exact"

    @abstractmethod
    def examples(self, material: Material) -> st.SearchStrategy[Any]:
        """Examples to search."""

    def always(self) -> tuple[Any, ...]:
        """Examples that are tried first, whatever the seed."""
        return ()


class Case(NamedTuple):
    """A row of the data as a statistical invariant sees it.

    prompt, better, worse: the preference.
    other: the better answer of another row.
    number: of the row; whatever is random about a case is drawn from it.
    """

    prompt: Prompt
    better: str
    worse: str
    other: str
    number: int


class Finding(NamedTuple):
    """What a statistical invariant says of a data set.

    interval: the figure with its 95 % interval.
    margins: how far each case is from failing, below 0 where it fails; the least is the worst counterexample.
    table: further rows to print: label and figure.
    """

    interval: Interval
    margins: Float64[np.ndarray, " n"]
    table: tuple[tuple[str, Interval], ...] = ()


Scores = Float64[np.ndarray, "n q"]
"""Scores of the questions of each case, in the order in which `questions` puts them."""


@dataclass(frozen=True)
class Statistical(Invariant):
    """An invariant that holds more or less.

    floor: the figure of a scorer that knows nothing; the lower end of the interval of a good one lies above it. None
        where the figure has no such bound.
    """

    floor: float | None

    @abstractmethod
    def questions(self, case: Case) -> tuple[Item, ...]:
        """What the scorer is asked for one case; equally many for all."""

    @abstractmethod
    def measure(self, cases: Sequence[Case], scores: Scores) -> Finding:
        """The figure over a data set."""

    def usable(self, case: Case) -> bool:
        """Whether a case says anything about the invariant."""
        return True

    def check(self, scorer: Any, example: Case) -> None:
        """Check one case alone: its margin must not be below 0."""
        scores = np.asarray([gaps(scorer, self.questions(example))], np.float64)
        margin = float(self.measure([example], scores).margins[0])
        if margin < 0:
            raise Violation(f"{self.name}: {self.statement} fails by {-margin:.4g}")


def question(case: Case, output: str, reference: str) -> Item:
    """A question about a case's prompt."""
    return Item(case.prompt, output, reference)


def share(margins: Float64[np.ndarray, " n"], table: tuple[tuple[str, Interval], ...] = ()) -> Finding:
    """The share of cases whose margin is above 0 (a margin of 0 counts half), with Wilson's interval."""
    won = float(np.sum(margins > 0) + 0.5 * np.sum(margins == 0))
    return Finding(accuracy_interval(won, len(margins)), margins, table)


def mean(values: Float64[np.ndarray, " n"], margins: Float64[np.ndarray, " n"]) -> Finding:
    """The mean of some values, with a bootstrap interval."""
    return Finding(mean_interval(values), margins)
