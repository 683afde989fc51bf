r"""Anthropic's HH-RLHF as published: `chosen` and `rejected` hold whole transcripts that share all but the last turn.

Source: Bai et al. 2022 (arXiv 2204.05862). A transcript is ``\\n\\nHuman: ...\\n\\nAssistant: ...`` repeated; the two
of a row share everything up to the last Assistant turn.
"""

import re
from collections.abc import Mapping

from pit.data.readers.base import Reason, RowError, preference, text_column
from pit.types import Message, Preference

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

_TURN = re.compile(r"\n\n(Human|Assistant):")


def convert(record: Mapping[str, object]) -> Preference:
    """Return a row of HH-RLHF as a preference.

    Raises:
        RowError: not two transcripts, or they differ before their last answers.
    """
    prompt, better = split_answer(text_column(record, "chosen"), "chosen")
    other, worse = split_answer(text_column(record, "rejected"), "rejected")
    if prompt != other:
        raise RowError(Reason.PROMPTS, "the transcripts differ before their last Assistant turns")
    return preference(turns(prompt, "chosen"), better, worse)


def split_answer(transcript: str, name: str) -> tuple[str, str]:
    """Return the transcript up to its last Assistant turn, and the text of that turn.

    Raises:
        RowError: there is no Assistant turn; the message calls the column `name`.
    """
    prompt, mark, answer = transcript.rpartition(ASSISTANT)
    if not mark:
        raise RowError(Reason.TRANSCRIPT, f"{name!r} has no Assistant turn")
    return prompt, answer


def turns(transcript: str, name: str) -> tuple[Message, ...]:
    """Return the messages of a transcript, stripped.

    Raises:
        RowError: it does not begin with a Human turn; the message calls the column `name`.
    """
    if not transcript.startswith(HUMAN):
        raise RowError(Reason.TRANSCRIPT, f"{name!r} does not begin with {HUMAN!r}")
    parts = _TURN.split(transcript)[1:]
    return tuple(
        Message("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    )
