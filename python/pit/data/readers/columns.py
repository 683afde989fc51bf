"""Columns of a raw row, and the preference that they make: types, messages and texts are checked here for all formats.

Nothing is repaired: a row that could be read as something else is dropped with a reason.
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType

from pit.data.readers.encoded import is_encoded
from pit.data.readers.repeats import repeats
from pit.data.readers.report import Reason, RowError
from pit.types import Message, Preference, RoleName

ROLES: Mapping[str, RoleName] = MappingProxyType(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
)
"""Roles of messages with `role` and `content`."""

SPEAKERS: Mapping[str, RoleName] = MappingProxyType({"system": "system", "human": "user", "gpt": "assistant"})
"""Speakers of ShareGPT's messages, with `from` and `value`, beyond `ROLES`."""

MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|endoftext|>",
    "[INST]",
    "<<SYS>>",
    "### Instruction:",
    "\n\nHuman:",
    "\n\nAssistant:",
)
"""Markers of chat formats, which a template adds and a text should not hold."""

_WRITTEN = "messages written as text; decode it (json.loads) before writing"
_MARKER = re.compile("|".join(map(re.escape, MARKERS)))

SYSTEMS = ("system", "system_prompt", "system_message")
"""Columns that hold the system message of a row."""

PICTURES = ("images", "image", "image_path", "image_url", "picture", "pictures")
"""Columns that hold pictures."""


def preference(prompt: tuple[Message, ...], better: str, worse: str) -> Preference:
    """Return a preference with stripped answers.

    Raises:
        RowError: the prompt or an answer is empty, both answers are equal, one begins with the prompt, or a text is
            not valid Unicode or encodes a conversation.
    """
    better, worse = better.strip(), worse.strip()
    require_prompt(prompt)
    if not better or not worse:
        raise RowError(Reason.EMPTY_ANSWER, f"the {'rejected' if better else 'chosen'} answer has no text")
    if better == worse:
        raise RowError(Reason.EQUAL, "both answers are the same text")
    require_plain(*(message.content for message in prompt), better, worse)
    repeated = repeats(prompt, better, worse)
    if repeated is not None:
        begins = "begin" if repeated == "both answers" else "begins"
        raise RowError(
            Reason.REPEATED, f"{repeated} {begins} with the prompt; cut it off, the prompt has its own column"
        )
    require_unicode(*(message.content for message in prompt), better, worse)
    return Preference(prompt, better, worse)


def require_prompt(prompt: tuple[Message, ...]) -> None:
    """Raise `RowError` unless a message of the prompt has text."""
    if not any(message.content.strip() for message in prompt):
        raise RowError(Reason.EMPTY_PROMPT, "no message of the prompt has text")


def with_system(record: Mapping[str, object], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a prompt with the system message of the columns `SYSTEMS`, where it has none of its own.

    Raises:
        RowError: a column is not text, or there are two different system messages.
    """
    texts = [plain_text(record[name], name) for name in SYSTEMS if record.get(name) is not None]
    require_unicode(*texts)
    columns = [Message("system", text) for text in texts if text.strip()]
    own = [message for message in prompt if message.role == "system"]
    if len({message.content.strip() for message in (*columns, *own)}) > 1 and columns:
        raise RowError(Reason.PROMPTS, "the column 'system' and the messages have different system messages; keep one")
    return prompt if own or not columns else (columns[0], *prompt)


def require_no_pictures(record: Mapping[str, object]) -> None:
    """Raise `RowError` if a row has pictures, which its texts may be about."""
    for name in PICTURES:
        if record.get(name):
            raise RowError(
                Reason.PARTS, f"{name!r} holds pictures, and only text can be read; leave the row out, or the column"
            )


def require_plain(*texts: str) -> None:
    """Raise `RowError` if a text of a message encodes a conversation."""
    if any(map(is_encoded, texts)):
        raise RowError(Reason.ENCODED, f"a message holds {_WRITTEN}")


def require_unicode(*texts: str) -> None:
    """Raise `RowError` unless every text can be encoded as UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(Reason.UTF8, f"a lone surrogate at character {error.start}") from error


def markers(row: Preference) -> set[str]:
    """Return the `MARKERS` that the texts of a preference hold."""
    texts = (*(message.content for message in row.prompt), row.better, row.worse)
    return {marker for text in texts for marker in _MARKER.findall(text)}


def column(record: Mapping[str, object], name: str) -> object:
    """Return the value of a column.

    Raises:
        RowError: the column is missing or null.
    """
    value = record.get(name)
    if value is None:
        raise RowError(Reason.MISSING, f"{name!r} is missing or null; the columns are {sorted(map(str, record))}")
    return value


def number_column(record: Mapping[str, object], name: str) -> float:
    """Return the value of a column of finite numbers; a name that begins with "-" gives the negated value.

    Raises:
        RowError: it is missing, of another type, or not finite.
    """
    name, sign = (name[1:], -1.0) if name.startswith("-") else (name, 1.0)
    value = column(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(Reason.TYPE, f"{name!r} is {value!r}, not a finite number")
    return sign * value


def text_column(record: Mapping[str, object], name: str) -> str:
    """Return the value of a text column.

    Raises:
        RowError: it is missing, of another type, or encodes a conversation.
    """
    return plain_text(column(record, name), name)


def plain_text(value: object, name: str) -> str:
    """Return a value that is plain text.

    Raises:
        RowError: it is anything else, or encodes a conversation; the message calls it `name`.
    """
    if not isinstance(value, str):
        raise RowError(Reason.TYPE, f"{name!r} is {type(value).__name__}, not text")
    if is_encoded(value):
        raise RowError(Reason.ENCODED, f"{name!r} holds {_WRITTEN}")
    return value


def messages(value: object, name: str) -> tuple[Message, ...]:
    """Return a list of messages, ``{"role", "content"}`` or ShareGPT's ``{"from", "value"}``.

    Raises:
        RowError: `value` is anything else, or holds more than text; the message calls it `name`.
    """
    if not isinstance(value, list):
        raise RowError(Reason.TYPE, f"{name!r} is {type(value).__name__}, not text or a list of messages")
    return tuple(_message(item, name) for item in value)


def _message(item: object, name: str) -> Message:
    keys = ("role", "content") if isinstance(item, dict) and item.get("role") is not None else ("from", "value")
    if not isinstance(item, dict) or not isinstance(item.get(keys[0]), str):
        raise RowError(
            Reason.TYPE, f"{name!r} has an item that is not a message with role and content, or with from and value"
        )
    word = item[keys[0]]
    role = ROLES.get(word) or (SPEAKERS.get(word) if keys[0] == "from" else None)
    if role is None:
        raise RowError(Reason.ROLE, f"{name!r} has a message of role {word!r}; only {', '.join(ROLES)} can be read")
    if any(item.get(extra) for extra in ("tool_calls", "function_call")):
        raise RowError(Reason.PARTS, f"{name!r} has a message with tool calls; only text can be read")
    return Message(role, _content(item.get(keys[1]), name))


def _content(value: object, name: str) -> str:
    """Return the text of a message, which may be given as parts of type "text"."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(Reason.TYPE, f"{name!r} has a message whose content is {type(value).__name__}, not text")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RowError(Reason.PARTS, f"{name!r} has a message with a part of type {kind!r}; only text can be read")
    return "".join(part["text"] for part in value)
