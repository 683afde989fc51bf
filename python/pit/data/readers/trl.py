"""Data with TRL's columns: `prompt`, `chosen`, `rejected`, or `chosen` and `rejected` that include the prompt.

Each column is plain text, a transcript as in HH-RLHF, or a list of messages. Without a `prompt` column, the prompt is
the common beginning of the other two.
"""

import itertools
from collections.abc import Mapping

from pit.data.readers import hh
from pit.data.readers.columns import column, messages, plain_text, preference, require_plain, text_column
from pit.data.readers.report import Reason, RowError
from pit.types import Message, Preference

Messages = tuple[Message, ...]

OTHER_NAMES = (
    *("question", "instruction", "query", "problem", "input", "inputs", "context", "history", "post", "user_prompt"),
    *("messages", "message", "dialogue", "dialog", "conversation", "conversations", "chat", "turns", "prompts"),
)
"""Names that other sets give to the prompt; beside one of them, answers without a prompt do not include it."""


def convert(record: Mapping[str, object]) -> Preference:
    """Return a row with TRL's columns as a preference.

    Raises:
        RowError: a column is missing or of another type, or the prompts differ.
    """
    chosen, rejected = column(record, "chosen"), column(record, "rejected")
    prompt = prompt_of(record)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not (hh.is_transcript(chosen) and hh.is_transcript(rejected)):
            return _from_texts(record, prompt, chosen, rejected)
        lists = hh.turns(chosen, "chosen"), hh.turns(rejected, "rejected")
    else:
        lists = messages(chosen, "chosen"), messages(rejected, "rejected")
    if prompt is None and lists[0] and lists[1] and not any(turn.role == "user" for each in lists for turn in each):
        require_no_other_name(record)
        raise RowError(Reason.NO_PROMPT, "there is no 'prompt', and the message lists have no message of a user")
    return from_messages(prompt, *lists)


def from_messages(prompt: Messages | None, chosen: Messages, rejected: Messages) -> Preference:
    """Return the preference of two message lists, which may repeat the prompt or continue it.

    Raises:
        RowError: they do not end with an answer, or differ before it.
    """
    for name, conversation in (("chosen", chosen), ("rejected", rejected)):
        require_answer(conversation, name)
    before, other = chosen[:-1], rejected[:-1]
    if _stripped(before) != _stripped(other):
        part = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
        if all(part < len(each) and each[part].role == "assistant" for each in (chosen, rejected)):
            raise RowError(
                Reason.SEVERAL,
                f"the answers differ at message {part + 1} and go on for several turns; end both lists with the first "
                "answer that differs",
            )
        raise RowError(Reason.PROMPTS, "the message lists differ before their last message")
    return preference(_whole_prompt(prompt, before), chosen[-1].content, rejected[-1].content)


def _whole_prompt(prompt: Messages | None, before: Messages) -> Messages:
    """Return the prompt of a row: its own column, and what both message lists hold before their answers."""
    if prompt is None or not before:
        return prompt or before
    if before[0].role == "assistant":  # the lists continue the prompt
        return (*prompt, *before)
    ours, theirs = _stripped(prompt), _stripped(before)
    if _without_system(ours) == _without_system(theirs):
        systems = {turn for turn in (*ours, *theirs) if turn.role == "system"}
        if len(systems) > 1:
            raise RowError(Reason.PROMPTS, "'prompt' and the message lists have different system messages")
        return prompt if len(prompt) > len(before) else before
    # Some sets give one message as the prompt, and the lists around it.
    users = [turn for turn in theirs if turn.role == "user"]
    if len(ours) == 1 and users and ours[0] in (users[0], users[-1]):
        return before
    raise RowError(Reason.PROMPTS, "the message lists do not begin with the messages of 'prompt'")


def prompt_of(record: Mapping[str, object]) -> Messages | None:
    """Return the prompt of a row: a text, a transcript of HH-RLHF's turns, or a list of messages; None without one.

    Raises:
        RowError: it is of another type.
    """
    value = record.get("prompt")
    if value is None:
        return None
    if not isinstance(value, str):
        return messages(value, "prompt")
    if hh.is_transcript(value):
        return hh.turns(hh.unix(value).rstrip().removesuffix(hh.ASSISTANT), "prompt")
    return (Message("user", plain_text(value, "prompt")),)


def require_no_other_name(record: Mapping[str, object]) -> None:
    """Raise `RowError` if a row without a prompt has a column of `OTHER_NAMES`."""
    other = next((name for name in OTHER_NAMES if record.get(name) is not None), None)
    if other is not None:
        raise RowError(Reason.MISSING, f"'prompt' is missing or null, but there is {other!r}; rename it to 'prompt'")


def request_of(record: Mapping[str, object]) -> tuple[Messages, str | None]:
    """Return the prompt of a row, and its `answer` if there is one, by the rules for the answers of preferences.

    Raises:
        RowError: there is no prompt, or a column is of another type, encodes a conversation, or holds turns after the
            answer.
    """
    if record.get("prompt") is None:
        require_no_other_name(record)
    column(record, "prompt")
    prompt = prompt_of(record) or ()
    require_plain(*(turn.content for turn in prompt))
    if record.get("answer") is None:
        return prompt, None
    answer = text_column(record, "answer")
    if hh.is_transcript(answer):
        turns = hh.turns(answer, "answer")
        require_answer(turns, "answer")
        return _whole_prompt(prompt, turns[:-1]), turns[-1].content
    if hh.is_transcript(record["prompt"]):
        hh.require_one_answer(answer, "answer")
    return prompt, answer


def require_answer(conversation: Messages, name: str) -> None:
    """Raise `RowError` unless a conversation ends with an answer; the message calls it `name`."""
    if not conversation or conversation[-1].role != "assistant":
        raise RowError(Reason.NO_ANSWER, f"{name!r} does not end with an assistant message")


def _from_texts(record: Mapping[str, object], prompt: Messages | None, chosen: str, rejected: str) -> Preference:
    texts = plain_text(chosen, "chosen"), plain_text(rejected, "rejected")
    if prompt is None:
        return _from_common_beginning(record, *texts)
    if hh.is_transcript(record["prompt"]):
        for name, text in zip(("chosen", "rejected"), texts, strict=True):
            hh.require_one_answer(text, name)
    return preference(prompt, *texts)


def _from_common_beginning(record: Mapping[str, object], chosen: str, rejected: str) -> Preference:
    require_no_other_name(record)
    if "prompt" in record:
        raise RowError(Reason.MISSING, "'prompt' is null; give it, or leave the column out if the answers include it")
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    # The common beginning may end inside a word: go back to the last whitespace.
    cut = max((i + 1 for i, (letter, _) in enumerate(common) if letter.isspace()), default=0)
    if chosen != rejected and cut == 0:
        raise RowError(Reason.NO_PROMPT, "there is no 'prompt' and the two texts share no first word")
    return preference((Message("user", chosen[:cut].strip()),), chosen[cut:], rejected[cut:])


def _stripped(conversation: Messages) -> Messages:
    return tuple(Message(turn.role, turn.content.strip()) for turn in conversation)


def _without_system(conversation: Messages) -> Messages:
    return tuple(turn for turn in conversation if turn.role != "system")
