"""A verifiable constraint of the family "instruct": how a prompt states it, who checks it, and how drafts hold it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from pit.data.synthetic.instruct.draft import Draft

_T = TypeVar("_T")


def pick(options: Sequence[_T], way: float) -> _T:
    """Return the option at a place in [0, 1)."""
    return options[int(way * len(options))]


def bare(text: str) -> str:
    """Return a text without white space around it, and without the quotation marks inside of that."""
    return text.strip().strip('"')


@dataclass(frozen=True)
class Constraint(ABC):
    """One constraint of a prompt.

    Attributes:
        value: what the constraint asks for: a word, a phrase or a number; empty where the kind says it all.
        kind: name of the kind.
        wordings: sentences that state it, each with the gap {value} where the kind has one.
        values: values that prompts ask for.
        pattern: regular expression of a value.
    """

    value: str = ""
    kind: ClassVar[str]
    wordings: ClassVar[tuple[str, ...]]
    values: ClassVar[tuple[str, ...]] = ("",)
    pattern: ClassVar[str] = ""

    @abstractmethod
    def holds(self, text: str) -> bool:
        """Return whether a text holds the constraint."""

    @abstractmethod
    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with this constraint held; `way` in [0, 1) picks one of several ways."""

    @abstractmethod
    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft with this constraint broken; `way` in [0, 1) picks one of several ways."""

    @property
    def number(self) -> int:
        """The value as a number."""
        return int(self.value)

    def others(self) -> tuple[str, ...]:
        """Return the other values of the kind."""
        return tuple(value for value in self.values if value != self.value)
