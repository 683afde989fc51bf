"""Figures of questions with several answers, and of rulers: rules that read no meaning and rank answers all the same.

A scorer is worth its cost where it ranks more questions right than every ruler does, by an interval of the difference
on the same questions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from pit.evaluate.stats import Interval, Z, accuracy_interval, mean_interval
from pit.testing.invariants.base import Case, Measurement, Scores, Statistical, share
from pit.testing.invariants.behavioural import GAP
from pit.testing.scorers import Item, Prompt

_REWARDBENCH_2 = "RewardBench 2 (arXiv 2506.01937)"
_RMBENCH = "RM-Bench (arXiv 2410.16184)"

Leads = Float64[np.ndarray, "good bad"]
"""Lead of each good answer of a question over each bad one."""


def prompt_overlap(prompt: Prompt, answer: str) -> float:
    """Return the number of different words that an answer shares with its prompt.

    >>> from pit.types import Message
    >>> prompt_overlap((Message("user", "Why is it red?"),), "It is red paint.")
    2.0
    """
    words = {word for message in prompt for word in message.content.lower().split()}
    return float(len(words & set(answer.lower().split())))


RULERS: Mapping[str, Callable[[Prompt, str], float]] = MappingProxyType(
    {
        "longer": lambda prompt, answer: float(len(answer)),
        "shorter": lambda prompt, answer: -float(len(answer)),
        "longer prompt overlap": prompt_overlap,
    }
)
"""Rules without a model: the answer of the larger number is preferred."""


def credit(leads: Leads, styled: bool = False) -> float:
    """Return 1 if every good answer is ranked above every bad one, 0 if not, and between where they tie.

    A tie is worth the chance that a random order of the tied answers is right. Of a styled question each pair counts by
    itself, as RM-Bench counts.

    >>> credit(np.array([[1.0, 2.0, 3.0]])), credit(np.array([[1.0, 2.0, -3.0]])), credit(np.zeros((1, 3)))
    (1.0, 0.0, 0.25)
    """
    if styled:
        return float(np.mean((np.sign(leads) + 1) / 2))
    if leads.min() != 0:
        return float(leads.min() > 0)
    tied = leads == 0
    good, bad = int(tied.any(axis=1).sum()), int(tied.any(axis=0).sum())
    return 1 / math.comb(good + bad, good)


def share_difference(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " n"]) -> Interval:
    """Return the mean of first - second, each from 0 to 1, with a score interval over questions.

    It inverts the test of a mean of d = first - second whose variance is E d^2 - (E d)^2. Where all d are 1 it is
    Wilson's interval: a few questions without a single loss are no certainty, as they would be to a bootstrap.

    >>> [round(end, 3) for end in share_difference(np.ones(3), np.zeros(3))[:3]]
    [1.0, -0.123, 1.0]
    """
    difference = first - second
    n, value, square = difference.size, float(difference.mean()), float(np.mean(difference**2))
    half = Z * math.sqrt(max(0.0, (n + Z * Z) * square - n * value * value))
    low, high = ((n * value + sign * half) / (n + Z * Z) for sign in (-1.0, 1.0))
    return Interval(value, max(-1.0, min(value, low)), min(1.0, max(value, high)), n)


def pairs_of(case: Case) -> tuple[Item, ...]:
    """Return both orders of each good answer with each bad one."""
    pairs = [(good, bad) for good in case.good for bad in case.bad]
    return tuple(Item(case.prompt, *order) for good, bad in pairs for order in ((good, bad), (bad, good)))


def leads_of(case: Case, scores: Float64[np.ndarray, " q"]) -> Leads:
    """Return the leads of the scores of `pairs_of`."""
    count = len(case.good) * len(case.bad)
    leads: np.ndarray = (scores[: 2 * count : 2] - scores[1 : 2 * count : 2]).reshape(len(case.good), len(case.bad))
    return leads


def _ruled(case: Case, ruler: Callable[[Prompt, str], float]) -> float:
    """Return what a ruler is right about a case."""
    good, bad = (np.array([ruler(case.prompt, text) for text in texts]) for texts in (case.good, case.bad))
    return credit(good[:, None] - bad[None, :], case.styled)


@dataclass(frozen=True)
class Choice(Statistical):
    """A figure of the leads of good answers over bad ones."""

    kind: ClassVar[str] = "learned"

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return both orders of each good answer with each bad one."""
        return pairs_of(case)


