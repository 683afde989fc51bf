"""A chat format cut apart: conversations are rendered around marks, and the text between the marks is the format's.

A conversation of the policy and one of the improver show the same messages; the cut says what each has around them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pit.data.chat.format import ChatFormat
from pit.data.errors import DataError
from pit.types import Message, RoleName


@dataclass(frozen=True)
class Cut:
    """Texts of a format around the contents of a conversation, for the roles of the messages of its prompt.

    lead: a space that the format puts before each content, "" for none; tokenizers join it with the word after it, so
        that it belongs to the content. No text below holds it.
    before: what comes before each content of the prompt; the first is the opening of the format.
    input: from the last content of the prompt to the policy's answer.
    reviewed: from there to an answer that another turn follows.
    reference: from that answer to the improver's: the end of the turn, the request, the opening of the next.
    ends: what follows an answer of the policy, and one of the improver.
    """

    lead: str
    before: tuple[str, ...]
    input: str
    reviewed: str
    reference: str
    ends: tuple[str, str]

    def prompt(self, contents: Sequence[str]) -> str:
        """Return the conversation up to the policy's answer."""
        pieces = (before + self.lead + text for before, text in zip(self.before, contents, strict=True))
        return "".join(pieces) + self.input

    def improved(self, contents: Sequence[str], answer: str, better: str) -> str:
        """Return the whole conversation of the improver."""
        prompt = self.prompt(contents).removesuffix(self.input)
        return f"{prompt}{self.reviewed}{self.lead}{answer}{self.reference}{self.lead}{better}{self.ends[1]}"


def mark(number: int) -> str:
    """Return a text that stands for content in a rendering and occurs in no template."""
    return f"Mark{number:04d}Qx7vZk"


def cut(format: ChatFormat, roles: Sequence[RoleName], request: str) -> Cut:
    """Return the texts of a format around a prompt of some roles and the answers to it.

    Args:
        format: the chat format.
        roles: roles of the messages of the prompt.
        request: the user's turn that asks for a better answer.

    Raises:
        DataError: the template refuses the conversation, or cannot be cut.
    """
    k = len(roles)
    prompt = [Message(role, mark(i)) for i, role in enumerate(roles)]
    answer, asked, better = Message("assistant", mark(k)), Message("user", request), Message("assistant", mark(k + 1))
    before = _pieces(format, prompt, k, opening=True)
    answered = _pieces(format, [*prompt, answer], k + 1, opening=False)
    reviewed = _pieces(format, [*prompt, answer, asked], k + 1, opening=True)
    improved = _pieces(format, [*prompt, answer, asked, better], k + 2, opening=False)
    lead = _lead((*before[:k], answered[k], reviewed[k], *improved[k : k + 2]), (before[k], reviewed[k + 1]))
    before, answered, reviewed, improved = (
        [*(piece.removesuffix(lead) for piece in pieces[:-1]), pieces[-1]]
        for pieces in (before, answered, reviewed, improved)
    )
    if answered[:k] != before[:k] or reviewed[:k] != before[:k]:
        raise _refusal("shows the prompt otherwise once it has an answer", roles)
    if answered[: k + 1] != before:
        raise _refusal(f"opens an answer by {before[k]!r}, but shows a given one after {answered[k]!r}", roles)
    if improved[: k + 2] != reviewed:
        raise _refusal(f"opens a second answer by {reviewed[-1]!r}, but shows a given one otherwise", roles)
    if request.strip() not in reviewed[k + 1]:
        raise _refusal(f"does not show the request {request!r}", roles)
    return Cut(lead, tuple(before[:k]), before[k], reviewed[k], reviewed[k + 1], (answered[k + 1], improved[k + 2]))


def _lead(befores: Sequence[str], openings: Sequence[str]) -> str:
    """Return the space at the end of what comes before each given content, "" unless the openings of answers lack it.

    A model that is to answer writes that space itself, in one token with its first word.
    """
    given = all(text.endswith(" ") for text in befores)
    return " " if given and not any(text.endswith(" ") for text in openings) else ""


def shown(format: ChatFormat, messages: Sequence[Message], at: int, *, opening: bool) -> str | None:
    """Return the content of one message as the format shows it; None where it changes the text around it.

    Args:
        format: the chat format.
        messages: the conversation; all contents but the one at `at` are replaced by marks.
        at: number of the message.
        opening: whether the opening of an answer follows.

    Raises:
        DataError: the template refuses the conversation.
    """
    marked = [message._replace(content=mark(i)) for i, message in enumerate(messages)]
    before, after = format.render(marked, opening=opening).split(mark(at))
    return between(format.render([*marked[:at], messages[at], *marked[at + 1 :]], opening=opening), before, after)


def between(text: str, before: str, after: str) -> str | None:
    """Return what a text has between its beginning and its end, None if it has others.

    >>> between("<a>text</a>", "<a>", "</a>")
    'text'
    """
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)]


def _pieces(format: ChatFormat, messages: Sequence[Message], marks: int, *, opening: bool) -> list[str]:
    """Return the text before, between and after the first marks of a conversation."""
    roles = [message.role for message in messages]
    text = format.render(messages, opening=opening)
    if format.render(messages, opening=opening) != text:
        raise _refusal("renders one conversation in two ways", roles)
    contents, places = [mark(number) for number in range(marks)], []
    for number, content in enumerate(contents):
        if text.count(content) != 1:
            raise _refusal(f"shows the content of message {number + 1} {text.count(content)} times as it is", roles)
        places.append(text.index(content))
    if any(later < earlier for earlier, later in pairwise(places)):
        raise _refusal("moves a message", roles)
    ends = [0, *(place + len(content) for place, content in zip(places, contents, strict=True))]
    return [text[end:place] for end, place in zip(ends, [*places, len(text)], strict=True)]


def _refusal(fault: str, roles: Sequence[str]) -> DataError:
    return DataError(
        f"the chat template cannot be cut apart: for a conversation of {', '.join(roles)} it {fault}; give a template "
        "that shows contents as they are, with the same text around them whether or not an answer follows"
    )
