"""Contents of a chat format, encoded apart from its text: as the tokens that they have inside of it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from pit.data.errors import DataError
from pit.data.tokenizer import Tokenizer

PROBES = ("red lamp", "Is 2 + 2 = 4?", "(a) one;\n\n(b) two.", "Ünïcode, 漢字")
"""Contents on which encoding apart must agree with encoding the whole conversation."""


@dataclass(frozen=True)
class Contents:
    """The encoder of contents.

    text: the tokenizer that decodes them.
    guarded: the same, taking text that spells a token of the format as bytes.
    lead: space that belongs to each content, see `pit.data.chat.cut.Cut`.
    """

    text: Tokenizer
    guarded: Tokenizer
    lead: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each content, of which none is the format's."""
        return self.guarded.encode_batch([self.lead + text for text in texts])

    def decode(self, ids: Iterable[int] | Int32[np.ndarray, " _"]) -> str:
        """Return the text of a content."""
        return self.text.decode(map(int, ids)).removeprefix(self.lead)


def contents_of(
    tokenizer: Tokenizer, special_ids: Collection[int], lead: str, apart: Callable[[Contents, str], bool]
) -> Contents:
    """Return the encoder of a format's contents.

    It is the tokenizer as it is, or without the space that it puts before a text.

    Args:
        tokenizer: tokenizer of the whole conversation.
        special_ids: ids of the format's tokens.
        lead: space that belongs to each content.
        apart: returns whether a content encoded apart has the tokens that it has in the whole conversation.

    Raises:
        DataError: neither encodes them as the whole conversation does, or text could forge a token of the format.
    """
    joined, inner = "", tokenizer.without_prefix()
    # After a space of the format no other one is added, so that none is to be dropped from what is decoded.
    for text in (inner, tokenizer) if lead else (tokenizer, inner):
        contents = Contents(text, text.guarding(special_ids), lead)
        wrong = next((probe for probe in PROBES if not apart(contents, probe)), None)
        if wrong is None:
            return contents
        joined = joined or wrong
    raise DataError(
        f"this tokenizer joins the text of the chat format with contents such as {joined!r}, so trees cannot be put "
        "together from parts; give a chat template that has a special token or a line end before and after them"
    )
