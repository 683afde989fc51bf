"""Behavioural invariants of the three kinds of CheckList (Ribeiro et al. 2020, arXiv 2005.04118).

Invariance: a change that keeps the meaning keeps the ranking. Directional expectation: a change for the worse lowers
the gap. Minimum functionality: pairs that every reward model must rank correctly.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from pit.evaluate.stats import accuracy_interval, mean_interval, pair_accuracy, paired_mean_difference
from pit.testing.invariants.base import Case, Measurement, Scores, Statistical, share
from pit.testing.scorers import Item, Method
from pit.testing.transformations import OUTER_WHITESPACE, POLITENESS, TRANSFORMATIONS, Transformation

_CHECKLIST = "CheckList (arXiv 2005.04118)"
_REWORDBENCH = "reWordBench (arXiv 2503.11751)"

GAP = frozenset({Method.GAP})
"""Needs of every statistical invariant."""

BEFORE, AFTER = "accuracy before", "accuracy after"
"""Labels in the table of an `AccuracyChange`."""


def lead(scores: Scores, first: int, second: int) -> Float64[np.ndarray, " n"]:
    """Return r(a, b) - r(b, a), positive where a is ranked above b.

    Args:
        scores: scores of the items of each case.
        first: column of r(a, b).
        second: column of r(b, a).
    """
    difference: np.ndarray = scores[:, first] - scores[:, second]
    return difference


@dataclass(frozen=True)
class AccuracyChange(Statistical):
    """The change of ranking accuracy when pairs are changed in a way that is no reason to rank them differently."""

    @abstractmethod
    def changed(self, case: Case) -> Case:
        """Return the case with its changed prompt or answers."""

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return both orders of the pair, before and after the change."""
        pairs = (case, self.changed(case))
        return tuple(
            Item(pair.prompt, *order)
            for pair in pairs
            for order in ((pair.better, pair.worse), (pair.worse, pair.better))
        )

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the paired difference of the two accuracies, from -1 to 1."""
        before, after = lead(scores, 0, 1), lead(scores, 2, 3)
        correct = [(np.sign(leads) + 1) / 2 for leads in (before, after)]
        zero = np.zeros(len(cases))
        table = ((BEFORE, pair_accuracy(before, zero)), (AFTER, pair_accuracy(after, zero)))
        # Only a ranking that was correct can be lost.
        margins = np.where(before > 0, after, np.abs(after))
        return Measurement(paired_mean_difference(correct[1], correct[0]), margins, table)


@dataclass(frozen=True)
class Invariance(AccuracyChange):
    """The change of ranking accuracy when answers are transformed.

    transformation: the change of an answer.
    both: whether both answers are changed, or the worse one only.
    """

    transformation: Transformation
    both: bool
    kind: ClassVar[str] = "invariance"

    def usable(self, case: Case) -> bool:
        """Return whether the transformation applies to the answers that it changes."""
        texts = (case.better, case.worse) if self.both else (case.worse,)
        return all(self.transformation.applies(text) for text in texts)

    def changed(self, case: Case) -> Case:
        """Return the case with its transformed answers."""
        change = self.transformation.apply
        return case._replace(better=change(case.better) if self.both else case.better, worse=change(case.worse))


@dataclass(frozen=True)
class Beats(Statistical):
    """The share of cases in which the better answer is ranked above a rival.

    rival: function that makes the rival from the case.
    """

    rival: Callable[[Case], str]
    kind: ClassVar[str] = "minimum functionality"

    def usable(self, case: Case) -> bool:
        """Return whether the rival differs from the better answer."""
        return self.rival(case) != case.better

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return both orders of the better answer and its rival."""
        rival = self.rival(case)
        return Item(case.prompt, case.better, rival), Item(case.prompt, rival, case.better)

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share."""
        return share(lead(scores, 0, 1))


@dataclass(frozen=True)
class Directional(Statistical):
    """The share of cases in which spoiling the better answer lowers its lead over the worse one.

    spoil: function that makes the spoiled better answer from the case.
    """

    spoil: Callable[[Case], str]
    kind: ClassVar[str] = "directional"

    def usable(self, case: Case) -> bool:
        """Return whether spoiling changes the better answer."""
        return self.spoil(case) != case.better

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return both orders of the pair, whole and spoiled."""
        spoiled = self.spoil(case)
        return (
            Item(case.prompt, case.better, case.worse),
            Item(case.prompt, case.worse, case.better),
            Item(case.prompt, spoiled, case.worse),
            Item(case.prompt, case.worse, spoiled),
        )

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share."""
        return share(lead(scores, 0, 1) - lead(scores, 2, 3))


LONG = (100, 400, 1600)
"""Words of the answers whose ends `ReadsTheEnd` changes."""

_LONG_CASES = 20
"""Cases with long answers, which take long to score."""


@dataclass(frozen=True)
class ReadsTheEnd(Statistical):
    """The share of long answers whose score depends on how they end; the others are cut, or their end is ignored."""

    kind: ClassVar[str] = "minimum functionality"
    dear: ClassVar[bool] = True

    def usable(self, case: Case) -> bool:
        """Return whether the case is one of the first, and its two ends differ."""
        return case.number < _LONG_CASES and case.better != case.other

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return the better answer, repeated up to a number of words, with two ends each."""
        texts = [lengthened(case.better, words) for words in LONG]
        pairs = [f"{text}\n\nIn short: {end}" for text in texts for end in (case.better, case.other)]
        return tuple(Item(case.prompt, text, case.worse) for text in pairs)

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share over all lengths, with its table by length."""
        reads = scores[:, ::2] != scores[:, 1::2]
        every = np.mean(reads, axis=1)
        table = tuple(
            (f"{words} words", accuracy_interval(int(column.sum()), len(cases)))
            for words, column in zip(LONG, reads.T, strict=True)
        )
        return Measurement(mean_interval(every), np.where(every == 1, 1.0, -1.0), table)


def lengthened(text: str, words: int) -> str:
    """Return a text repeated until it has so many words.

    >>> lengthened("one two three", 5)
    'one two three one two'
    """
    of_text = text.split()
    return " ".join((of_text * (words // max(1, len(of_text)) + 1))[:words])


def first_half(text: str) -> str:
    """Return the first half of the words.

    >>> first_half("one two three four")
    'one two'
    """
    words = text.split(" ")
    return " ".join(words[: len(words) // 2])


def replace_words(case: Case, replaced_share: float) -> str:
    """Return the better answer with some words replaced by words of the answer to another prompt.

    Args:
        case: the case.
        replaced_share: share of the words to replace, from 0 to 1; they are spread evenly.

    >>> replace_words(Case((), "one two three four", "", "a b", 0), 0.5)
    'one b three b'
    """
    words, others = case.better.split(" "), case.other.split(" ")
    count = round(replaced_share * len(words))
    places = {int((k + 0.5) * len(words) / count) for k in range(count)} if count else set()
    return " ".join(others[i % len(others)] if i in places else word for i, word in enumerate(words))


def repeat_end(text: str) -> str:
    """Return the text with its last word repeated six more times.

    >>> repeat_end("so it is")
    'so it is is is is is is is'
    """
    words = text.split()
    return " ".join([*words, *words[-1:] * 6])


def _invariance(transformation: Transformation, *, both: bool = True) -> Invariance:
    answers = "both answers" if both else "the worse answer"
    return Invariance(
        name=f"survives_{transformation.name.replace(' ', '_')}",
        statement=f"accuracy is the same after a change of {answers}: {transformation.name}",
        source=_REWORDBENCH,
        needs=GAP,
        floor=None,
        transformation=transformation,
        both=both,
    )


def _beats(name: str, description: str, rival: Callable[[Case], str]) -> Beats:
    return Beats(name, f"r(w, {description}) > r({description}, w)", _CHECKLIST, GAP, 0.5, rival)


def _directional(name: str, statement: str, spoil: Callable[[Case], str]) -> Directional:
    return Directional(name, statement, _CHECKLIST, GAP, 0.5, spoil)


BEHAVIOURAL: tuple[Statistical, ...] = (
    *map(_invariance, TRANSFORMATIONS),
    _invariance(POLITENESS, both=False),
    _invariance(OUTER_WHITESPACE, both=False),
    _directional("half_is_worse", "lead(w) > lead(first half of w)", lambda case: first_half(case.better)),
    _directional(
        "mixed_is_worse", "lead(w) > lead(w with half its words replaced)", lambda case: replace_words(case, 0.5)
    ),
    _beats("above_nothing", "empty answer", lambda case: ""),
    _beats("above_off_topic", "another prompt's answer", lambda case: case.other),
    _beats("above_copy_of_prompt", "the prompt", lambda case: case.prompt[-1].content),
    _beats("above_repetition", "w with its end repeated", lambda case: repeat_end(case.better)),
    ReadsTheEnd(
        "reads_the_end",
        "r(w) changes with the end of w, at 100, 400 and 1,600 words",
        "models and tokenizers cut long texts without a word",
        GAP,
        None,
    ),
)
"""Behavioural invariants of every gap scorer."""
