r"""Anthropic's HH-RLHF as published: `chosen` and `rejected` hold whole transcripts that share all but the last turn.

Source: Bai et al. 2022 (arXiv 2204.05862). A transcript is ``\\n\\nHuman: ...\\n\\nAssistant: ...`` repeated; the two
of a row share everything up to the last Assistant turn.
"""

import re
from collections.abc import Mapping

from pit.data.readers.columns import preference, text_column
from pit.data.readers.report import Reason, RowError
from pit.types import Message, Preference

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

_TURN = re.compile(r"\n\n(Human|Assistant):")


def convert(record: Mapping[str, object]) -> Preference:
    """Return a row of HH-RLHF as a preference.

    Raises:
        RowError: not two transcripts, or they differ before their last answers, or end with a Human turn.
    """
    prompt, better = split_answer(text_column(record, "chosen"), "chosen")
    other, worse = split_answer(text_column(record, "rejected"), "rejected")
    if prompt != other:
        raise RowError(Reason.PROMPTS, "the transcripts differ before their last Assistant turns")
    return preference(turns(prompt, "chosen"), better, worse)


def unix(text: str) -> str:
    """Return a text with the line ends of HH-RLHF, in the place of those of Windows."""
    return text.replace("\r\n", "\n")


def is_transcript(value: object) -> bool:
    """Return whether a value is a transcript, whose leading newlines may be stripped if it has an Assistant turn."""
    if not isinstance(value, str):
        return False
    value = unix(value)
    return value.startswith(HUMAN) or (value.lstrip().startswith(HUMAN.strip()) and ASSISTANT in value)


def split_answer(transcript: str, name: str) -> tuple[str, str]:
    """Return the transcript up to its last Assistant turn, and the text of that turn.

    Raises:
        RowError: there is no Assistant turn, or a Human turn follows it; the message calls the column `name`.
    """
    prompt, mark, answer = unix(transcript).rpartition(ASSISTANT)
    if not mark:
        raise RowError(Reason.TRANSCRIPT, f"{name!r} has no Assistant turn")
    require_one_answer(answer, name)
    return prompt, answer


def require_one_answer(answer: str, name: str) -> None:
    """Raise unless the text of an answer holds no further turn.

    Raises:
        RowError: it holds one; the message calls the column `name`.
    """
    turn = _TURN.search(answer)
    if turn is None:
        return
    if answer.rfind(HUMAN) > answer.rfind(ASSISTANT):
        raise RowError(Reason.NO_ANSWER, f"{name!r} ends with a Human turn; end it with the answer")
    raise RowError(Reason.SEVERAL, f"{name!r} holds turns after the answer; end it with the first answer that differs")


def turns(transcript: str, name: str) -> tuple[Message, ...]:
    """Return the messages of a transcript, stripped.

    Raises:
        RowError: it does not begin with a Human turn; the message calls the column `name`.
    """
    if not is_transcript(transcript):
        raise RowError(Reason.TRANSCRIPT, f"{name!r} does not begin with {HUMAN!r}")
    parts = _TURN.split(f"\n\n{unix(transcript).lstrip()}")[1:]
    return tuple(
        Message("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    )
