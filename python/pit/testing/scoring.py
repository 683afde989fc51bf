"""Scores of the items of a whole check: each distinct item is scored once, and of a quality scorer each distinct text.

`score_cases` scores the items of one row of the data after the other, as long as there is time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pit.testing.adapters import Difference
from pit.testing.scorers import Item, Prompt, check_array, gaps, guarded

ITEMS_PER_CALL = 256
"""Items per call to the scorer at most."""

_SHORT_S = 4.0
"""Time of a call below which the next one scores more rows of the data."""

LEAST_ROWS = 2
"""Rows of the data that are scored, however long they take, of figures that need several."""


class ItemScores:
    """Scores of distinct items.

    Args:
        scorer: a gap scorer.
    """

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        self._items: dict[Item, float] = {}
        self._texts: dict[tuple[Prompt, str], np.float32] = {}

    def __getitem__(self, item: Item) -> float:
        """Return the score of an item that was added."""
        return self._items[item]

    def add(self, items: Iterable[Item]) -> None:
        """Score the items that have no score yet.

        Raises:
            InvariantError: the scorer fails.
        """
        new = [item for item in dict.fromkeys(items) if item not in self._items]
        for first in range(0, len(new), ITEMS_PER_CALL):
            batch = new[first : first + ITEMS_PER_CALL]
            if isinstance(self._scorer, Difference):
                self._add_texts(batch)
            else:
                self._items.update(zip(batch, map(float, gaps(self._scorer, batch)), strict=True))

    def _add_texts(self, items: Sequence[Item]) -> None:
        """Add items of a quality scorer: texts without a score are scored, the shortest first, as padding is dear."""
        texts = dict.fromkeys((item.prompt, text) for item in items for text in (item.output, item.reference))
        new = sorted((text for text in texts if text not in self._texts), key=_size)
        if new:
            prompts, outputs = map(list, zip(*new, strict=True))
            scores = guarded("quality", self._scorer.model.quality, prompts, outputs)
            self._texts.update(zip(new, check_array("quality()", scores, (len(new),)), strict=True))
        for item in items:
            output, reference = (self._texts[item.prompt, text] for text in (item.output, item.reference))
            self._items[item] = float(output - reference)


def score_cases(
    scores: ItemScores,
    items: Sequence[Sequence[Item]],
    ends: float,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
    least: int = LEAST_ROWS,
) -> int:
    """Score the items of each row of the data, in order, and return the number of rows that there was time for.

    Args:
        scores: object that gets the scores.
        items: items of each row.
        ends: time of the clock at which the last row should be done.
        progress: function that is called with a description of each step.
        clock: returns the time in seconds.
        least: number of rows that are scored however long they take.

    Raises:
        InvariantError: the scorer fails.
    """
    done, count, begin = 0, 1, clock()
    while done < len(items):
        before = clock()
        chosen = items[done : done + count]
        scores.add(item for of_row in chosen for item in of_row)
        done, now = done + len(chosen), clock()
        rate = max(now - begin, 1e-9) / done
        if now - before < _SHORT_S:
            count = 2 * count
        left = min(rate * (len(items) - done), max(0.0, ends - now))
        # Rows of a call are as many as fit the time that is left, and not more than one call scores.
        count = max(1, min(count, ITEMS_PER_CALL // max(1, len(items[0])), int(left / rate)))
        progress(f"row {done} of {len(items)}, at most {left:.0f} s left")
        if done >= least and now + rate > ends:
            break
    return done


def _size(text: tuple[Prompt, str]) -> int:
    prompt, answer = text
    return sum(len(message.content) for message in prompt) + len(answer)
