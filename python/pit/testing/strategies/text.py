"""Text as users write it and as nobody should: all of Unicode, control characters, very long, or from real data."""

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


@st.composite
def texts(draw: DrawFn, seeds: Sequence[str] = (), longest: int = LONGEST) -> str:
    """Texts of at most `longest` characters without lone surrogates, the empty one among them.

    Args:
        draw: Hypothesis's.
        seeds: real texts; half of what is drawn is one of them, whole, cut or with something odd in it.
        longest: bound in characters.
    """
    words = st.lists(st.sampled_from(_WORDS), max_size=8).map(" ".join)
    free = st.text(st.characters(codec="utf-8"), max_size=12)
    odd = st.lists(st.sampled_from((*_WORDS, *ODD)), max_size=6).map("".join)
    kinds = [words, free, st.sampled_from(ODD), odd, _long(longest)]
    if seeds:
        kinds += [st.sampled_from(seeds), _changed(seeds)] * 2
    return draw(st.one_of(kinds))[:longest]


@st.composite
def _long(draw: DrawFn, longest: int) -> str:
    """A pattern repeated to a length at a boundary."""
    size, pattern = draw(sizes(longest)), draw(st.sampled_from([*_WORDS, "a", "\n", *filter(None, ODD)]))
    return (pattern * -(-size // len(pattern)))[:size]


@st.composite
def _changed(draw: DrawFn, seeds: Sequence[str]) -> str:
    text = draw(st.sampled_from(seeds))
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.sampled_from(ODD)) + (text[place:] if draw(st.booleans()) else "")


@st.composite
def conversations(draw: DrawFn, seeds: Sequence[str] = (), turns: int = 5) -> tuple[Message, ...]:
    """Conversations that a user has the last word in: perhaps a system message, then turns that alternate."""
    count = draw(st.integers(0, (turns - 1) // 2))
    roles: list[RoleName] = ["user", *(["assistant", "user"] * count)]  # type: ignore[list-item]
    if draw(st.booleans()):
        roles.insert(0, "system")
    return tuple(Message(role, draw(texts(seeds))) for role in roles)


@st.composite
def preferences(draw: DrawFn, seeds: Sequence[Preference] = ()) -> Preference:
    """Preference triples whose two answers differ; real ones among them if given (`pit.testing.data.read_rows`)."""
    if len(seeds) > 0 and draw(st.booleans()):
        return seeds[draw(st.integers(0, len(seeds) - 1))]
    answers = [text for row in seeds for text in (row.better, row.worse)]
    better, worse = draw(st.lists(texts(answers), min_size=2, max_size=2, unique=True))
    return Preference(draw(conversations()), better, worse)
