"""The text of an answer while its tokens come: which part may be shown, where it ends, and what is left of it then."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pit.data.chat.template import BROKEN
from pit.data.template import Template

Finish = Literal["stop", "length"]
"""End of an answer: by its own end or a stop text, or at a limit of tokens."""


@dataclass(frozen=True)
class Limits:
    """Limits of an answer: most tokens, its end included (None for those of the window), and texts that end it."""

    tokens: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """An answer that has ended.

    ids: tokens of the content.
    text: the content.
    finish: its end.
    tokens: tokens that were drawn for it within the limits, its end included.
    """

    ids: list[int]
    text: str
    finish: Finish
    tokens: int


class Growing:
    """An answer while its tokens come.

    Args:
        template: layout of answers.
        limits: where it ends at the latest.
        shows: whether somebody reads along.
    """

    def __init__(self, template: Template, limits: Limits, *, shows: bool) -> None:
        self._template, self._limits, self._shows = template, limits, shows
        self._shown = ""
        self.done = False
        """Whether a limit is reached, so that no further token matters."""

    def grow(self, ids: Sequence[int]) -> str:
        """Return the text that can be shown now and was not yet.

        Text that may become part of a stop text, or of a character that is not whole, is held back.

        Args:
            ids: all tokens so far.
        """
        limits = self._limits
        self.done = limits.tokens is not None and len(ids) >= limits.tokens
        if not (self._shows or limits.stop):
            return ""
        text = self._template.decode_answer(self._content(ids[: limits.tokens]))
        place = first_stop(text, limits.stop)
        if place is not None:
            self.done, text = True, text[:place]
        elif not self.done:
            text = text.rstrip(BROKEN)
            text = text[: len(text) - held_back(text, limits.stop)]
        return self._more(text)

    def end(self, ids: Sequence[int]) -> tuple[Ended, str]:
        """Return the answer of all tokens that were drawn, and its text that was not shown yet."""
        limits = self._limits
        kept = list(ids[: limits.tokens])
        content = self._content(kept)
        finish: Finish = "stop" if len(content) < len(kept) else "length"
        text, tokens = self._template.decode_answer(content), len(kept)
        place = first_stop(text, limits.stop)
        if place is not None:
            tokens = next(k for k in range(len(kept) + 1) if self._stops(content[:k]))
            text, finish = text[:place], "stop"
            content = self._template.encode_answer(text)
        return Ended(content, text, finish, tokens), self._more(text)

    def _stops(self, content: list[int]) -> bool:
        return first_stop(self._template.decode_answer(content), self._limits.stop) is not None

    def _content(self, ids: Sequence[int]) -> list[int]:
        """Return tokens without the one that ends the answer."""
        ended = bool(ids) and ids[-1] in self._template.eos_ids
        return list(ids[:-1] if ended else ids)

    def _more(self, text: str) -> str:
        """Return what a text has beyond what was shown; nothing if it does not continue that."""
        if not (self._shows and text.startswith(self._shown)):
            return ""
        more = text[len(self._shown) :]
        self._shown = text
        return more


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return the place of the first stop text, None if there is none.

    >>> first_stop("one. two", [". ", "two"])
    3
    """
    places = [place for place in (text.find(each) for each in stop) if place >= 0]
    return min(places, default=None)


def held_back(text: str, stop: Sequence[str]) -> int:
    r"""Return the length of the longest end of a text that is the beginning of a stop text.

    >>> held_back("one\n", ["\n\n", "two"])
    1
    """
    lengths = (k for each in stop for k in range(1, min(len(each), len(text) + 1)) if text.endswith(each[:k]))
    return max(lengths, default=0)
