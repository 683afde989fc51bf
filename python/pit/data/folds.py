"""Folds of a preference set, by a stable keyed hash of each conversation's opening: no prompt is in two folds.

The paper cuts its preference data into three equal folds (SFT, reward model, RL). Here two more are added, a judge fold
and an evaluation fold, on which no policy, improver or reward model is trained.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pit.data.errors import DataError
from pit.types import FOLDS, Message

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType(
    {"sft": 0.28, "reward": 0.28, "rl": 0.28, "judge": 0.10, "eval": 0.06}
)
"""Default share of the conversations in each fold."""

DEFAULT_KEY = "pit"
"""Default key of the hash; another key gives other folds."""


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


def opening(conversation: Sequence[Message] | str) -> str:
    """Return the text that decides the fold: the first message that is not a system message, stripped.

    System messages are skipped because all rows of a data set often share one.

    Raises:
        DataError: the conversation has no messages.
    """
    if isinstance(conversation, str):
        return conversation.strip()
    if not conversation:
        raise DataError("a conversation without messages belongs to no fold; drop the row")
    first = next((message for message in conversation if message.role != "system"), conversation[0])
    return first.content.strip()


def fold_of(
    conversation: Sequence[Message] | str,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    key: str = DEFAULT_KEY,
) -> str:
    """Return the fold of a conversation (or of its opening text), one of `pit.types.FOLDS`.

    All prefixes of a conversation have the same opening and so the same fold, on every machine and in every run.

    Args:
        conversation: the messages, or the text of the first one.
        fractions: share of each fold; an omitted fold, or one with share 0, stays empty.
        key: key of the hash, at most 64 bytes of UTF-8.

    Raises:
        DataError: bad fractions or key, or no messages.

    >>> fold_of("Why is the sky blue?", {"sft": 1.0})
    'sft'
    """
    check_fractions(fractions, key)
    text = opening(conversation).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8, key=key.encode()).digest()
    place = int.from_bytes(digest, "big") / 2**64
    limit = 0.0
    chosen = ""
    for name in FOLDS:
        share = fractions.get(name, 0.0)
        if share == 0:
            continue
        chosen = name
        limit += share
        if place < limit:
            break
    return chosen
