"""Exact invariants of every scorer of text: a score depends on its own item and on nothing else.

Neither the size and order of the batch, nor its padding, nor a second call may change it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pit.testing.invariants.base import Exact, Material
from pit.testing.invariants.rows import ROUNDED, SAME, require_close
from pit.testing.rows import path_scores
from pit.testing.scorers import Item, Method, gaps, rounding_of
from pit.testing.strategies.text import ODD_TEXTS, conversations, texts
from pit.types import Message

Items = tuple[Item, ...]

_LONGER = 4
"""Length of the neighbour that forces padding, as a multiple of the longest answer."""

_BATCHES = "RewardBench's scores change with the batch size (allenai/reward-bench issue 137)"


@dataclass(frozen=True)
class TextInvariant(Exact):
    """An exact invariant of a few items.

    test: function of scorer and items that raises InvariantError where the invariant does not hold.
    """

    test: Callable[[Any, Items], None]

    def examples(self, material: Material) -> st.SearchStrategy[Items]:
        """Return a strategy for 1 to 4 items, made of the data and of odd texts."""
        prompts = [row.prompt for row in material.rows]
        answers = [text for row in material.rows for text in (row.better, row.worse)]
        made_up = conversations(longest=material.longest)
        prompt = st.one_of(st.sampled_from(prompts), made_up) if prompts else made_up
        answer = texts(answers, material.longest)
        item = st.builds(Item, prompt, answer, answer)
        return st.lists(item, min_size=1, max_size=4).map(tuple)

    def always(self) -> tuple[Items, ...]:
        """Return items with each odd text as output and as reference, each together with a plain item."""
        prompt, plain = (Message("user", "why"),), "it is red"
        pairs = [((odd, plain), (plain, odd), (plain, plain)) for odd in ODD_TEXTS]
        return tuple(tuple(Item(prompt, *answers) for answers in three) for three in pairs)

    def check(self, scorer: Any, example: Items) -> None:
        """Check a few items.

        Raises:
            InvariantError: the invariant does not hold.
        """
        self.test(scorer, example)


def _well_formed(scorer: Any, items: Items) -> None:
    gaps(scorer, items)


def _deterministic(scorer: Any, items: Items) -> None:
    require_close("gap of a second call", gaps(scorer, items), gaps(scorer, items), 0.0)


def _batch_size(scorer: Any, items: Items) -> None:
    one_by_one = np.concatenate([gaps(scorer, (item,)) for item in items])
    require_close("gap in a batch", gaps(scorer, items), one_by_one, rounding_of(scorer))


def _item_order(scorer: Any, items: Items) -> None:
    reordered = gaps(scorer, items[::-1])[::-1]
    require_close("gap in a batch in reverse order", reordered, gaps(scorer, items), rounding_of(scorer))


def _padding(scorer: Any, items: Items) -> None:
    longest = max(max(len(item.output), len(item.reference)) for item in items)
    long = "word " * (_LONGER * longest // 5 + 8)
    neighbour = Item(items[0].prompt, long, long)
    padded = gaps(scorer, (neighbour, *items))[1:]
    require_close("gap next to a longer neighbour", padded, gaps(scorer, items), rounding_of(scorer))


def _centred_identity(scorer: Any, items: Items) -> None:
    same = tuple(Item(item.prompt, item.output, item.output) for item in items)
    centred = gaps(scorer, (*same, *items), Method.CENTRED)[: len(same)]
    require_close("centred gap of an answer over itself", centred, np.zeros_like(centred), 0.0)


def _text_is_path(scorer: Any, items: Items) -> None:
    encoded = [scorer.encode(*item) for item in items]
    form = scorer.format
    expected = path_scores(scorer, [form.item_path(*contents) for contents in encoded])
    if not form.reads_reference:
        expected = expected - path_scores(scorer, [form.item_path(x, ref, y) for x, y, ref in encoded])
    require_close("gap of text", gaps(scorer, items), expected, 2 * rounding_of(scorer))


def _text(name: str, statement: str, test: Callable[[Any, Items], None], **more: Any) -> TextInvariant:
    return TextInvariant(
        name=name,
        statement=statement,
        source=more.pop("source", "the definition of a function of the item"),
        needs=frozenset(more.pop("needs", {Method.GAP})),
        tolerance=more.pop("tolerance", ROUNDED),
        test=test,
    )


TEXT_INVARIANTS: tuple[TextInvariant, ...] = (
    _text("well_formed", "g is f32[n] and finite, for any text", _well_formed, tolerance=SAME),
    _text("deterministic", "two calls give the same g(q)", _deterministic, tolerance=SAME),
    _text("batch_size", "g(q | in a batch) = g(q | alone)", _batch_size, source=_BATCHES),
    _text("item_order", "g does not depend on the order of a batch", _item_order, source=_BATCHES),
    _text(
        "padding",
        "g(q | next to a longer item) = g(q)",
        _padding,
        source="left padding makes transformers' sequence classifiers read the wrong token",
    ),
    _text(
        "centred_identity",
        "c(x, y, y) = 0",
        _centred_identity,
        needs={Method.CENTRED},
        tolerance="exactly 0",
        source="docs/concepts/trees.md and pit_kernels.centred_gap",
    ),
    _text(
        "text_is_path",
        "g(x, y, ref) = r at the end of the path x, ref, y laid out by hand",
        _text_is_path,
        needs={Method.GAP, Method.ROWS},
        tolerance="2 * rounding",
        source="PIT (arXiv 2310.00898), section 3.3: candidate first, reference second",
    ),
)
"""Exact invariants of every scorer of text."""
