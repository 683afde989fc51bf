"""Sequences of token ids whose lengths favour boundaries.

Longer sequences repeat a short pattern, which is quick to draw and to shrink.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn as DrawFn
else:
    # Checks of types at run time use isinstance, which Hypothesis's protocol does not support.
    DrawFn = Callable

EDGES = (1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513)
"""Lengths at and around powers of two, where blocks, tiles and windows begin and end."""

_FREE = 6
"""Maximum length of a sequence, or of a repeated pattern, whose tokens are drawn one by one."""


def sizes(longest: int, edges: Sequence[int] = EDGES) -> st.SearchStrategy[int]:
    """Return a strategy for sizes from 0 to `longest` that favours small sizes, edges and sizes near `longest`.

    Args:
        longest: upper bound, included.
        edges: sizes to favour.

    Raises:
        ValueError: `longest` is negative.

    >>> from hypothesis import find
    >>> find(sizes(512), lambda n: n > 100)
    101
    """
    if longest < 0:
        raise ValueError(f"longest = {longest}: must be at least 0; give a maximum length")
    near = sorted({n for n in (*edges, longest - 1, longest) if 0 <= n <= longest})
    # Hypothesis shrinks towards the first alternative: to the smallest size of all, not to the smallest edge.
    return st.one_of(st.integers(0, min(_FREE, longest)), st.integers(0, longest), st.sampled_from(near))


def token_sequences(
    content: tuple[int, int], longest: int, edges: Sequence[int] = EDGES
) -> st.SearchStrategy[tuple[int, ...]]:
    """Return a strategy for sequences of token ids.

    Args:
        content: smallest and largest id, both included.
        longest: maximum number of tokens.
        edges: lengths to favour.

    >>> from hypothesis import find
    >>> find(token_sequences((4, 99), 512), lambda tokens: len(tokens) >= 3)
    (4, 4, 4)
    """
    return _token_sequences(content, longest, tuple(edges))


# Cached, because Hypothesis analyses a strategy before its first draw, which costs more than the draw.
@functools.lru_cache(maxsize=256)
def _token_sequences(
    content: tuple[int, int], longest: int, edges: tuple[int, ...]
) -> st.SearchStrategy[tuple[int, ...]]:
    token = st.integers(*content)
    pattern = st.lists(token, min_size=1, max_size=_FREE)
    return st.one_of(
        st.lists(token, max_size=min(_FREE, longest)).map(tuple),
        st.builds(_repeated, pattern, sizes(longest, edges)),
    )


def _repeated(pattern: Sequence[int], size: int) -> tuple[int, ...]:
    return tuple((list(pattern) * -(-size // len(pattern)))[:size])
