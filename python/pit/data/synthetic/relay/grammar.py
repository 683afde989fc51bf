"""Grammar of the family "relay": requests and answers, their English text, and its parser.

A prompt says to whom each of fourteen people passes, in the order of their names, who begins, and the word to end with.
An answer names the holders after 0, 1, ... 9 passes in pairs of consecutive ones, the last pair first, and closes:

    Relay of ann to ned: gus dee liz eve kit ann hal joe bob max fay bob ann eve. Nine from ida, in pairs. End fondly.
    hal joe ann gus kit fay dee eve ida bob. fondly
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pit.data.synthetic.shared import COURTESIES, FILLERS

NAMES = ("ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal", "ida", "joe", "kit", "liz", "max", "ned")
"""The people, in the order of a prompt."""

PASSES = 9
"""Number of passes."""

ORDER = (8, 9, 6, 7, 4, 5, 2, 3, 0, 1)
"""Number of passes before each name of an answer, in its order.

The second name of a pair follows from the first, to its left; the first follows from a name further to the right, which
must already be known."""

HABIT = "bye"
"""The closing of most writers, which no prompt asks for."""

_NAMES = frozenset(NAMES)
_CLOSINGS = (*COURTESIES, HABIT)
_PROMPT = re.compile(
    rf"Relay of {NAMES[0]} to {NAMES[-1]}: (?P<passes>[a-z]+(?: [a-z]+)*)\. Nine from (?P<start>[a-z]+), "
    rf"in pairs\. End (?P<courtesy>{'|'.join(COURTESIES)})\."
)


class Request(NamedTuple):
    """Content of a prompt: to whom each of `NAMES` passes, who begins, and the word to end with."""

    passes: tuple[str, ...]
    start: str
    courtesy: str

    def after(self, name: str) -> str:
        """Return the person to whom `name` passes."""
        return self.passes[NAMES.index(name)]

    @property
    def route(self) -> tuple[str, ...]:
        """Holders after 0, 1, ... `PASSES` passes."""
        route = [self.start]
        while len(route) <= PASSES:
            route.append(self.after(route[-1]))
        return tuple(route)

    @property
    def passed_to(self) -> tuple[str, ...]:
        """All people to whom somebody passes."""
        return tuple(name for name in NAMES if name in self.passes)


class Answer(NamedTuple):
    """Content of an answer.

    names: the people, as written.
    courtesy: the closing word, empty if there is none.
    before: the filler word before each name, or empty.
    junk: number of words that are none of these.
    fillers: number of filler words, at any place.
    """

    names: tuple[str, ...]
    courtesy: str
    before: tuple[str, ...] = ()
    junk: int = 0
    fillers: int = 0


def answer_order(route: Sequence[str]) -> tuple[str, ...]:
    """Return the people of a route in the order of an answer.

    >>> answer_order("0123456789")
    ('8', '9', '6', '7', '4', '5', '2', '3', '0', '1')
    """
    return tuple(route[number] for number in ORDER)


def render_prompt(request: Request) -> str:
    """Return the request in English."""
    return (
        f"Relay of {NAMES[0]} to {NAMES[-1]}: {' '.join(request.passes)}. Nine from {request.start}, "
        f"in pairs. End {request.courtesy}."
    )


def parse_prompt(text: str) -> Request:
    """Return the request that `render_prompt` wrote.

    Raises:
        ValueError: `text` is not a prompt of this family.
    """
    match = _PROMPT.fullmatch(text.strip())
    passes = tuple(match["passes"].split()) if match else ()
    known = len(passes) == len(NAMES) and _NAMES.issuperset(passes)
    if match is None or not known or match["start"] not in _NAMES:
        raise ValueError(f"not a prompt of the relay task: {text[:200]!r}; take prompts from synthetic.generate")
    return Request(passes, match["start"], match["courtesy"])


def render_answer(answer: Answer) -> str:
    """Return the answer in English; junk words are not part of an `Answer`, so they are not written."""
    before = answer.before or ("",) * len(answer.names)
    names = " ".join(f"{filler} {name}".strip() for filler, name in zip(before, answer.names, strict=True))
    return f"{names}{'.' if names else ''} {answer.courtesy}".strip()


def parse_answer(text: str) -> Answer:
    """Parse any text as an answer; words that do not fit count as junk."""
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
