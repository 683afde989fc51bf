"""OpenAI's summarize-from-feedback comparisons: a post, two summaries, and the choice of a person.

Source: Stiennon et al. 2020 (arXiv 2009.01325). The prompt is the title and the post (or the news article) as one user
message.
"""

from collections.abc import Mapping

from pit.data.readers.columns import column, preference, text_column
from pit.data.readers.report import Reason, RowError
from pit.types import Message, Preference


def convert(record: Mapping[str, object]) -> Preference:
    """Return a comparison as a preference.

    Raises:
        RowError: a part is missing or of another type, or the choice is neither 0 nor 1.
    """
    info = column(record, "info")
    if not isinstance(info, dict):
        raise RowError(Reason.TYPE, f"'info' is {type(info).__name__}, not an object")
    body = text_column(info, "post" if info.get("post") is not None else "article")
    title = info.get("title") or ""
    if not isinstance(title, str):
        raise RowError(Reason.TYPE, f"'title' is {type(title).__name__}, not text")
    summaries = column(record, "summaries")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
        raise RowError(Reason.TYPE, "'summaries' is not a list of two objects")
    choice = column(record, "choice")
    if type(choice) is not int or choice not in (0, 1):
        raise RowError(Reason.TYPE, f"'choice' is {choice!r}, not 0 or 1")
    texts = [text_column(summary, "text") for summary in summaries]
    prompt = f"{title.strip()}\n\n{body.strip()}".strip()
    return preference((Message("user", prompt),), texts[choice], texts[1 - choice])
