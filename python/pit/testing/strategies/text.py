"""Texts as users write them and as nobody should: all of Unicode, control characters, very long, or from real data.

Conversations and preferences are built from them.
"""

import functools
from collections.abc import Sequence

from hypothesis import strategies as st

from pit.testing.strategies.tokens import DrawFn, sizes
from pit.types import Message, Preference, RoleName

LONGEST = 4_096
"""Default maximum length of a text, in characters."""

_WORDS = ("the", "lamp", "is", "red", "not", "and", "42", "please", "why", "it's")
ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b[2J",
    "\r\n",
    "\u2028",
    "\ufeff",
    "\u200d",
    "e\u0301",
    "🏳️‍🌈",
    "مرحبا",
    "漢字",
    "<|user|>",
    "</s>",
    "[PAD]",
)
"""Empty text, terminators of strings and lines, a byte order mark, joiners, a flag, role tokens typed by a user."""


def texts(seeds: Sequence[str] = (), longest: int = LONGEST) -> st.SearchStrategy[str]:
    """Return a strategy for texts without lone surrogates, including the empty text.

    Args:
        seeds: real texts; about half of the examples are one of them, whole, truncated or with an odd text inserted.
        longest: maximum length in characters.

    >>> from hypothesis import find
    >>> find(texts(["A real answer."]), lambda text: "real" in text)
    'A real answer.'
    """
    return _texts(tuple(seeds), longest)


# Cached, because Hypothesis analyses a strategy before its first draw, which costs more than the draw.
@functools.lru_cache(maxsize=64)
def _texts(seeds: tuple[str, ...], longest: int) -> st.SearchStrategy[str]:
    words = st.lists(st.sampled_from(_WORDS), max_size=8).map(" ".join)
    free = st.text(st.characters(codec="utf-8"), max_size=12)
    odd = st.lists(st.sampled_from((*_WORDS, *ODD_TEXTS)), max_size=6).map("".join)
    pattern = st.sampled_from([*_WORDS, "a", "\n", *filter(None, ODD_TEXTS)])
    kinds = [words, free, st.sampled_from(ODD_TEXTS), odd, st.builds(_repeated, pattern, sizes(longest))]
    if seeds:
        kinds += [st.sampled_from(seeds), _changed(seeds)] * 2
    return st.one_of(kinds).map(lambda text: text[:longest])


def _repeated(pattern: str, size: int) -> str:
    """Return a pattern repeated to a length."""
    return (pattern * -(-size // len(pattern)))[:size]


@st.composite
def _changed(draw: DrawFn, seeds: Sequence[str]) -> str:
    text = draw(st.sampled_from(seeds))
    cut = draw(st.integers(0, len(text)))
    return text[:cut] + draw(st.sampled_from(ODD_TEXTS)) + (text[cut:] if draw(st.booleans()) else "")


def conversations(
    seeds: Sequence[str] = (), turns: int = 5, longest: int = LONGEST
) -> st.SearchStrategy[tuple[Message, ...]]:
    """Return a strategy for conversations: perhaps a system message, then alternating turns, first and last a user's.

    Args:
        seeds: real texts for the contents; see `texts`.
        turns: maximum number of turns without the system message.
        longest: maximum length of a message, in characters.
    """
    return _conversations(texts(seeds, longest), turns)


@st.composite
def _conversations(draw: DrawFn, text: st.SearchStrategy[str], turns: int) -> tuple[Message, ...]:
    count = draw(st.integers(0, (turns - 1) // 2))
    roles: list[RoleName] = ["user", *(["assistant", "user"] * count)]  # type: ignore[list-item]
    if draw(st.booleans()):
        roles.insert(0, "system")
    return tuple(Message(role, draw(text)) for role in roles)


def preferences(seeds: Sequence[Preference] = ()) -> st.SearchStrategy[Preference]:
    """Return a strategy for preferences whose two answers differ.

    Args:
        seeds: real preferences (see `pit.testing.data.read_rows`); half of the examples are one of them.
    """
    answers = texts([text for row in seeds for text in (row.better, row.worse)])
    pair = st.lists(answers, min_size=2, max_size=2, unique=True)
    synthetic = st.builds(lambda prompt, pair: Preference(prompt, *pair), conversations(), pair)
    return st.one_of(st.sampled_from(list(seeds)), synthetic) if len(seeds) else synthetic
