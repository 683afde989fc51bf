"""Small changes of a text that keep its meaning, each with its inverse.

After the controlled transformations of reWordBench (Wu et al. 2025, arXiv 2503.11751), which drive leading reward
models below chance. All are functions of the text alone; `undo(apply(text))` is the text, so nothing is lost.
"""

import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

_LETTERS = re.compile(r"[A-Za-z]{5,}")
_SWAP_CASE = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_LIST = re.compile(r"^- .*(?:\n- .*)+$", re.MULTILINE)
# A list whose order means something says so, or counts.
_ORDERED = re.compile(r"\b(first|then|next|finally|step|before|after|last|rank|top)\b", re.IGNORECASE)


@runtime_checkable
class Transformation(Protocol):
    """A change of a text and its inverse."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def applies(self, text: str) -> bool:
        """Whether it changes the text and keeps its meaning."""

    def apply(self, text: str) -> str:
        """The changed text."""

    def undo(self, text: str) -> str:
        """The text that `apply` was given."""


@dataclass(frozen=True)
class Typos:
    """The second and third letter of every long word change places: two typing errors a word, or fewer."""

    name: str = "typos"

    def applies(self, text: str) -> bool:
        """Where a word has five letters."""
        return self.apply(text) != text

    def apply(self, text: str) -> str:
        """Swap them.

        >>> Typos().apply("a small lamp, costly")
        'a samll lamp, csotly'
        """
        return _LETTERS.sub(lambda m: m[0][0] + m[0][2] + m[0][1] + m[0][3:], text)

    undo = apply


@dataclass(frozen=True)
class SwappedCase:
    """ASCII letters in the other case."""

    name: str = "case"

    def applies(self, text: str) -> bool:
        """Where there is such a letter."""
        return self.apply(text) != text

    def apply(self, text: str) -> str:
        """Swap the case."""
        return text.translate(_SWAP_CASE)

    undo = apply


@dataclass(frozen=True)
class DoubledSpaces:
    """Every space twice."""

    name: str = "whitespace"

    def applies(self, text: str) -> bool:
        """Where there is a space."""
        return " " in text

    def apply(self, text: str) -> str:
        """Double them."""
        return text.replace(" ", "  ")

    def undo(self, text: str) -> str:
        """Halve them."""
        return text.replace("  ", " ")


@dataclass(frozen=True)
class Wrapped:
    """Text between two fixed pieces: quotation marks, a code block, a sentence that says nothing about it."""

    name: str
    before: str
    after: str

    def applies(self, text: str) -> bool:
        """Where there is a text."""
        return bool(text)

    def apply(self, text: str) -> str:
        """Wrap it."""
        return f"{self.before}{text}{self.after}"

    def undo(self, text: str) -> str:
        """Unwrap it."""
        return text[len(self.before) : len(text) - len(self.after)]


@dataclass(frozen=True)
class QuotedLines:
    """Every line as a Markdown quotation."""

    name: str = "markdown quotation"

    def applies(self, text: str) -> bool:
        """Where there is a text."""
        return bool(text)

    def apply(self, text: str) -> str:
        """Mark the lines."""
        return "\n".join(f"> {line}" for line in text.split("\n"))

    def undo(self, text: str) -> str:
        """Take the marks off."""
        return "\n".join(line[2:] for line in text.split("\n"))


@dataclass(frozen=True)
class TurnedLists:
    """The points of every list with dashes in the other order, where nothing says that their order means something."""

    name: str = "list order"

    def applies(self, text: str) -> bool:
        """Where there is such a list."""
        return self.apply(text) != text and not _ORDERED.search(text)

    def apply(self, text: str) -> str:
        """Turn them round."""
        return _LIST.sub(lambda m: "\n".join(reversed(m[0].split("\n"))), text)

    undo = apply


POLITE = Wrapped("politeness", "", " Thank you for asking!")
SPACED = Wrapped("outer whitespace", " \n", "\n ")

TRANSFORMATIONS: tuple[Transformation, ...] = (
    Typos(),
    SwappedCase(),
    DoubledSpaces(),
    Wrapped("quotation marks", '"', '"'),
    QuotedLines(),
    Wrapped("bold", "**", "**"),
    Wrapped("code block", "```\n", "\n```"),
    Wrapped("irrelevant sentence", "", " The sky was clear over the harbour that day."),
    TurnedLists(),
)
"""Changes that a ranking should survive."""
