r"""Anthropic's HH-RLHF as published: `chosen` and `rejected` hold whole transcripts that share all but the last turn.

Source: Bai et al. 2022 (arXiv 2204.05862). A transcript is ``\\n\\nHuman: ...\\n\\nAssistant: ...`` repeated; the two
of a row share everything up to the last Assistant turn.
"""

import re
from collections.abc import Mapping

from pit.data.readers.base import Dirty, Reason, preference, text_column
from pit.types import Message, Preference

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

_TURN = re.compile(r"\n\n(Human|Assistant):")


def convert(record: Mapping[str, object]) -> Preference:
    """One row of HH-RLHF.

    Raises:
        Dirty: not two transcripts, or they differ before their last answers.
    """
    prompt, better = split_answer(text_column(record, "chosen"), "chosen")
    other, worse = split_answer(text_column(record, "rejected"), "rejected")
    if prompt != other:
        raise Dirty(Reason.PROMPTS, "the transcripts differ before their last Assistant turns")
    return preference(turns(prompt, "chosen"), better, worse)


def split_answer(transcript: str, name: str) -> tuple[str, str]:
    """The transcript up to its last Assistant turn, and that turn's text."""
    prompt, mark, answer = transcript.rpartition(ASSISTANT)
    if not mark:
        raise Dirty(Reason.TRANSCRIPT, f"{name!r} has no Assistant turn")
    return prompt, answer


def turns(transcript: str, name: str) -> tuple[Message, ...]:
    """The messages of a transcript, without the whitespace around them."""
    if not transcript.startswith(HUMAN):
        raise Dirty(Reason.TRANSCRIPT, f"{name!r} does not begin with {HUMAN!r}")
    parts = _TURN.split(transcript)[1:]
    return tuple(
        Message("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    )
