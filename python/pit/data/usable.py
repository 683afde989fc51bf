"""Rows that cannot be used once they are tokens: what is checked as text is not what is trained.

Two answers may differ in nothing that the tokenizer keeps, or only behind the window.
"""

from pit.data.readers.report import Reason
from pit.data.template import EncodedPreference

DETAILS = {
    Reason.HELD_OUT: "its conversation is in the evaluation split too",
    Reason.FORMAT: "the chat format takes no such sequence of roles (a system message, two turns of one role), or "
    "shows other text around the messages",
    Reason.NO_TOKENS: "an answer has no tokens; the tokenizer drops its text",
    Reason.NO_PROMPT_TOKENS: "no message of the prompt has tokens; the tokenizer drops its text, or "
    "windows.input is too small for any",
    Reason.EQUAL_TOKENS: "both answers are the same tokens; the tokenizer drops what differs",
    Reason.EQUAL_CUT: "both answers are the same tokens once cut to the window; raise windows.output and "
    "windows.reference to train on what differs",
}
"""Fault of a row and its remedy, by reason."""


def flaw(row: EncodedPreference | None) -> Reason | None:
    """Return why an encoded row cannot be used, None if it can; the row is None where the format does not take it.

    >>> flaw(EncodedPreference([1], [2, 3], [2, 3], (False, True, False)))
    <Reason.EQUAL_CUT: 'answers equal in the window'>
    """
    if row is None:
        return Reason.FORMAT
    if not row.prompt:
        return Reason.NO_PROMPT_TOKENS
    if not row.better or not row.worse:
        return Reason.NO_TOKENS
    if row.better == row.worse:
        return Reason.EQUAL_CUT if any(row.truncated[1:]) else Reason.EQUAL_TOKENS
    return None
