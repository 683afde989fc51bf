"""What the rest of the project asks of a family of synthetic instructions, and the families there are.

Everything here is open to training code. What an answer is worth is not: `pit.data.synthetic.oracle`.
"""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from pit.data.synthetic import describe, relay
from pit.types import Preference


@runtime_checkable
class Family(Protocol):
    """A kind of instruction with noisy writers, and answers made with known faults. A module is one.

    RUNGS: what an answer of the ladder of `progress` has one more of than the one before, in words.
    """

    RUNGS: str

    def prompt_at(self, seed: int, index: int) -> str:
        """The prompt of row `index` of the data set named by `seed`."""

    def preference_at(self, seed: int, index: int, fractions: Mapping[str, float], key: str) -> Preference:
        """Row `index`: a function of its arguments; folds may differ in how their answers are written."""

    def clean_answer(self, prompt: str) -> str:
        """The faultless answer to a prompt of the family."""

    def corruptions(self, prompt: str, answer: str, rng: random.Random) -> dict[str, str]:
        """Copies of a clean answer, each worse in one aspect, by the name of the fault."""

    def progress(self, prompt: str, answer: str, rng: random.Random) -> list[str]:
        """A clean answer and copies that are further and further from it, best first; no two are equally good."""


FAMILIES: Mapping[str, Family] = MappingProxyType({"describe": describe, "relay": relay})
"""The families by the name that `data.task` gives them."""
