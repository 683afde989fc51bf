"""Preferences in ShareGPT's layout: `conversations` is the prompt, `chosen` and `rejected` are one answer each.

Messages have the keys `from` (human, gpt, system) and `value`, or `role` and `content`.
"""

from collections.abc import Mapping

from pit.data.readers.columns import column, messages
from pit.data.readers.report import Reason, RowError
from pit.data.readers.trl import from_messages
from pit.types import Message, Preference


def convert(record: Mapping[str, object]) -> Preference:
    """Return a row in ShareGPT's layout as a preference.

    Raises:
        RowError: a column is missing or of another type, or the prompts differ.
    """
    prompt = messages(column(record, "conversations"), "conversations")
    return from_messages(prompt, _answer(record, "chosen"), _answer(record, "rejected"))


def _answer(record: Mapping[str, object], name: str) -> tuple[Message, ...]:
    value = column(record, name)
    if isinstance(value, str):
        raise RowError(Reason.TYPE, f"{name!r} is text, not a message; give it as a message, or use 'prompt'")
    return messages([value] if isinstance(value, dict) else value, name)
