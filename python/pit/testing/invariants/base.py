"""Invariants in general: a name, a statement, a source, the methods that a scorer needs, and a check of one example.

An exact invariant holds for any weights, so a violation is a bug; Hypothesis searches for one and shrinks it. A
statistical invariant holds to some degree: it is a rate or a mean over a data set, with an interval.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from hypothesis import strategies as st
from jaxtyping import Float64

from pit.evaluate.stats import Interval, accuracy_interval, mean_interval
from pit.testing.errors import InvariantError
from pit.testing.questions import Question, Row
from pit.testing.scorers import Item, Method, Prompt, gaps, methods_of
from pit.testing.strategies.text import LONGEST


class Material(NamedTuple):
    """The material for examples: the scorer, whose format they must have, and the preferences of the data.

    longest: maximum length of a text, in characters.
    """

    scorer: Any
    rows: Sequence[Row]
    longest: int = LONGEST


@dataclass(frozen=True)
class Invariant(ABC):
    """A property of a scorer.

    name: name on the command line and in reports.
    statement: the property in mathematics.
    source: the paper or document that it comes from.
    needs: methods without which the invariant is not applicable.
    """

    name: str
    statement: str
    source: str
    needs: frozenset[Method]
    kind: ClassVar[str]

    def applicable(self, scorer: object) -> bool:
        """Return whether the scorer has the methods that the invariant needs."""
        return self.needs <= methods_of(scorer)

    def missing(self, scorer: object) -> str:
        """Return the methods that the scorer lacks, as text."""
        return ", ".join(sorted(f"{method.value}()" for method in self.needs - methods_of(scorer)))

    @abstractmethod
    def check(self, scorer: Any, example: Any) -> None:
        """Check one example.

        Raises:
            InvariantError: the invariant does not hold on it.
        """


@dataclass(frozen=True)
class Exact(Invariant):
    """An invariant that holds for any weights.

    tolerance: rule that decides which differences count as rounding.
    """

    tolerance: str
    kind: ClassVar[str] = "exact"

    @abstractmethod
    def examples(self, material: Material) -> st.SearchStrategy[Any]:
        """Return a strategy for the examples to search."""

    def always(self) -> tuple[Any, ...]:
        """Return examples that are tried first, whatever the seed."""
        return ()


class Case(NamedTuple):
    """A row of the data, as statistical invariants use it.

    prompt, better, worse: the preference; of a question, its first good and its first bad answer.
    other: the better answer of a row with another prompt.
    number: index of the row.
    more_good, more_bad: further answers of a question.
    subset: part of a benchmark that the row belongs to, "" for none.
    styled: whether the answers of a question are in the styles of RM-Bench.
    """

    prompt: Prompt
    better: str
    worse: str
    other: str
    number: int
    more_good: tuple[str, ...] = ()
    more_bad: tuple[str, ...] = ()
    subset: str = ""
    styled: bool = False

    @classmethod
    def of(cls, row: Row, other: str, number: int) -> "Case":
        """Return a row as a case."""
        case = cls(row.prompt, row.better, row.worse, other, number)
        if isinstance(row, Question):
            return case._replace(more_good=row.good[1:], more_bad=row.bad[1:], subset=row.subset, styled=row.styled)
        return case

    @property
    def good(self) -> tuple[str, ...]:
        """All good answers."""
        return (self.better, *self.more_good)

    @property
    def bad(self) -> tuple[str, ...]:
        """All bad answers."""
        return (self.worse, *self.more_bad)


class Measurement(NamedTuple):
    """The figure of a statistical invariant over a data set.

    interval: the figure with its 95 % interval.
    margins: distance of each case from failing, negative where it fails; the smallest is the worst counterexample.
    table: further figures with their labels.
    floor: figure of a scorer that knows nothing, where it depends on the data.
    note: verdict in words.
    """

    interval: Interval
    margins: Float64[np.ndarray, " n"]
    table: tuple[tuple[str, Interval], ...] = ()
    floor: float | None = None
    note: str = ""


Scores = Float64[np.ndarray, "n q"]
"""Scores of the items of each case, in the order of `Statistical.items`; NaN after the last item of a case."""


@dataclass(frozen=True)
class Statistical(Invariant):
    """An invariant that holds to some degree.

    floor: figure of a scorer that knows nothing; the interval of a good scorer lies above it. None where no such
        figure is known, or where it depends on the data.
    """

    floor: float | None
    ideal: ClassVar[float | None] = None
    """Figure of a perfect scorer; None where larger is better."""
    dear: ClassVar[bool] = False
    """Whether its items are long, so that it is measured last, on as many rows as there is time for."""

    @abstractmethod
    def items(self, case: Case) -> tuple[Item, ...]:
        """Return the items to score for one case."""

    @abstractmethod
    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the figure over a data set."""

    def usable(self, case: Case) -> bool:
        """Return whether the invariant applies to a case."""
        return True

    def check(self, scorer: Any, example: Case) -> None:
        """Check one case by itself.

        Raises:
            InvariantError: the margin of the case is negative, or the scorer fails.
        """
        scores = np.asarray([gaps(scorer, self.items(example))], np.float64)
        margin = float(self.measure([example], scores).margins[0])
        if margin < 0:
            raise InvariantError(f"{self.name}: {self.statement} fails by {-margin:.4g}")


@dataclass(frozen=True)
class Direct(Invariant):
    """A figure of a scorer that needs no data."""

    floor: ClassVar[float | None] = None
    ideal: ClassVar[float | None] = None

    @abstractmethod
    def measure(self, scorer: Any, seed: int) -> Measurement:
        """Return the figure.

        Raises:
            InvariantError: the scorer fails.
        """

    def check(self, scorer: Any, example: Any) -> None:
        """Raise: there are no examples of a figure without data."""
        raise TypeError(f"{self.name}: has no examples; measure it")


def share(margins: Float64[np.ndarray, " n"], table: tuple[tuple[str, Interval], ...] = ()) -> Measurement:
    """Return the share of cases with a positive margin (a margin of 0 counts half), with Wilson's interval.

    >>> share(np.array([1.0, 0.0, -1.0, 2.0])).interval.value
    0.625
    """
    wins = float(np.sum(margins > 0) + 0.5 * np.sum(margins == 0))
    return Measurement(accuracy_interval(wins, len(margins)), margins, table)


def mean(values: Float64[np.ndarray, " n"], margins: Float64[np.ndarray, " n"]) -> Measurement:
    """Return the mean of some values, with a bootstrap interval."""
    return Measurement(mean_interval(values), margins)