@dataclass(frozen=True)
class BestOfN(Choice):
    """The share of questions in which every good answer is ranked above every bad one."""

    def usable(self, case: Case) -> bool:
        """Return whether the question has more than two answers, in no particular styles."""
        return len(case.good) + len(case.bad) > 2 and not case.styled

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share, and its table by subset; its floor is that of a random order of the answers."""
        leads = [leads_of(case, row) for case, row in zip(cases, scores, strict=True)]
        right = np.array([credit(each) for each in leads])
        sizes = [(len(case.good), len(case.bad)) for case in cases]
        chance = float(np.mean([1 / math.comb(good + bad, good) for good, bad in sizes]))
        table = tuple((name, _share(right[chosen])) for name, chosen in _subsets(cases).items())
        return Measurement(_share(right), np.array([each.min() for each in leads]), table, chance)


@dataclass(frozen=True)
class GoodAlike(Choice):
    """The share of questions whose good answers lie closer together than the worst of them and the best bad one."""

    def usable(self, case: Case) -> bool:
        """Return whether there are several good answers, in no particular styles."""
        return bool(case.more_good) and not case.styled

    def items(self, case: Case) -> tuple[Item, ...]:
        """Return the pairs of good and bad answers, and both orders of the first good answer and each other one."""
        first, prompt = case.better, case.prompt
        ties = [order for other in case.more_good for order in ((other, first), (first, other))]
        return (*pairs_of(case), *(Item(prompt, *order) for order in ties))

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share."""
        margins = []
        for case, row in zip(cases, scores, strict=True):
            first = 2 * len(case.good) * len(case.bad)
            ties = row[first : first + 2 * len(case.more_good)]
            over_first = np.append(ties[::2] - ties[1::2], 0.0)
            margins.append(float(leads_of(case, row).min() - np.ptp(over_first)))
        return share(np.array(margins))


@dataclass(frozen=True)
class HardStyles(Choice):
    """The share of pairs ranked right whose bad answer has the fancier style: longer, or in Markdown."""

    def usable(self, case: Case) -> bool:
        """Return whether the answers have styles."""
        return case.styled

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the share, with its table: the same style, and the good answer in the fancier one."""
        leads = np.stack([leads_of(case, row) for case, row in zip(cases, scores, strict=True)])
        right = (np.sign(leads) + 1) / 2
        good, bad = np.indices(leads.shape[1:])
        parts = {"the same style": good == bad, "the good answer is fancier": good > bad}
        hard = right[:, good < bad].mean(axis=1)
        table = [(label, mean_interval(right[:, part].mean(axis=1))) for label, part in parts.items()]
        table += [(name, mean_interval(hard[chosen])) for name, chosen in _subsets(cases).items()]
        return Measurement(mean_interval(hard), leads[:, good < bad].min(axis=1), tuple(table))


@dataclass(frozen=True)
class AboveRulers(Choice):
    """The share of questions ranked right minus that of the ruler that it exceeds least surely."""

    def measure(self, cases: Sequence[Case], scores: Scores) -> Measurement:
        """Return the difference; the table has model, rulers and difference of each subset.

        The ruler is the one whose interval of the difference begins lowest, so that the interval lies above 0 only if
        each of the rulers is exceeded.
        """
        leads = [leads_of(case, row) for case, row in zip(cases, scores, strict=True)]
        right = np.array([credit(each, case.styled) for case, each in zip(cases, leads, strict=True)])
        rules = {name: np.array([_ruled(case, ruler) for case in cases]) for name, ruler in RULERS.items()}
        everything = np.ones(len(cases), bool)
        table: list[tuple[str, Interval]] = []
        for subset, chosen in {"all": everything, **_subsets(cases)}.items():
            shares = {"model": right, **rules}
            table += [(f"{subset}: {name}", _share(values[chosen])) for name, values in shares.items()]
            name, difference = _least_surely(right[chosen], {key: rule[chosen] for key, rule in rules.items()})
            table.append((f"{subset}: model - {name}", difference))
        name, difference = _least_surely(right, rules)
        note = "better than every ruler" if difference.low > 0 else f"not shown to be better than {name!r}"
        return Measurement(difference, np.array([each.min() for each in leads]), tuple(table), note=note)


def _least_surely(
    right: Float64[np.ndarray, " n"], rules: Mapping[str, Float64[np.ndarray, " n"]]
) -> tuple[str, Interval]:
    """Return the ruler whose interval of the difference begins lowest, and this difference."""
    differences = {name: share_difference(right, rule) for name, rule in rules.items()}
    return min(differences.items(), key=lambda item: item[1].low)


def _share(right: Float64[np.ndarray, " n"]) -> Interval:
    return accuracy_interval(float(right.sum()), len(right))


def _subsets(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Return which cases belong to each named subset."""
    names = np.array([case.subset for case in cases])
    return {str(name): names == name for name in dict.fromkeys(names.tolist()) if name}


CHOICES: tuple[Statistical, ...] = (
    BestOfN("best_of_n", "r of every good answer > r of every bad one", _REWARDBENCH_2, GAP, None),
    GoodAlike(
        "good_alike", "max - min of r over good answers < min good - max bad", f"{_REWARDBENCH_2}, ties", GAP, None
    ),
    HardStyles("hard_styles", "r(w) > r(l) where l has the fancier style", _RMBENCH, GAP, 0.5),
    AboveRulers(
        "above_rulers",
        "P(right) - P(right by a ruler: longer, shorter, longer prompt overlap)",
        "length alone reaches half of the accuracy of reward models (arXiv 2310.03716)",
        GAP,
        0.0,
    ),
)
"""Figures of questions and rulers."""
