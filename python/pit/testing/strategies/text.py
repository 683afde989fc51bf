"""Text as users write it and as nobody should: all of Unicode, control characters, very long, or from real data."""

import functools
from collections.abc import Sequence

from hypothesis import strategies as st

from pit.testing.strategies.tokens import DrawFn, sizes
from pit.types import Message, Preference, RoleName

LONGEST = 4_096
"""Characters of the longest text."""

_WORDS = ("the", "lamp", "is", "red", "not", "and", "42", "please", "why", "it's")
ODD = (
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
"""Nothing, what ends strings or lines elsewhere, a byte order mark, joiners, a flag, role tokens as users type them."""


def texts(seeds: Sequence[str] = (), longest: int = LONGEST) -> st.SearchStrategy[str]:
    """Texts of at most `longest` characters without lone surrogates, the empty one among them.

    Args:
        seeds: real texts; half of what is drawn is one of them, whole, cut or with something odd in it.
        longest: bound in characters.
    """
    return _texts(tuple(seeds), longest)


# Hypothesis looks through a strategy before its first draw, which costs more than the draw: it is kept.
@functools.lru_cache(maxsize=64)
def _texts(seeds: tuple[str, ...], longest: int) -> st.SearchStrategy[str]:
    words = st.lists(st.sampled_from(_WORDS), max_size=8).map(" ".join)
    free = st.text(st.characters(codec="utf-8"), max_size=12)
    odd = st.lists(st.sampled_from((*_WORDS, *ODD)), max_size=6).map("".join)
    pattern = st.sampled_from([*_WORDS, "a", "\n", *filter(None, ODD)])
    kinds = [words, free, st.sampled_from(ODD), odd, st.builds(_repeated, pattern, sizes(longest))]
    if seeds:
        kinds += [st.sampled_from(seeds), _changed(seeds)] * 2
    return st.one_of(kinds).map(lambda text: text[:longest])


def _repeated(pattern: str, size: int) -> str:
    """A pattern to a length at a boundary."""
    return (pattern * -(-size // len(pattern)))[:size]


@st.composite
def _changed(draw: DrawFn, seeds: Sequence[str]) -> str:
    text = draw(st.sampled_from(seeds))
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.sampled_from(ODD)) + (text[place:] if draw(st.booleans()) else "")


def conversations(seeds: Sequence[str] = (), turns: int = 5) -> st.SearchStrategy[tuple[Message, ...]]:
    """Conversations that a user has the last word in: perhaps a system message, then turns that alternate."""
    return _conversations(texts(seeds), turns)


@st.composite
def _conversations(draw: DrawFn, text: st.SearchStrategy[str], turns: int) -> tuple[Message, ...]:
    count = draw(st.integers(0, (turns - 1) // 2))
    roles: list[RoleName] = ["user", *(["assistant", "user"] * count)]  # type: ignore[list-item]
    if draw(st.booleans()):
        roles.insert(0, "system")
    return tuple(Message(role, draw(text)) for role in roles)


def preferences(seeds: Sequence[Preference] = ()) -> st.SearchStrategy[Preference]:
    """Preference triples whose two answers differ; real ones among them if given (`pit.testing.data.read_rows`)."""
    answers = texts([text for row in seeds for text in (row.better, row.worse)])
    two = st.lists(answers, min_size=2, max_size=2, unique=True)
    made = st.builds(lambda prompt, pair: Preference(prompt, *pair), conversations(), two)
    return st.one_of(st.sampled_from(list(seeds)), made) if len(seeds) else made
