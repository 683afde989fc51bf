"""Templates of context trees: the one place that says which tokens a segment holds and which trees there are.

A segment is its content followed by closing tokens, which the packer appends: one role token where PIT has trained the
tokenizer (`RoleTemplate`), the tokens of a chat format where a model is pretrained (`pit.data.chat`). The trees are
those of PIT (Wang et al., ICLR 2024, arXiv 2310.00898).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from pit.data.errors import DataError
from pit.data.tokenizer import Tokenizer
from pit.data.tokens import Tokens
from pit.types import Closings, Message, Preference, RoleName, Segment, SegmentKind, Topology

MAX_SEGMENTS = 64
"""Segments that a packer accepts in one tree."""

ROLES: tuple[RoleName, ...] = ("system", "user", "assistant")
"""Roles of the messages of a prompt."""

_PROMPT, _BETTER, _WORSE = 0, 1, 2


class EncodedPreference(NamedTuple):
    """Token contents of one preference, without closing tokens; `truncated` says which columns lost tokens.

    A prompt whose messages have no tokens, the system's aside, has none either.
    """

    prompt: list[int]
    better: list[int]
    worse: list[int]
    truncated: tuple[bool, bool, bool]


class Content(NamedTuple):
    """Tokens of a segment without closing tokens, whether any were cut off, and whether they say anything."""

    ids: list[int]
    cut: bool
    said: bool = True


class Template(ABC):
    """The layout of text as the contents of segments.

    The reference and the output window must be equal: the store keeps each answer once, and the same tokens serve as
    reference in one tree and as output in another.

    Attributes:
        tokenizer: the tokenizer.
        windows: most tokens of an (input, reference, output) segment, as the config counts them.
        closings: tokens that close the segments.
        pad: id of the padding token.
        eos_ids: ids that end a sampled answer; the first is that of `closings`.
        longest: most tokens of the contents of an (input, reference, output) segment.
        capacity: most tokens of a sampled answer, EOS included.
        special_ids: ids that contents never hold.
        hash: hex digest of all that decides contents.
        facts: what else a tree depends on beyond contents and windows.
        lead: space that other programs leave before an answer when they decode its tokens, and that is not part of it.
    """

    closings: Closings
    pad: int
    eos_ids: tuple[int, ...]
    longest: tuple[int, int, int]
    capacity: int
    special_ids: frozenset[int]
    hash: str
    facts: tuple[str, ...] = ()
    lead: str = ""

    def __init__(self, tokenizer: Tokenizer, windows: tuple[int, int, int]) -> None:
        if len(windows) != 3 or min(windows) < 3:
            raise DataError(f"windows={windows!r} must be three sizes (input, reference, output) of at least 3 tokens")
        if windows[1] != windows[2]:
            raise DataError(
                f"windows={windows!r}: the reference window must equal the output window, because one stored answer "
                "fills both; use the larger of the two"
            )
        self.tokenizer, self.windows = tokenizer, windows

    def path(self, *, referenced: bool) -> int:
        """Return the most tokens of a path, closing tokens included: input, reference where there is one, output."""
        close, (x, reference, y) = self.closings, self.longest
        if referenced:
            return x + len(close.reviewed) + reference + len(close.reference) + y + 1
        return x + len(close.input) + y + 1

    def tree(self, topology: Topology) -> int:
        """Return the most tokens of a tree, closing tokens included."""
        closings = self.closings.of(topology)
        return sum(
            self.longest[segment.kind] + len(closing)
            for segment, closing in zip(topology.segments, closings, strict=True)
        )

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the content of the input segment of a conversation; a longer one loses its beginning.

        Raises:
            DataError: no messages, or an unknown role.
        """
        require_messages(messages)
        return self._prompts([messages])[0][0]

    def encode_answer(self, text: str) -> list[int]:
        """Return the content of a reference or output segment, cut at the end."""
        return self._answers([text])[0][0]

    @abstractmethod
    def prompt_size(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a conversation that the input window counts, before any cut.

        Raises:
            DataError: no messages, an unknown role, or the template refuses the conversation.
        """

    @abstractmethod
    def answer_size(self, text: str) -> int:
        """Return the tokens of an answer that the output window counts, before any cut."""

    def encode_preferences(self, rows: Sequence[Preference]) -> list[EncodedPreference]:
        """Return the contents of many preferences, tokenised together on all cores."""
        prompts = self._prompts([row.prompt for row in rows])
        answers = iter(self._answers([text for row in rows for text in (row.better, row.worse)]))
        encoded = []
        for prompt, cut, said in prompts:
            (better, better_cut, _), (worse, worse_cut, _) = next(answers), next(answers)
            encoded.append(EncodedPreference(prompt if said else [], better, worse, (cut, better_cut, worse_cut)))
        return encoded

    def encode_rows(self, rows: Sequence[Preference]) -> list[EncodedPreference | None]:
        """Return the contents of many preferences; None for a row that the format does not take."""
        return list(self.encode_preferences(rows))

    def decode_answer(self, ids: Iterable[int] | Int32[np.ndarray, " _"]) -> str:
        """Return the text of a reference or output segment's content, without closing and padding tokens."""
        return self.tokenizer.decode(map(int, ids))

    def served(self, answers: Tokens) -> Tokens:
        """Return sampled answers as the conversation after them shows them."""
        return answers

    @abstractmethod
    def decode_prompt(self, ids: Iterable[int] | Int32[np.ndarray, " _"]) -> tuple[Message, ...]:
        """Return the messages of an input segment's content, without closing and padding tokens.

        Raises:
            DataError: the content does not begin as an input does.
        """

    @abstractmethod
    def _prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Content]:
        """Return the contents of input segments."""

    @abstractmethod
    def _answers(self, texts: Sequence[str]) -> list[Content]:
        """Return the contents of reference or output segments."""


