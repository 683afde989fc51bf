"""A question to a finished run: a conversation and perhaps its answer, held to the rules of the training data.

These are the checks of the readers, so that nothing is answered that would have been dropped as data.
"""

from dataclasses import dataclass

from pit.data.errors import DataError
from pit.data.readers.columns import require_prompt, require_unicode
from pit.data.readers.report import Reason, RowError
from pit.data.template import EncodedPreference, Template
from pit.data.usable import DETAILS
from pit.types import Message, Preference


@dataclass(frozen=True)
class Question:
    """A prompt, y0 if it is given, and the tokens of both.

    tokens: contents of the prompt, and of y0 as the better answer; `truncated` names what its window cut.
    """

    prompt: tuple[Message, ...]
    answer: str | None
    tokens: EncodedPreference


def question(prompt: tuple[Message, ...], answer: str | None, template: Template) -> Question:
    """Return the question of a prompt and perhaps its answer, which is stripped as answers of the data are.

    Raises:
        RowError: the prompt is empty or has no tokens, or a text is not valid Unicode.
        DataError: the answer is empty, or the template refuses the conversation.
    """
    answer = checked(prompt, answer)
    (tokens,) = template.encode_preferences([Preference(prompt, answer or "", "")])
    if not tokens.prompt:
        raise RowError(Reason.NO_PROMPT_TOKENS, DETAILS[Reason.NO_PROMPT_TOKENS])
    return Question(prompt, answer, tokens)


def checked(prompt: tuple[Message, ...], answer: str | None) -> str | None:
    """Return the answer, stripped, once it and the prompt are texts that can be read.

    Raises:
        RowError: the prompt is empty, or a text is not valid Unicode.
        DataError: the answer is empty.
    """
    require_prompt(prompt)
    require_unicode(*(message.content for message in prompt))
    if answer is None:
        return None
    answer = answer.strip()
    require_unicode(answer)
    if not answer:
        raise DataError("empty answer: 'answer' has no text; give one, or leave it out and the policy answers")
    return answer
