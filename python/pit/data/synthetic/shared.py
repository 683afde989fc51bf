"""Shared parts of the families of synthetic instructions: dice with a stable stream, closing words, noisy labels."""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from pit.types import Message, Preference

COURTESIES = ("fondly", "sincerely", "cheers")
"""Closing words, one of which a prompt asks for."""

FILLERS = ("um", "well", "er")

WIDE_FOLDS = frozenset({"reward", "judge"})
"""Folds of reward models and judges; their answers show more kinds of faults than those of the other folds."""

SHARPNESS = 20.0
"""Slope of the label's logistic coin per unit of quality."""

_T = TypeVar("_T")


class Dice:
    """Random choices built on `random.Random.random` alone, whose stream is stable between versions of Python."""

    def __init__(self, seed: int, index: int, purpose: str) -> None:
        self.share = random.Random(f"{purpose}/{seed}/{index}").random

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.share() < probability

    def pick(self, options: Sequence[_T]) -> _T:
        """Return one of the options."""
        return options[int(self.share() * len(options))]

    def sample(self, options: Sequence[_T], count: int) -> list[_T]:
        """Return `count` different options in random order."""
        rest = list(options)
        return [rest.pop(int(self.share() * len(rest))) for _ in range(count)]


def draw_stutter(dice: Dice) -> tuple[float, int]:
    """Return place and number of repetitions for `stutter`; the place is the last word with probability 1/2."""
    place, end = dice.share(), 1.0 - 2.0**-20
    return place if dice.chance(0.5) else end, 1 + int(6 * dice.share())


def stutter(text: str, place: float, times: int) -> str:
    """Return the text with `times` repetitions of the word at `place`, a share in [0, 1) of its words.

    >>> stutter("price cheap. fondly", 0.9, 2)
    'price cheap. fondly fondly fondly'
    """
    words = text.split(" ")
    index = int(place * len(words))
    return " ".join([*words[:index], *[words[index]] * times, *words[index:]])


def subset_of(prompt: str) -> str:
    """Return the one evaluation subset of a family whose prompts are all of a kind."""
    return "all prompts"


def label(
    prompt: str, answers: tuple[str, str], advantage: float, dice: Dice, sharpness: float = SHARPNESS
) -> Preference:
    """Return the pair as a preference, labelled by a logistic coin: the larger the advantage, the surer the label.

    Args:
        prompt: the prompt.
        answers: the two answers.
        advantage: hidden quality of the first answer minus that of the second.
        dice: source of the coin.
        sharpness: slope of the coin per unit of quality.
    """
    first, second = answers
    if not dice.chance(1 / (1 + math.exp(-sharpness * advantage))):
        first, second = second, first
    return Preference((Message("user", prompt),), first, second)
