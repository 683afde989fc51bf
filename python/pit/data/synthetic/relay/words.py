"""The words of the family "relay": how a request and an answer are written as English, and read back.

A prompt says of each of twelve people to whom they pass, who begins, and the word to end with; an answer names the
five people that are reached, the last one first, then the one who began, and closes with that courtesy.

    Relay ann bob, joe eve, bob hal, ...: five from joe. End fondly.
    gus ann dee bob eve joe. fondly
"""

import re
from typing import NamedTuple

from pit.data.synthetic.shared import COURTESIES, FILLERS

NAMES = ("ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal", "ida", "joe", "kit", "liz")
"""The people; all of them stand in every prompt."""

HOPS = 5
"""How often is passed."""

_NAMES = frozenset(NAMES)
_CLOSINGS = frozenset(COURTESIES)
_PROMPT = re.compile(
    rf"Relay (?P<passes>[a-z]+ [a-z]+(?:, [a-z]+ [a-z]+)*): five from (?P<start>[a-z]+)\. "
    rf"End (?P<courtesy>{'|'.join(COURTESIES)})\."
)


class Request(NamedTuple):
    """What a prompt says: (who, to whom) in its order, who begins, and the word to end with."""

    passes: tuple[tuple[str, str], ...]
    start: str
    courtesy: str

    @property
    def path(self) -> tuple[str, ...]:
        """Who has it after 0, 1, ... `HOPS` passes."""
        following, path = dict(self.passes), [self.start]
        for _ in range(HOPS):
            path.append(following[path[-1]])
        return tuple(path)


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
    passes = ", ".join(f"{one} {other}" for one, other in request.passes)
    return f"Relay {passes}: five from {request.start}. End {request.courtesy}."


def parse_prompt(text: str) -> Request:
    """The request that `render_prompt` wrote.

    Raises:
        ValueError: `text` is no prompt of this family.
    """
    match = _PROMPT.fullmatch(text.strip())
    passes = tuple((one, other) for one, other in re.findall("([a-z]+) ([a-z]+)", match["passes"])) if match else ()
    known = sorted(one for one, _ in passes) == sorted(NAMES) and {other for _, other in passes} <= _NAMES
    if match is None or not known or match["start"] not in _NAMES:
        raise ValueError(f"not a prompt of the relay task: {text[:200]!r}; take prompts from synthetic.generate")
    return Request(passes, match["start"], match["courtesy"])


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
