"""Exact invariants of served models: which tokens a text becomes, and variants that must not change a score.

Tokens need `tokens()` of the scorer, variants its `variant()`; `pit.testing.served` describes both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pit.testing.errors import InvariantError
from pit.testing.invariants.base import Material
from pit.testing.invariants.rows import ROUNDED, SAME, require_close
from pit.testing.invariants.text import Items, TextInvariant
from pit.testing.scorers import HALF_ROUNDING, Item, Method, call_scorer, gaps, rounding_of
from pit.testing.served import Variant
from pit.types import Message

_LAST = 3
"""Tokens at the end of a text among which its end is looked for: formats write a line break after it."""

_PLAIN = tuple(
    Item((Message("user", question),), good, bad)
    for question, good, bad in (
        ("What is the capital of France?", "It is Paris.", "It is a kind of cheese."),
        ("How many legs has a spider?", "A spider has eight legs.", "Six, like every insect."),
        ("Name a primary colour.", "Red is one of them.", "No."),
    )
)


@dataclass(frozen=True)
class Served(TextInvariant):
    """An exact invariant of the tokens or a variant of a served model.

    given: function that returns whether a scorer with the methods has what the invariant is about.
    subject: name of that.
    """

    given: Callable[[Any], bool]
    subject: str

    def applicable(self, scorer: object) -> bool:
        """Return whether the scorer has the methods, and what the invariant is about."""
        return super().applicable(scorer) and self.given(scorer)

    def missing(self, scorer: object) -> str:
        """Return the methods, or the subject, that the scorer lacks."""
        return super().missing(scorer) or self.subject


@dataclass(frozen=True)
class OfPlainItems(Served):
    """An invariant that is checked on a few plain items alone, because odd texts may rightly not show it."""

    def examples(self, material: Material) -> st.SearchStrategy[Items]:
        """Return a strategy for the plain items."""
        return st.just(_PLAIN)

    def always(self) -> tuple[Items, ...]:
        """Return no further examples."""
        return ()


def _has(variant: Variant) -> Callable[[Any], bool]:
    return lambda scorer: scorer.variant(variant) is not None


def _tokens(scorer: Any, items: Items) -> list[tuple[Item, tuple[int, ...]]]:
    """Return the tokens that the model reads for each output."""
    texts = call_scorer(scorer, Method.TOKENS, [item.prompt for item in items], [item.output for item in items])
    return list(zip(items, map(tuple, texts), strict=True))


def _whole(scorer: Any, ids: tuple[int, ...]) -> bool:
    limit = scorer.facts.max_length
    return limit is None or len(ids) < limit


def _template_once(scorer: Any, items: Items) -> None:
    for item, ids in _tokens(scorer, items):
        expected = scorer.template_tokens(item.prompt, item.output)
        if ids != expected[: scorer.facts.max_length]:
            place = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), None)
            where = f"they differ at token {place}" if place is not None else "one begins with the other"
            raise InvariantError(
                f"the model reads {len(ids)} tokens, where the chat template applied once makes {len(expected)}; "
                f"{where}: {list(ids[:8])} ... instead of {list(expected[:8])} ..."
            )


def _bos_once(scorer: Any, items: Items) -> None:
    bos = scorer.facts.bos
    for _, ids in _tokens(scorer, items):
        if ids[:2] == (bos, bos):
            raise InvariantError(f"the text begins with two BOS (token {bos}): {list(ids[:8])} ...")


def _ends(scorer: Any, items: Items) -> None:
    ends = scorer.facts.ends
    for _, ids in _tokens(scorer, items):
        if _whole(scorer, ids) and not ends & set(ids[-_LAST:]):
            raise InvariantError(
                f"no token that ends a text ({sorted(ends)}) is among the last {_LAST}: ... {list(ids[-_LAST:])}"
            )


def _in_vocabulary(scorer: Any, items: Items) -> None:
    facts = scorer.facts
    for name, (of_tokenizer, of_model) in facts.special.items():
        if None not in (of_tokenizer, of_model) and of_tokenizer != of_model:
            raise InvariantError(f"{name} is token {of_tokenizer} of the tokenizer and {of_model} of the model")
    for _, ids in _tokens(scorer, items):
        if ids and max(ids) >= facts.vocab_size:
            raise InvariantError(f"token {max(ids)} is outside of the model's embedding of {facts.vocab_size} rows")


def _same_under(variant: Variant, rounding: Callable[[Any], float]) -> Callable[[Any, Items], None]:
    def test(scorer: Any, items: Items) -> None:
        actual, expected = gaps(scorer, items), gaps(scorer.variant(variant), items)
        require_close(f"gap, against the variant {variant.value!r}", actual, expected, rounding(scorer))

    return test


def _adapter_counts(scorer: Any, items: Items) -> None:
    with_adapter, without = gaps(scorer, items), gaps(scorer.variant(Variant.NO_ADAPTER), items)
    if np.array_equal(with_adapter, without):
        raise InvariantError(f"all {len(items)} gaps are the same without the adapter: {with_adapter.tolist()}")


def _of_tokens(
    name: str,
    statement: str,
    test: Callable[[Any, Items], None],
    given: Callable[[Any], bool],
    subject: str,
    source: str,
) -> Served:
    needs = {Method.TOKENS, Method.TEMPLATE} if name == "template_once" else {Method.TOKENS}
    return Served(name, statement, source, frozenset(needs), SAME, test, given, subject)


# Five arguments: what any invariant has, and the variant.
def _of_variant(
    name: str, statement: str, tolerance: str, variant: Variant, test: Callable[[Any, Items], None], source: str
) -> Served:
    kind = OfPlainItems if variant is Variant.NO_ADAPTER else Served
    needs = frozenset({Method.GAP, Method.VARIANT})
    return kind(name, statement, source, needs, tolerance, test, _has(variant), f"the variant {variant.value!r}")


SERVED_INVARIANTS: tuple[Served, ...] = (
    _of_tokens(
        "template_once",
        "tokens(x, y) = the chat template, applied once, in tokens",
        _template_once,
        lambda scorer: scorer.template_tokens(_PLAIN[0].prompt, _PLAIN[0].output) is not None,
        "a chat template",
        "a template applied by the caller and again by the server",
    ),
    _of_tokens(
        "bos_once",
        "tokens(x, y) do not begin with two BOS",
        _bos_once,
        lambda scorer: scorer.facts.bos is not None,
        "a token that opens a text",
        "templates write BOS, and tokenizers add it",
    ),
    _of_tokens(
        "ends_with_eos",
        "a token that ends a text is among the last three of tokens(x, y)",
        _ends,
        lambda scorer: bool(scorer.facts.ends),
        "a token that ends a text",
        "scores are read at the end of a text",
    ),
    _of_tokens(
        "ids_in_vocabulary",
        "tokens(x, y) < rows of the embedding; BOS, EOS and padding are the model's",
        _in_vocabulary,
        lambda scorer: True,
        "tokens",
        "a tokenizer of another model",
    ),
    _of_variant(
        "padding_side",
        "g padded on the left = g padded on the right",
        ROUNDED,
        Variant.OTHER_PADDING,
        _same_under(Variant.OTHER_PADDING, rounding_of),
        "left padding makes transformers' sequence classifiers read the wrong token",
    ),
    _of_variant(
        "dtype_bound",
        "g in its own type = g in float32",
        "2^-4 * max(1, size of a and b)",
        Variant.FLOAT32,
        _same_under(Variant.FLOAT32, lambda scorer: HALF_ROUNDING),
        "bfloat16 keeps 8 bits",
    ),
    _of_variant(
        "adapter_counts",
        "g with the adapter differs from g without it, for some item",
        SAME,
        Variant.NO_ADAPTER,
        _adapter_counts,
        "adapters that were not loaded",
    ),
)
"""Exact invariants of served models."""
