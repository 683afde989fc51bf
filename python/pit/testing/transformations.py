"""Small changes of a text that keep its meaning, with their inverses.

They follow the controlled transformations of reWordBench (Wu et al. 2025, arXiv 2503.11751), which drive leading reward
models below chance. Each depends on the text alone, and `undo(apply(text))` is the text, so no information is lost.
"""

import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

_LETTERS = re.compile(r"[A-Za-z]{5,}")
_SWAP_CASE = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_LIST = re.compile(r"^- .*(?:\n- .*)+$", re.MULTILINE)
# Words that suggest that the order of a list matters.
_ORDERED = re.compile(r"\b(first|then|next|finally|step|before|after|last|rank|top)\b", re.IGNORECASE)


@runtime_checkable
class Transformation(Protocol):
    """A change of a text and its inverse."""

    @property
    def name(self) -> str:
        """Name in reports and in the names of invariants."""

    def applies(self, text: str) -> bool:
        """Return whether `apply` changes the text and keeps its meaning."""

    def apply(self, text: str) -> str:
        """Return the changed text."""

    def undo(self, text: str) -> str:
        """Return the text from which `apply` made this one."""


@dataclass(frozen=True)
class Typos:
    """The second and third letter of every word with five or more letters, swapped."""

    name: str = "typos"

    def applies(self, text: str) -> bool:
        """Return whether the swap changes any word."""
        return self.apply(text) != text

    def apply(self, text: str) -> str:
        """Return the text with the letters swapped.

        >>> Typos().apply("a small lamp, costly")
        'a samll lamp, csotly'
        """
        return _LETTERS.sub(lambda m: m[0][0] + m[0][2] + m[0][1] + m[0][3:], text)

    undo = apply


@dataclass(frozen=True)
class SwappedCase:
    """Upper case for lower case and the reverse, in ASCII letters."""

    name: str = "case"

    def applies(self, text: str) -> bool:
        """Return whether the text contains an ASCII letter."""
        return self.apply(text) != text

    def apply(self, text: str) -> str:
        """Return the text with the case swapped.

        >>> SwappedCase().apply("Ask me")
        'aSK ME'
        """
        return text.translate(_SWAP_CASE)

    undo = apply


@dataclass(frozen=True)
class DoubledSpaces:
    """Two spaces for every space."""

    name: str = "whitespace"

    def applies(self, text: str) -> bool:
        """Return whether the text contains a space."""
        return " " in text

    def apply(self, text: str) -> str:
        """Return the text with every space doubled."""
        return text.replace(" ", "  ")

    def undo(self, text: str) -> str:
        """Return the text with every pair of spaces halved."""
        return text.replace("  ", " ")


@dataclass(frozen=True)
class Wrapped:
    """Two fixed strings around a text: quotation marks, a code block, an irrelevant sentence."""

    name: str
    before: str
    after: str

    def applies(self, text: str) -> bool:
        """Return whether the text is not empty."""
        return bool(text)

    def apply(self, text: str) -> str:
        """Return the text between the two strings.

        >>> Wrapped("bold", "**", "**").apply("yes")
        '**yes**'
        """
        return f"{self.before}{text}{self.after}"

    def undo(self, text: str) -> str:
        """Return the text without the two strings."""
        return text[len(self.before) : len(text) - len(self.after)]


@dataclass(frozen=True)
class QuotedLines:
    """A Markdown quotation of every line."""

    name: str = "markdown quotation"

    def applies(self, text: str) -> bool:
        """Return whether the text is not empty."""
        return bool(text)

    def apply(self, text: str) -> str:
        """Return the text with `> ` before every line."""
        return "\n".join(f"> {line}" for line in text.split("\n"))

    def undo(self, text: str) -> str:
        """Return the text without the quotation marks."""
        return "\n".join(line[2:] for line in text.split("\n"))


@dataclass(frozen=True)
class ReversedLists:
    """The points of every list with dashes in reverse order, unless a word of the text suggests that order matters."""

    name: str = "list order"

    def applies(self, text: str) -> bool:
        """Return whether the text has such a list."""
        return self.apply(text) != text and not _ORDERED.search(text)

    def apply(self, text: str) -> str:
        r"""Return the text with the points of every list reversed.

        >>> ReversedLists().apply("- milk\n- tea")
        '- tea\n- milk'
        """
        return _LIST.sub(lambda m: "\n".join(reversed(m[0].split("\n"))), text)

    undo = apply


POLITENESS = Wrapped("politeness", "", " Thank you for asking!")
"""A polite sentence at the end."""

OUTER_WHITESPACE = Wrapped("outer whitespace", " \n", "\n ")
"""Spaces and line breaks around the text."""

TRANSFORMATIONS: tuple[Transformation, ...] = (
    Typos(),
    SwappedCase(),
    DoubledSpaces(),
    Wrapped("quotation marks", '"', '"'),
    QuotedLines(),
    Wrapped("bold", "**", "**"),
    Wrapped("code block", "```\n", "\n```"),
    Wrapped("irrelevant sentence", "", " The sky was clear over the harbour that day."),
    ReversedLists(),
)
"""Changes under which a ranking should stay the same."""