def says(roles: Sequence[RoleName], contents: Sequence[Sequence[int]]) -> bool:
    """Return whether any message but the system's has tokens."""
    return any(role != "system" and len(content) > 0 for role, content in zip(roles, contents, strict=True))


def require_messages(messages: Sequence[Message]) -> None:
    """Raise unless there are messages of known roles.

    Raises:
        DataError: no messages, or an unknown role.
    """
    if not messages:
        raise DataError("a prompt needs at least one message")
    for message in messages:
        if message.role not in ROLES:
            raise DataError(f"message role {message.role!r} is not one of {list(ROLES)}")


class RoleTemplate(Template):
    """The template of PIT's own tokenizers: a role token opens each message and closes each segment.

    A window counts the content and its closing token. A prompt keeps its end (cut from the left; what is left of the
    message at the cut keeps its role token in front), an answer keeps its beginning.
    """

    def __init__(self, tokenizer: Tokenizer, windows: tuple[int, int, int] = (512, 512, 512)) -> None:
        super().__init__(tokenizer, windows)
        ids = tokenizer.role_ids
        self.closings = Closings.roles(ids["input"], ids["reference"], ids["output"])
        self.pad = ids["pad"]
        self.eos_ids = (self.closings.eos,)
        self.longest = (windows[0] - 1, windows[1] - 1, windows[2] - 1)
        self.capacity = windows[2] - 1
        self.special_ids = frozenset(ids.values())
        self.hash, self.lead = tokenizer.hash, " " if tokenizer.adds_space else ""
        self._opening: dict[RoleName, int] = {role: ids[role] for role in ROLES}
        self._role_of: dict[int, RoleName] = {token: role for role, token in self._opening.items()}

    def prompt_size(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a conversation that the input window counts, before any cut: roles and closing too.

        Raises:
            DataError: no messages, or an unknown role.
        """
        require_messages(messages)
        return 1 + sum(1 + len(ids) for ids in self.tokenizer.encode_batch([message.content for message in messages]))

    def answer_size(self, text: str) -> int:
        """Return the tokens of an answer that the output window counts, before any cut: its closing token too."""
        return 1 + len(self.tokenizer.encode(text))

    def decode_prompt(self, ids: Iterable[int] | Int32[np.ndarray, " _"]) -> tuple[Message, ...]:
        """Return the messages of an input segment's content, without closing and padding tokens.

        Raises:
            DataError: the content does not begin with a role token.
        """
        messages: list[tuple[RoleName, list[int]]] = []
        for token in map(int, ids):
            if token in self._role_of:
                messages.append((self._role_of[token], []))
            elif messages:
                messages[-1][1].append(token)
            else:
                raise DataError(f"an input must begin with one of the role tokens {self._opening}, got token {token}")
        return tuple(Message(role, self.tokenizer.decode(content)) for role, content in messages)

    def _prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Content]:
        texts = [message.content for messages in conversations for message in messages]
        encoded = iter(self.tokenizer.encode_batch(texts))
        return [self._joined(messages, [next(encoded) for _ in messages]) for messages in conversations]

    def _answers(self, texts: Sequence[str]) -> list[Content]:
        room = self.longest[2]
        return [Content(ids[:room], len(ids) > room) for ids in self.tokenizer.encode_batch(texts)]

    def _joined(self, messages: Sequence[Message], texts: Sequence[list[int]]) -> Content:
        """Return the content of an input segment from those of its messages."""
        require_messages(messages)
        room = self.longest[0]
        ids: list[int] = []
        starts: list[int] = []
        for message, text in zip(messages, texts, strict=True):
            starts.append(len(ids))
            ids.append(self._opening[message.role])
            ids.extend(text)
        said = says([message.role for message in messages], texts)
        if len(ids) <= room:
            return Content(ids, False, said)
        # Keep one place for the role token of the message that the cut falls into.
        first = len(ids) - room + 1
        owner = max(start for start in starts if start <= first)
        if owner == first:
            return Content(ids[first:], True, said)
        return Content([ids[owner], *ids[first:]], True, said)


@dataclass(frozen=True)
class GapLeaves:
    """Leaf slots of `gap_scoring`, candidate first; empty (or -1) where they were not requested.

    raw: r(y_i, ref) for each output i.
    identity: r(y_i, y_i) for each output i.
    swapped: r(ref, y_i) for each output i.
    reference_identity: r(ref, ref).
    """

    raw: tuple[int, ...]
    identity: tuple[int, ...]
    swapped: tuple[int, ...]
    reference_identity: int


class _Tree:
    """Segments of a tree under construction, depth-first."""

    def __init__(self, input_column: int = 0) -> None:
        self.segments = [Segment(-1, input_column, SegmentKind.INPUT)]
        self.leaves = 0

    def reference(self, column: int) -> int:
        self.segments.append(Segment(0, column, SegmentKind.REFERENCE))
        return len(self.segments) - 1

    def output(self, parent: int, column: int, *, loss: bool = False, leaf: bool = True) -> int:
        """Append an output and return its leaf slot, -1 where it has none."""
        slot = self.leaves if leaf else -1
        self.segments.append(Segment(parent, column, SegmentKind.OUTPUT, loss, slot))
        self.leaves += leaf
        return slot

    def topology(self, name: str) -> Topology:
        if len(self.segments) > MAX_SEGMENTS:
            raise DataError(
                f"tree {name!r} has {len(self.segments)} segments, at most {MAX_SEGMENTS} fit; ask for fewer outputs"
            )
        return Topology(name, tuple(self.segments))


def policy_sft() -> Topology:
    """Return x -> y_w: the policy learns the better answer (its tokens carry loss)."""
    tree = _Tree()
    tree.output(0, _BETTER, loss=True, leaf=False)
    return tree.topology("policy_sft")


def improver_sft() -> Topology:
    """Return x -> y_l -> y_w: the improver learns the better answer with the worse one as its reference."""
    tree = _Tree()
    tree.output(tree.reference(_WORSE), _BETTER, loss=True, leaf=False)
    return tree.topology("improver_sft")


def policy_pair() -> Topology:
    """Return x -> {y_w, y_l}, whose outputs carry loss; leaf 0 is the better answer, leaf 1 the worse."""
    tree = _Tree()
    for answer in (_BETTER, _WORSE):
        tree.output(0, answer, loss=True)
    return tree.topology("policy_pair")


def quality() -> Topology:
    """Return x -> {y_w, y_l}, the tree of R_P; leaf 0 scores the better answer, leaf 1 the worse."""
    tree = _Tree()
    tree.output(0, _BETTER)
    tree.output(0, _WORSE)
    return tree.topology("quality")


def gap() -> Topology:
    """Return x -> {y_w, y_l} -> {y_w, y_l}, the four orders of R_PIT; leaves GAP_WW, GAP_LW, GAP_WL, GAP_LL."""
    return _orders("gap", loss=False)


def improver_orders() -> Topology:
    """Return the tree of `gap` with loss on its outputs: each answer as the improver's, given each as the reference."""
    return _orders("improver_orders", loss=True)


def _orders(name: str, *, loss: bool) -> Topology:
    tree = _Tree()
    for reference in (_BETTER, _WORSE):
        parent = tree.reference(reference)
        tree.output(parent, _BETTER, loss=loss)
        tree.output(parent, _WORSE, loss=loss)
    return tree.topology(name)


@cache
def prefix() -> Topology:
    """Return a single segment, the prefix of a sample; its end is the leaf."""
    return Topology("prefix", (Segment(-1, 0, SegmentKind.INPUT, leaf=0),))


@cache
def rollout(n: int, with_reference: bool) -> Topology:
    """Return x -> [reference ->] n outputs, to train on samples and to score them; outputs carry loss.

    Columns: 0 the input, then the reference if there is one, then the n outputs; leaf i is output i.

    Raises:
        DataError: n < 1, or more segments than a packer accepts.
    """
    _require_outputs(n)
    tree = _Tree()
    parent = tree.reference(1) if with_reference else 0
    first = 2 if with_reference else 1
    for i in range(n):
        tree.output(parent, first + i, loss=True)
    return tree.topology(f"rollout_{n}{'_reference' if with_reference else ''}")


@cache
def gap_scoring(
    n: int, *, raw: bool = True, identity: bool = False, swapped: bool = False
) -> tuple[Topology, GapLeaves]:
    """Return the tree that scores outputs y_1 .. y_n against one reference; columns are input, reference, outputs.

    The raw gap needs `raw`, the centred gap `raw` and `identity`, the symmetric gap `raw` and `swapped`.

    Args:
        n: outputs.
        raw: score r(y_i, ref).
        identity: score r(y_i, y_i) and r(ref, ref).
        swapped: score r(ref, y_i).

    Returns:
        The topology and where each score is found among its leaves.

    Raises:
        DataError: n < 1, nothing asked for, or more segments than a packer accepts (n <= 15 always fits).
    """
    _require_outputs(n)
    if not (raw or identity or swapped):
        raise DataError("gap_scoring: needs at least one score; set raw, identity or swapped")
    tree = _Tree()
    raw_leaves: list[int] = []
    identity_leaves: list[int] = []
    swapped_leaves: list[int] = []
    reference_identity = -1
    if raw or identity:
        reference = tree.reference(1)
        raw_leaves = [tree.output(reference, 2 + i) for i in range(n) if raw]
        reference_identity = tree.output(reference, 1) if identity else -1
    for i in range(n):
        if identity or swapped:
            own = tree.reference(2 + i)
            identity_leaves += [tree.output(own, 2 + i)] if identity else []
            swapped_leaves += [tree.output(own, 1)] if swapped else []
    parts = [word for word, asked in (("raw", raw), ("identity", identity), ("swapped", swapped)) if asked]
    topology = tree.topology(f"gap_scoring_{n}_{'_'.join(parts)}")
    return topology, GapLeaves(tuple(raw_leaves), tuple(identity_leaves), tuple(swapped_leaves), reference_identity)


def _require_outputs(n: int) -> None:
    if n < 1:
        raise DataError(f"a tree with n={n} outputs has no leaf; n must be at least 1")
