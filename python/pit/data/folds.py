"""Folds of a preference set, by a stable keyed hash of each conversation: no prompt is in two folds.

The paper cuts its preference data into three equal folds (SFT, reward model, RL). Here two more are added, a judge fold
and an evaluation fold, on which no policy, improver or reward model is trained.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pit.data.errors import DataError
from pit.types import FOLDS, Message

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType(
    {"sft": 0.28, "reward": 0.28, "rl": 0.28, "judge": 0.10, "eval": 0.06}
)
"""Default share of the conversations in each fold."""

DEFAULT_KEY = "pit"
"""Default key of the hash; another key gives other folds."""

Conversation = Sequence[Message] | str
"""Messages, or the text of a single one."""


def check_fractions(fractions: Mapping[str, float], key: str) -> None:
    """Raise `DataError` unless all names are folds, fractions are in [0, 1] and sum to 1, and the key fits the hash."""
    unknown = sorted(set(fractions) - set(FOLDS))
    if unknown:
        raise DataError(f"fold fractions name {unknown}: unknown; the folds are {list(FOLDS)}")
    for name, share in fractions.items():
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise DataError(f"fold fraction {name}={share!r} must lie in [0, 1]")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise DataError(f"fold fractions sum to {total:.6g}, but must sum to 1: {dict(fractions)}")
    if len(key.encode()) > hashlib.blake2b.MAX_KEY_SIZE:
        raise DataError(
            f"fold key {key!r} has {len(key.encode())} bytes, but at most {hashlib.blake2b.MAX_KEY_SIZE} are allowed; "
            "shorten it"
        )


def opening(conversation: Conversation) -> str:
    """Return the first message of the user, stripped; without one, the first that is not a system message.

    System messages and greetings of the assistant are skipped because all rows of a data set often share one.

    Raises:
        DataError: the conversation has no messages.
    """
    turns = _turns(conversation)
    return next((turn for turn in turns if turn.role == "user"), turns[0]).content.strip()


def whole(conversation: Conversation) -> str:
    """Return all messages but system messages as one text; that of a single message is its `opening`.

    Raises:
        DataError: the conversation has no messages.
    """
    turns = [(turn.role, turn.content.strip()) for turn in _turns(conversation)]
    return turns[0][1] if len(turns) == 1 else json.dumps(turns)


def _turns(conversation: Conversation) -> Sequence[Message]:
    """Return the messages that are not system messages, or all if there are no others."""
    if isinstance(conversation, str):
        return [Message("user", conversation)]
    if not conversation:
        raise DataError("a conversation without messages belongs to no fold; drop the row")
    return [turn for turn in conversation if turn.role != "system"] or conversation


@dataclass(frozen=True)
class Folds:
    """The rule that assigns conversations to folds.

    fractions: share of each fold; an omitted fold, or one with share 0, stays empty.
    key: key of the hash, at most 64 bytes of UTF-8.
    by: text that is hashed, `opening` or `whole`: "opening" keeps conversations that begin alike in one fold, "prompt"
        those whose whole prompt is the same.
    """

    fractions: Mapping[str, float] = field(default_factory=lambda: DEFAULT_FRACTIONS)
    key: str = DEFAULT_KEY
    by: Literal["opening", "prompt"] = "opening"

    def __post_init__(self) -> None:
        check_fractions(self.fractions, self.key)

    def text(self, conversation: Conversation) -> str:
        """Return the text that decides the fold of a conversation.

        Raises:
            DataError: no messages.
        """
        return opening(conversation) if self.by == "opening" else whole(conversation)

    def of(self, conversation: Conversation) -> str:
        """Return the fold of a conversation, one of `pit.types.FOLDS`; it is the same on every machine.

        Raises:
            DataError: no messages.
        """
        text = self.text(conversation).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, digest_size=8, key=self.key.encode()).digest()
        place = int.from_bytes(digest, "big") / 2**64
        limit = 0.0
        chosen = ""
        for name in FOLDS:
            share = self.fractions.get(name, 0.0)
            if share == 0:
                continue
            chosen = name
            limit += share
            if place < limit:
                break
        return chosen

    def without(self, name: str) -> "Folds":
        """Return the rule under which a fold stays empty, and the others keep their proportions.

        Raises:
            DataError: no other fold has a share.
        """
        rest = {fold: share for fold, share in self.fractions.items() if fold != name}
        total = math.fsum(rest.values())
        if total == 0:
            raise DataError(f"fold fractions {dict(self.fractions)} leave nothing but {name!r}; give others a share")
        return Folds({fold: share / total for fold, share in rest.items()}, self.key, self.by)


def fold_of(
    conversation: Conversation,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    key: str = DEFAULT_KEY,
) -> str:
    """Return the fold of a conversation by its opening.

    All prefixes of a conversation have the same opening and so the same fold, on every machine and in every run.

    Args:
        conversation: the messages, or the text of the first one.
        fractions: share of each fold.
        key: key of the hash.

    Raises:
        DataError: bad fractions or key, or no messages.

    >>> fold_of("Why is the sky blue?", {"sft": 1.0})
    'sft'
    """
    return Folds(fractions, key).of(conversation)
