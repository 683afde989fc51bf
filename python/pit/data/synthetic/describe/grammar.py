"""Grammar of the family "describe": requests and answers, their English text, and its parser.

A prompt gives five true attributes of a thing, names three or four of them to report, and a word to end with; an answer
reports them one by one and closes with that courtesy.

    Describe this red small cheap old round lamp: price, colour and size. End fondly.
    price cheap, colour red, size small. fondly
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pit.data.synthetic.shared import COURTESIES, FILLERS

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "price": ("free", "cheap", "fair", "dear", "costly"),
        "colour": ("red", "blue", "green", "black", "white"),
        "size": ("tiny", "small", "medium", "large", "huge"),
        "age": ("new", "recent", "used", "old", "ancient"),
        "shape": ("round", "square", "oval", "flat", "slim"),
        "material": ("wood", "glass", "steel", "stone", "paper"),
    }
)
"""Values of each attribute; no word belongs to two attributes."""

NOUNS = ("lamp", "chair", "table", "bowl", "clock", "vase", "box", "desk", "bench", "mirror", "shelf", "tray")

ATTRIBUTE_OF: Mapping[str, str] = MappingProxyType(
    {value: attribute for attribute, values in ATTRIBUTES.items() for value in values}
)
"""Attribute of each value."""

_CLOSINGS = frozenset(COURTESIES)
_PROMPT = re.compile(
    rf"Describe this (?P<values>[a-z]+(?: [a-z]+)*) (?P<noun>{'|'.join(NOUNS)}): "
    rf"(?P<asked>[a-z]+(?:, [a-z]+)* and [a-z]+)\. End (?P<courtesy>{'|'.join(COURTESIES)})\."
)


class Request(NamedTuple):
    """Content of a prompt: true (attribute, value) pairs, a noun, the asked attributes, and the word to end with."""

    given: tuple[tuple[str, str], ...]
    noun: str
    asked: tuple[str, ...]
    courtesy: str

    @property
    def truth(self) -> dict[str, str]:
        """True value of each given attribute."""
        return dict(self.given)


class Item(NamedTuple):
    """One reported attribute; `filler` is the filler word before it, or empty."""

    attribute: str
    value: str
    filler: str = ""


class Answer(NamedTuple):
    """Content of an answer.

    items: the reported attributes in order.
    courtesy: the closing word, empty if there is none.
    junk: number of words that belong to no item.
    fillers: number of filler words, at any place.
    """

    items: tuple[Item, ...]
    courtesy: str
    junk: int = 0
    fillers: int = 0


def render_prompt(request: Request) -> str:
    """Return the request in English."""
    values = " ".join(value for _, value in request.given)
    asked = f"{', '.join(request.asked[:-1])} and {request.asked[-1]}"
    return f"Describe this {values} {request.noun}: {asked}. End {request.courtesy}."


def parse_prompt(text: str) -> Request:
    """Return the request that `render_prompt` wrote.

    Raises:
        ValueError: `text` is not a prompt of this task.
    """
    match = _PROMPT.fullmatch(text.strip())
    values = match["values"].split(" ") if match else []
    asked = tuple(re.split(r", | and ", match["asked"])) if match else ()
    given = tuple((ATTRIBUTE_OF.get(value, ""), value) for value in values)
    names = {attribute for attribute, _ in given}
    if (
        match is None
        or "" in names
        or len(names) != len(given)
        or len(set(asked)) != len(asked)
        or not set(asked) <= names
    ):
        raise ValueError(f"not a prompt of the synthetic task: {text[:200]!r}; take prompts from synthetic.generate")
    return Request(given, match["noun"], asked, match["courtesy"])


def render_answer(answer: Answer) -> str:
    """Return the answer in English; junk words are not part of an `Answer`, so they are not written."""
    items = ", ".join(f"{item.filler} {item.attribute} {item.value}".strip() for item in answer.items)
    return f"{items}{'.' if items else ''} {answer.courtesy}".strip()


def parse_answer(text: str) -> Answer:
    """Parse any text as an answer; words that do not fit count as junk."""
    words = re.findall(r"[^\W\d_]+|[^\s,.]", text)
    items: list[Item] = []
    courtesy, filler = "", ""
    junk = fillers = index = 0
    while index < len(words):
        word = words[index]
        following = words[index + 1] if index + 1 < len(words) else ""
        if word in FILLERS:
            fillers += 1
            filler = word
        elif word in ATTRIBUTES and following in ATTRIBUTE_OF:
            items.append(Item(word, following, filler))
            filler = ""
            index += 1
        elif word in _CLOSINGS and not following:
            courtesy = word
        else:
            junk += 1
        index += 1
    return Answer(tuple(items), courtesy, junk, fillers)
