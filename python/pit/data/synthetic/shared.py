"""What the families of synthetic instructions share: dice with a stable stream, closing words, and noisy labels."""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from pit.types import Message, Preference

COURTESIES = ("fondly", "sincerely", "cheers")
"""Closing words; a prompt asks for one of them."""

FILLERS = ("um", "well", "er")

WIDE_FOLDS = frozenset({"reward", "judge"})
"""Folds that reward models learn from: their answers show more kinds of faults than those that policies learn from."""

SHARPNESS = 20.0
"""Slope of the label's logistic coin per unit of quality."""

_T = TypeVar("_T")


class Dice:
    """Draws built on `random.Random.random` alone, whose stream Python keeps stable between versions."""

    def __init__(self, seed: int, index: int, purpose: str) -> None:
        self.share = random.Random(f"{purpose}/{seed}/{index}").random

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self.share() < probability

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options."""
        return options[int(self.share() * len(options))]

    def sample(self, options: Sequence[_T], count: int) -> list[_T]:
        """Some of the options, in random order, each at most once."""
        rest = list(options)
        return [rest.pop(int(self.share() * len(rest))) for _ in range(count)]


def drawn_stutter(dice: Dice) -> tuple[float, int]:
    """Where a writer repeats a word, half of the time the last one, and how often."""
    place, end = dice.share(), 1.0 - 2.0**-20
    return place if dice.chance(0.5) else end, 1 + int(6 * dice.share())


def stutter(text: str, place: float, times: int) -> str:
    """The text with the word at `place`, a share in [0, 1) of its words, said `times` times more.

    >>> stutter("price cheap. fondly", 0.9, 2)
    'price cheap. fondly fondly fondly'
    """
    words = text.split(" ")
    index = int(place * len(words))
    return " ".join([*words[:index], *[words[index]] * times, *words[index:]])


def labelled(prompt: str, answers: tuple[str, str], advantage: float, dice: Dice) -> Preference:
    """The pair as a preference, by a logistic coin: people agree with the hidden quality the more, the plainer it is.

    Args:
        prompt: the prompt.
        answers: the two answers.
        advantage: hidden quality of the first less that of the second.
        dice: the coin.
    """
    first, second = answers
    if not dice.chance(1 / (1 + math.exp(-SHARPNESS * advantage))):
        first, second = second, first
    return Preference((Message("user", prompt),), first, second)
