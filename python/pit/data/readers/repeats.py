"""Recognition of a prompt that an answer begins with, as in sets that hold prompt and answer in one text.

An improver that learns from such answers learns to write the prompt. White space may differ, and a header such as
"Human:" may stand before a turn.
"""

import re
from collections.abc import Sequence

from pit.types import Message

_HEADER = re.compile(r"^(?:#+ ?)?(?:human|user|prompt|question|instruction|assistant|q) ?:\s*", re.IGNORECASE)
_OPENING, _SHORT = 60, 12
"""Characters in which a header and the first characters of the first word are found."""

FEWEST_WORDS = 2
"""Fewest words of a prompt that both answers may not begin with; a single word, such as a greeting, is no sign."""

FEWEST_WORDS_OF_ONE = 5
"""The same for one answer alone: a short one, such as "Thank you", may well be answered by itself."""


def repeats(prompt: Sequence[Message], better: str, worse: str) -> str | None:
    r"""Return what begins with the prompt: "both answers", or the column of one; None if neither does.

    >>> lamp = [Message("user", "Describe a lamp.")]
    >>> repeats(lamp, "Describe a lamp. Red.", "Human: Describe a  lamp.\nTall."), repeats(lamp, "Red.", "Tall.")
    ('both answers', None)
    """
    fewest = {name: _repeated_words(prompt, text) for name, text in (("chosen", better), ("rejected", worse))}
    if min(fewest.values()) >= FEWEST_WORDS:
        return "both answers"
    return next((repr(name) for name, words in fewest.items() if words >= FEWEST_WORDS_OF_ONE), None)


def _repeated_words(prompt: Sequence[Message], answer: str) -> int:
    """Return how many words of the prompt the answer begins with: of its last turns, or of all; 0 if of no whole turn.

    A header before the prompt makes the repetition certain, so it counts as further words.
    """
    opening = answer.lstrip()[:_OPENING]
    words = {_first_word(opening), _first_word(_HEADER.sub("", opening, count=1))}
    firsts = [at for at, message in enumerate(prompt) if _first_word(message.content) in words]
    return max((_words_from(prompt[at:], answer) for at in firsts), default=0)


def _words_from(turns: Sequence[Message], answer: str) -> int:
    """Return how many words some turns have if the answer begins with all of them, otherwise 0."""
    rest, words = f"{_flat(answer)} ", 0
    for content in (_flat(message.content) for message in turns):
        header = None if rest.startswith(content) else _HEADER.match(rest)
        rest = rest[header.end() :] if header else rest
        if not content or not rest.startswith(content) or rest[len(content) :][:1].isalnum():
            return 0
        words += len(content.split()) + (FEWEST_WORDS_OF_ONE if header else 0)
        rest = rest[len(content) :].lstrip()
    return words


def _first_word(text: str) -> str:
    """Return the first word of a text, its first characters if it is long."""
    return next(iter(text.lstrip()[:_OPENING].split()), "")[:_SHORT]


def _flat(text: str) -> str:
    return " ".join(text.split())
