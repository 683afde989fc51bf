"""Anything with TRL's columns: `prompt`, `chosen`, `rejected`, or `chosen` and `rejected` with the prompt inside.

Each column is plain text or a list of ``{"role", "content"}`` messages. Without a `prompt` column the prompt is what
both share at their beginning.
"""

import itertools
from collections.abc import Mapping

from pit.data.readers import hh
from pit.data.readers.base import Dirty, Reason, column, messages, preference
from pit.types import Message, Preference


def convert(record: Mapping[str, object]) -> Preference:
    """One row with TRL's columns.

    Raises:
        Dirty: a column is missing or of another type, or the prompts differ.
    """
    chosen, rejected = column(record, "chosen"), column(record, "rejected")
    prompt = _prompt(record["prompt"]) if record.get("prompt") is not None else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _from_texts(prompt, chosen, rejected)
    before, better = _split(messages(chosen, "chosen"), "chosen")
    other, worse = _split(messages(rejected, "rejected"), "rejected")
    if before != other:
        raise Dirty(Reason.PROMPTS, "the message lists differ before their last message")
    # Some sets give the prompt and repeat it at the head of both message lists.
    if prompt is not None and before and before != prompt:
        raise Dirty(Reason.PROMPTS, "the message lists do not begin with the messages of 'prompt'")
    return preference(before if prompt is None else prompt, better, worse)


def _prompt(value: object) -> tuple[Message, ...]:
    if not isinstance(value, str):
        return messages(value, "prompt")
    if value.startswith(hh.HUMAN):
        return hh.turns(value.rstrip().removesuffix(hh.ASSISTANT), "prompt")
    return (Message("user", value),)


def _from_texts(prompt: tuple[Message, ...] | None, chosen: str, rejected: str) -> Preference:
    if prompt is None:
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        # Both answers may begin alike inside a word: go back to the last whitespace.
        cut = max((i + 1 for i, (letter, _) in enumerate(alike) if letter.isspace()), default=0)
        if chosen != rejected and cut == 0:
            raise Dirty(Reason.EMPTY_PROMPT, "there is no 'prompt' and the two texts share no first word")
        prompt = (Message("user", chosen[:cut].strip()),)
        chosen, rejected = chosen[cut:], rejected[cut:]
    return preference(prompt, chosen, rejected)


def _split(found: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    if not found or found[-1].role != "assistant":
        raise Dirty(Reason.EMPTY_ANSWER, f"{name!r} does not end with an assistant message")
    return found[:-1], found[-1].content
