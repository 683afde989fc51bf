"""The words of the family "relay": how a request and an answer are written as English, and read back.

A prompt says to whom each of twelve people passes, in the order of their names, who begins, who is asked of besides,
and the word to end with. An answer names the five people that are reached, the last one first, back to the one who
began; then the other one and to whom that one passes; and closes with that courtesy.

    Relay of ann to liz: gus dee eve ann bob bob joe gus eve eve joe ann. Five from joe, one from kit. End fondly.
    gus ann dee bob eve joe kit joe. fondly
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pit.data.synthetic.shared import COURTESIES, FILLERS

NAMES = ("ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal", "ida", "joe", "kit", "liz")
"""The people, in the order in which a prompt says to whom they pass."""

HOPS = 5
"""How often is passed."""

_NAMES = frozenset(NAMES)
_CLOSINGS = frozenset(COURTESIES)
_PROMPT = re.compile(
    rf"Relay of {NAMES[0]} to {NAMES[-1]}: (?P<passes>[a-z]+(?: [a-z]+)*)\. Five from (?P<start>[a-z]+), "
    rf"one from (?P<aside>[a-z]+)\. End (?P<courtesy>{'|'.join(COURTESIES)})\."
)


class Request(NamedTuple):
    """What a prompt says: to whom each of `NAMES` passes, who begins, who is asked of besides, the word to end with."""

    passes: tuple[str, ...]
    start: str
    aside: str
    courtesy: str

    @property
    def path(self) -> tuple[str, ...]:
        """Who has it after 0, 1, ... `HOPS` passes."""
        path = [self.start]
        for _ in range(HOPS):
            path.append(self.after(path[-1]))
        return tuple(path)

    @property
    def names(self) -> tuple[str, ...]:
        """What a right answer names."""
        return self.named(self.path)

    @property
    def passed_to(self) -> tuple[str, ...]:
        """Everyone to whom somebody passes."""
        return tuple(name for name in NAMES if name in self.passes)

    def named(self, path: Sequence[str], besides: str | None = None) -> tuple[str, ...]:
        """What an answer names by which the relay took this path.

        Args:
            path: who has it after 0, 1, ... `HOPS` passes.
            besides: to whom the one asked of besides is said to pass; the truth where None.
        """
        return (*reversed(path), self.aside, self.after(self.aside) if besides is None else besides)

    def after(self, name: str) -> str:
        """To whom this one passes."""
        return self.passes[NAMES.index(name)]


class Answer(NamedTuple):
    """What an answer says.

    names: the people, as written: the last one reached comes first.
    courtesy: the closing word, empty where there is none.
    before: the filler word before each name, or empty.
    junk: words that are none of these.
    fillers: filler words, wherever they stand.
    """

    names: tuple[str, ...]
    courtesy: str
    before: tuple[str, ...] = ()
    junk: int = 0
    fillers: int = 0


def render_prompt(request: Request) -> str:
    """The request in English."""
    passes = " ".join(request.passes)
    return (
        f"Relay of {NAMES[0]} to {NAMES[-1]}: {passes}. Five from {request.start}, "
        f"one from {request.aside}. End {request.courtesy}."
    )


def parse_prompt(text: str) -> Request:
    """The request that `render_prompt` wrote.

    Raises:
        ValueError: `text` is no prompt of this family.
    """
    match = _PROMPT.fullmatch(text.strip())
    passes = tuple(match["passes"].split()) if match else ()
    known = len(passes) == len(NAMES) and _NAMES.issuperset(passes)
    if match is None or not known or not _NAMES.issuperset((match["start"], match["aside"])):
        raise ValueError(f"not a prompt of the relay task: {text[:200]!r}; take prompts from synthetic.generate")
    return Request(passes, match["start"], match["aside"], match["courtesy"])


def render_answer(answer: Answer) -> str:
    """The answer as English; junk words are not kept by a parse and so are not written."""
    before = answer.before or ("",) * len(answer.names)
    names = " ".join(f"{filler} {name}".strip() for filler, name in zip(before, answer.names, strict=True))
    return f"{names}{'.' if names else ''} {answer.courtesy}".strip()


def parse_answer(text: str) -> Answer:
    """Read any text as an answer; what does not fit is counted as junk."""
    words = re.findall(r"[^\W\d_]+|[^\s,.]", text)
    names: list[str] = []
    before: list[str] = []
    courtesy, filler = "", ""
    junk = fillers = 0
    for index, word in enumerate(words):
        if word in FILLERS:
            fillers += 1
            filler = word
        elif word in _NAMES:
            names.append(word)
            before.append(filler)
            filler = ""
        elif word in _CLOSINGS and index == len(words) - 1:
            courtesy = word
        else:
            junk += 1
    return Answer(tuple(names), courtesy, tuple(before), junk, fillers)
