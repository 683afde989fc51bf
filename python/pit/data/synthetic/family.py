"""Interface of a family of synthetic instructions, and the families.

Training code may use everything here, but not the quality of an answer, which is in `pit.data.synthetic.oracle`.
"""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from pit.data.synthetic import describe, instruct, relay
from pit.types import Preference


@runtime_checkable
class Family(Protocol):
    """A kind of instruction, with noisy writers and answers with known faults; modules implement it.

    RUNGS: name of the quantity that grows by one from answer to answer of `progress`.
    """

    RUNGS: str

    def prompt_at(self, seed: int, index: int) -> str:
        """Return the prompt of row `index` of the data set `seed`."""

    def preference_at(self, seed: int, index: int, fractions: Mapping[str, float], key: str) -> Preference:
        """Return row `index`, a function of the arguments alone; answers may be written differently in each fold."""

    def clean_answer(self, prompt: str) -> str:
        """Return the faultless answer to a prompt of the family."""

    def corruptions(self, prompt: str, answer: str, rng: random.Random) -> dict[str, str]:
        """Return copies of a clean answer with one fault each, by the name of the fault."""

    def progress(self, prompt: str, answer: str, rng: random.Random) -> list[str]:
        """Return a clean answer and copies of strictly falling quality, best first."""

    def subset_of(self, prompt: str) -> str:
        """Return the name of the evaluation subset of a prompt, such as one that holds what no training prompt has."""


FAMILIES: Mapping[str, Family] = MappingProxyType({"describe": describe, "relay": relay, "instruct": instruct})
"""The families, by their name in `data.task`."""
