"""Interfaces of served models, whose text becomes tokens and which have variants; all of it is optional for a scorer.

`pit.testing.invariants.served` checks them.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pit.testing.scorers import Prompt


class Variant(enum.Enum):
    """A variant of a model whose scores are compared with its own; the value is its name in messages."""

    OTHER_PADDING = "padded on the other side"
    FLOAT32 = "in float32"
    NO_ADAPTER = "without its adapter"


class ServedFacts(NamedTuple):
    """Facts about the tokens of a served model.

    bos: token that opens a text, None without one.
    ends: tokens that end a text: EOS, the end of a turn, a separator; empty where none is known.
    vocab_size: rows of the model's embedding.
    max_length: tokens at which a text is cut, None where it never is.
    special: ids of special tokens by name, as the tokenizer and as the model has them; None where one has it not.
    """

    bos: int | None
    ends: frozenset[int]
    vocab_size: int
    max_length: int | None
    special: Mapping[str, tuple[int | None, int | None]]


@runtime_checkable
class TextTokens(Protocol):
    """A scorer that says which tokens its model reads.

    Optional: template_tokens(prompt, output) -> the tokens of the chat template, applied once by other means, None
    without a template.
    """

    facts: ServedFacts

    def tokens(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens that the model reads for each prompt with its output, without padding."""


@runtime_checkable
class Varied(Protocol):
    """A scorer with variants."""

    def variant(self, variant: Variant) -> Any:
        """Return the scorer of a variant, None where there is none: no adapter, float32 already, no padding."""
