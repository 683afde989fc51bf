"""The template of a pretrained model: trees in its chat format, in which the improver is the assistant's second turn.

    x          the conversation up to and with the opening of the assistant's answer
    reference  answer + what closes its turn + a user's turn that asks for a better answer + the opening of the next
    output     answer + the token that ends it

Contents are encoded apart from the format's text, so that nothing that a user types becomes a control token.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from pit.data.chat.contents import PROBES, Contents, contents_of
from pit.data.chat.cut import Cut, between, cut, mark, shown
from pit.data.chat.format import ChatFormat
from pit.data.errors import DataError
from pit.data.template import Content, EncodedPreference, Template, require_messages, says
from pit.data.tokenizer import Tokenizer
from pit.data.tokens import Tokens
from pit.types import Closings, Message, Preference, RoleName

BROKEN = "\ufffd"
"""Character of bytes that are not UTF-8, as at a cut inside a character."""

_NEIGHBOURS: tuple[tuple[RoleName, ...], ...] = (
    ("user", "assistant", "user"),
    ("system", "user"),
    ("user", "user"),
    ("user", "assistant", "assistant", "user"),
)
"""Conversations with all pairs of neighbouring roles; a format need not take the last two."""

_SHARED = ("lead", "input", "reviewed", "reference")
"""Texts of a cut that all conversations share."""

_TRIES = 4

Roles = tuple[RoleName, ...]


class _Texts(NamedTuple):
    """A conversation of a prompt: its roles, and the tokens of its contents."""

    roles: Roles
    ids: list[list[int]]


class ChatTemplate(Template):
    """The template of a chat format.

    A window counts contents, and of a prompt also what the format puts between its messages; the opening of the format
    and the closings come on top. A long prompt keeps its end: whole messages from a user's turn on, the last tokens of
    the user's turn before them where there is room, and its system message (at most half of the window, its beginning).

    Args:
        tokenizer: tokenizer of the pretrained model.
        format: its chat format.
        windows: most tokens of an (input, reference, output) segment.
        request: user's turn that asks for a better answer.

    Contents are encoded by the tokenizer as it is, or without the space that it puts before a text, whichever gives the
    tokens of the whole conversation.

    Attributes:
        format: the chat format.
        keeps_prefixes: whether policy and improver share x: the format shows a prompt alike before any answer.

    Raises:
        DataError: the format cannot be cut apart, an answer does not end in a special token, text could forge the
            tokens that part turns, or the tokenizer joins contents with the format's text.
    """

    def __init__(self, tokenizer: Tokenizer, format: ChatFormat, windows: tuple[int, int, int], request: str) -> None:
        super().__init__(tokenizer, windows)
        self.format, self._request = format, request
        self._cuts: dict[Roles, Cut] = {}
        self._tokens: dict[Roles, list[tuple[int, ...]]] = {}
        self._base = cut(format, ("user",), request)
        self.keeps_prefixes = self._base.reviewed == self._base.input
        texts = (self._base.input, self._base.reviewed, self._base.reference)
        closings = tuple(tuple(tokenizer.encode_format(text)) for text in texts)
        self.closings = Closings(closings[0], closings[1], closings[2], self._eos())
        self.eos_ids = (self.closings.eos, *(each for each in format.eos_ids if each != self.closings.eos))
        self._openings = self._known_openings()
        self.special_ids = self._control(closings)
        opening = max(len(ids) for ids in self._openings.values())
        self.longest = (windows[0] + opening, windows[1], windows[2])
        self.capacity = windows[2]
        pad = {text: token_id for token_id, text in tokenizer.added.items()}.get(
            format.special_tokens.get("pad_token", "")
        )
        self.pad = self.closings.eos if pad is None else pad
        self.hash, self.facts = f"{tokenizer.hash[:32]}{format.hash[:32]}", (request,)
        self._separators = self._known_separators()
        self._contents = contents_of(tokenizer, self.special_ids, self._base.lead, self._apart)
        (word,) = self._contents.encode([PROBES[0]])
        self.lead = self._base.lead if tokenizer.decode(word) != PROBES[0] else ""

    def prompt_size(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a conversation that the input window counts, before any cut.

        Raises:
            DataError: no messages, an unknown role, or the format refuses the conversation.
        """
        ids = self._contents.encode(self._shown(messages))
        return self._size(_Texts(tuple(message.role for message in messages), ids))

    def answer_size(self, text: str) -> int:
        """Return the tokens of an answer that the output window counts, before any cut."""
        return len(self._contents.encode([self._shown_answer(text)])[0])

    def encode_rows(self, rows: Sequence[Preference]) -> list[EncodedPreference | None]:
        """Return the contents of many preferences; None for a row that the format does not take."""
        taken = [self._takes(row) for row in rows]
        usable = [row for row, takes in zip(rows, taken, strict=True) if takes]
        encoded = iter(self.encode_preferences(usable))
        return [next(encoded) if takes else None for takes in taken]

    def served(self, answers: Tokens) -> Tokens:
        """Return sampled answers as the conversation after them shows them: trimmed and encoded as text."""
        return Tokens.of([content.ids for content in self._answers([self.decode_answer(ids) for ids in answers])])

    def decode_prompt(self, ids: Iterable[int] | Int32[np.ndarray, " _"]) -> tuple[Message, ...]:
        """Return the messages of an input segment's content; a system turn that the format adds itself is left out.

        Raises:
            DataError: the content does not begin as the format opens a conversation.
        """
        tokens = tuple(map(int, ids))
        begins = [(len(opening), role) for role, opening in self._openings.items() if tokens[: len(opening)] == opening]
        if not begins:
            raise DataError(f"an input must begin with the opening of its chat format, got tokens {tokens[:8]}")
        at, role = max(begins)
        messages: list[tuple[RoleName, list[int]]] = [(role, [])]
        while at < len(tokens):
            for (before, after), separator in self._separators.items():
                if before == messages[-1][0] and tokens[at : at + len(separator)] == separator:
                    messages.append((after, []))
                    at += len(separator)
                    break
            else:
                messages[-1][1].append(tokens[at])
                at += 1
        return tuple(Message(role, self._contents.decode(content)) for role, content in messages)

    def decode_answer(self, ids: Iterable[int] | Int32[np.ndarray, " _"]) -> str:
        """Return the text of a reference or output segment's content, without closing and padding tokens."""
        return self._contents.decode(ids)

    # Contents.

    def _prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Content]:
        texts = [self._shown(messages) for messages in conversations]
        encoded = iter(self._contents.encode([text for each in texts for text in each]))
        return [
            self._fitted(_Texts(tuple(message.role for message in messages), [next(encoded) for _ in messages]))
            for messages in conversations
        ]

    def _answers(self, texts: Sequence[str]) -> list[Content]:
        room, contents = self.windows[2], []
        for ids in self._contents.encode([self._shown_answer(text) for text in texts]):
            whole = len(ids) <= room
            contents.append(Content(ids if whole else self._settled(ids[:room], -1, self._shown_answer), not whole))
        return contents

    def _takes(self, row: Preference) -> bool:
        """Return whether the format shows a row's conversation and answers one after the other."""
        try:
            self._shown(row.prompt)
            self._shown_answer(row.better)
            self._shown_answer(row.worse)
        except DataError:
            return False
        return True

    def _shown(self, messages: Sequence[Message]) -> list[str]:
        """Return the contents of a prompt as the format shows them.

        Raises:
            DataError: the format refuses the conversation, or does not show its messages one after the other.
        """
        require_messages(messages)
        if messages[-1].role != "user":
            raise DataError(f"a prompt must end with a user's message, the last one is of role {messages[-1].role!r}")
        pieces, rendered = (
            self._cut(tuple(message.role for message in messages)),
            self.format.render(messages, opening=True),
        )
        given = [message.content for message in messages]
        for texts in (given, [text.strip() for text in given]):
            if pieces.prompt(texts) == rendered:
                return texts
        changed = [shown(self.format, messages, at, opening=True) for at in range(len(messages))]
        texts = [text for text in changed if text is not None]
        if len(texts) < len(messages) or pieces.prompt(texts) != rendered:
            raise DataError(
                f"the chat template shows the conversation that ends in {given[-1][-60:]!r} with other text around its "
                "messages; leave the row out, or give another chat template"
            )
        return texts

    def _shown_answer(self, text: str) -> str:
        """Return an answer as the format shows it, in an earlier turn and in the last one.

        Raises:
            DataError: no text is shown the same in both.
        """
        base, shown_text, user = self._base, text, Message("user", mark(0))
        before = base.before[0] + base.lead + user.content
        for _ in range(_TRIES):
            answer, asked = Message("assistant", shown_text), Message("user", self._request)
            rendered = self.format.render([user, answer, asked, answer], opening=False)
            if rendered == base.improved([user.content], shown_text, shown_text):
                return shown_text
            rendered = self.format.render([user, answer, asked], opening=True)
            earlier = between(rendered, before + base.reviewed + base.lead, base.reference)
            answer = Message("assistant", shown_text if earlier is None else earlier)
            rendered = self.format.render([user, answer], opening=False)
            last = between(rendered, before + base.input + base.lead, base.ends[0])
            if last is None:
                break
            shown_text = last
        raise DataError(
            f"the chat template shows the answer {text[:60]!r} otherwise in each turn; leave the row out, or give "
            "another chat template"
        )

    def _settled(self, ids: list[int], end: int, show: Callable[[str], str]) -> list[int]:
        """Return the tokens of a cut content without those at the cut that the format would not show as they are.

        Args:
            ids: the tokens.
            end: place of the cut: 0 the beginning, -1 the end.
            show: returns a text as the format shows it.
        """
        while ids:
            text = self._contents.decode(ids)
            if text[end : end + 1 or None] != BROKEN and show(text) == text:
                break
            ids = ids[1:] if end == 0 else ids[:-1]
        return ids

    def _fitted(self, texts: _Texts) -> Content:
        """Return the content of an input segment: the conversation, or as much of its end as the window holds."""
        if self._size(texts) <= self.windows[0]:
            return Content(self._joined(texts), False, says(texts.roles, texts.ids))
        head = texts.roles[0] == "system"
        if head:
            first = self._settled(texts.ids[0][: self.windows[0] // 2], -1, self._shown_user)
            texts = _Texts(texts.roles, [first, *texts.ids[1:]])

        def from_turn(at: int, content: list[int]) -> _Texts:
            return _Texts(
                (*texts.roles[: int(head)], *texts.roles[at:]), [*texts.ids[: int(head)], content, *texts.ids[at + 1 :]]
            )

        kept = None
        for at in reversed([i for i, role in enumerate(texts.roles) if role == "user"]):
            room = self.windows[0] - self._size(from_turn(at, []))
            if room >= len(texts.ids[at]):
                kept = from_turn(at, texts.ids[at])
                continue
            if room > 0:
                end = self._last(texts.ids[at], room)
                kept = from_turn(at, end) if end or kept is None else kept
            break
        if kept is None:
            raise DataError(
                f"windows.input = {self.windows[0]}: does not hold a token of the last message beside the system "
                "message and what the format puts between them; set it to a larger size"
            )
        return Content(self._joined(kept), True, says(kept.roles, kept.ids))

    def _last(self, ids: list[int], room: int) -> list[int]:
        """Return the tokens of the end of a user's content that has no room, as the format shows that text."""
        for begin in range(len(ids) - room, len(ids)):
            end = self._settled(ids[begin:], 0, self._shown_user)
            if not (end and self._base.lead):
                return end
            (end,) = self._contents.encode([self._contents.decode(end)])
            if len(end) <= room:
                return end
        return []

    def _shown_user(self, text: str) -> str:
        """Return a user's text as the format shows it."""
        rendered = self.format.render([Message("user", text)], opening=True)
        result = between(rendered, self._base.before[0] + self._base.lead, self._base.input)
        return text if result is None else result

    def _size(self, texts: _Texts) -> int:
        """Return the tokens of a prompt after the opening of the format."""
        pieces = self._pieces(texts.roles)
        return sum(map(len, pieces[1:])) + sum(map(len, texts.ids))

    def _joined(self, texts: _Texts) -> list[int]:
        pieces = zip(self._pieces(texts.roles), texts.ids, strict=True)
        return [token for piece, content in pieces for part in (piece, content) for token in part]

    # The format.

    def _cut(self, roles: Roles) -> Cut:
        """Return the texts of the format around a prompt of some roles.

        Raises:
            DataError: the template refuses such a conversation, or closes it otherwise than others.
        """
        if roles not in self._cuts:
            texts, base = cut(self.format, roles, self._request), self._base
            if any(getattr(texts, name) != getattr(base, name) for name in _SHARED):
                raise DataError(
                    f"the chat template closes a conversation of {', '.join(roles)} by {texts.input!r}, but one of a "
                    f"single turn by {base.input!r}; leave such rows out, or give another chat template"
                )
            self._cuts[roles] = texts
        return self._cuts[roles]

    def _pieces(self, roles: Roles) -> list[tuple[int, ...]]:
        """Return the tokens before each content of a prompt of some roles."""
        if roles not in self._tokens:
            self._tokens[roles] = [tuple(self.tokenizer.encode_format(text)) for text in self._cut(roles).before]
        return self._tokens[roles]

    def _eos(self) -> int:
        """Return the token that ends an answer."""
        ends = [self.tokenizer.encode_format(text)[:1] for text in self._base.ends]
        if ends[0] != ends[1] or not ends[0] or ends[0][0] not in self.tokenizer.added:
            raise DataError(
                f"the chat template closes an answer by {self._base.ends[0]!r}, which does not begin with a special "
                "token, so nothing would end an answer; give a template in which an answer ends in one"
            )
        return ends[0][0]

    def _accepted(self, *choices: Roles) -> list[Roles]:
        """Return the conversations of some roles that the template accepts."""
        accepted = []
        for roles in choices:
            try:
                self._cut(roles)
            except DataError:
                continue
            accepted.append(roles)
        return accepted

    def _known_openings(self) -> dict[RoleName, tuple[int, ...]]:
        """Return the opening of a conversation by the role of its first message; the system's where there is one."""
        accepted = self._accepted(("user",), ("system", "user"))
        openings = {roles[0]: self._pieces(roles)[0] for roles in accepted}
        if openings.get("system") == openings["user"]:
            del openings["system"]
        return openings

    def _control(self, closings: Sequence[tuple[int, ...]]) -> frozenset[int]:
        """Return the ids that contents never hold: those that end answers, pad, or are the format's own.

        Raises:
            DataError: turns are parted by text alone.
        """
        added = self.tokenizer.added.keys()
        for ids in closings:
            if not added & set(ids):
                raise DataError(
                    f"the chat template parts turns by {self.tokenizer.decode(ids)!r}, which anyone can type; give a "
                    "template that parts them by special tokens"
                )
        own = {token for ids in (*closings, *self._openings.values()) for token in ids}
        return frozenset((added & own) | (added & {*self.eos_ids}))

    def _known_separators(self) -> dict[tuple[RoleName, RoleName], tuple[int, ...]]:
        """Return the tokens between messages of two roles, where a special token is among them."""
        separators: dict[tuple[RoleName, RoleName], tuple[int, ...]] = {}
        for roles in self._accepted(*_NEIGHBOURS):
            for at, piece in enumerate(self._pieces(roles)[1:]):
                if self.special_ids & set(piece):
                    separators[roles[at], roles[at + 1]] = piece
        return separators

    def _apart(self, contents: Contents, text: str) -> bool:
        """Return whether a content encoded apart gives the tokens of the whole conversation."""
        (content,), close = contents.encode([text]), self.closings
        user, said = Message("user", text), Message("assistant", text)
        prompt = self._joined(_Texts(("user",), [content]))
        improved = [*prompt, *close.reviewed, *content, *close.reference, *content, close.eos]
        for turns, ours in (
            ([user, said], [*prompt, *close.input, *content, close.eos]),
            ([user, said, Message("user", self._request), said], improved),
        ):
            whole = self.tokenizer.encode_format(self.format.render(turns, opening=False))
            if whole[: len(ours)] != ours:
                return False
        return True
