"""Data with TRL's columns: `prompt`, `chosen`, `rejected`, or `chosen` and `rejected` that include the prompt.

Each column is plain text or a list of ``{"role", "content"}`` messages. Without a `prompt` column, the prompt is the
common beginning of the other two.
"""

import itertools
from collections.abc import Mapping

from pit.data.readers import hh
from pit.data.readers.base import Reason, RowError, column, messages, preference
from pit.types import Message, Preference


def convert(record: Mapping[str, object]) -> Preference:
    """Return a row with TRL's columns as a preference.

    Raises:
        RowError: a column is missing or of another type, or the prompts differ.
    """
    chosen, rejected = column(record, "chosen"), column(record, "rejected")
    prompt = _prompt(record["prompt"]) if record.get("prompt") is not None else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _from_texts(prompt, chosen, rejected)
    before, better = _split(messages(chosen, "chosen"), "chosen")
    other, worse = _split(messages(rejected, "rejected"), "rejected")
    if before != other:
        raise RowError(Reason.PROMPTS, "the message lists differ before their last message")
    # Some sets give the prompt and repeat it at the start of both message lists.
    if prompt is not None and before and before != prompt:
        raise RowError(Reason.PROMPTS, "the message lists do not begin with the messages of 'prompt'")
    return preference(before if prompt is None else prompt, better, worse)


def _prompt(value: object) -> tuple[Message, ...]:
    if not isinstance(value, str):
        return messages(value, "prompt")
    if value.startswith(hh.HUMAN):
        return hh.turns(value.rstrip().removesuffix(hh.ASSISTANT), "prompt")
    return (Message("user", value),)


def _from_texts(prompt: tuple[Message, ...] | None, chosen: str, rejected: str) -> Preference:
    if prompt is None:
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        # The common beginning may end inside a word: go back to the last whitespace.
        cut = max((i + 1 for i, (letter, _) in enumerate(common) if letter.isspace()), default=0)
        if chosen != rejected and cut == 0:
            raise RowError(Reason.EMPTY_PROMPT, "there is no 'prompt' and the two texts share no first word")
        prompt = (Message("user", chosen[:cut].strip()),)
        chosen, rejected = chosen[cut:], rejected[cut:]
    return preference(prompt, chosen, rejected)


def _split(conversation: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    if not conversation or conversation[-1].role != "assistant":
        raise RowError(Reason.EMPTY_ANSWER, f"{name!r} does not end with an assistant message")
    return conversation[:-1], conversation[-1].content
