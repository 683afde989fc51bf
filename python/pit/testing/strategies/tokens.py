"""Sequences of token ids whose lengths lean towards boundaries."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn as DrawFn
else:
    # Hypothesis's protocol is not for isinstance, which checks of types at run time would ask of it.
    DrawFn = Callable

EDGES = (1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513)
"""Lengths at which blocks, tiles and windows of powers of two begin and end."""

_FREE = 6
"""Tokens of a sequence that are drawn one by one; a longer one repeats a pattern, quick to draw and to shrink."""


def sizes(longest: int, edges: Sequence[int] = EDGES) -> st.SearchStrategy[int]:
    """Sizes from 0 to `longest`: small ones, those at an edge, those about the longest, and any.

    Raises:
        ValueError: longest < 0.

    >>> from hypothesis import find
    >>> find(sizes(512), lambda n: n > 100)
    101
    """
    if longest < 0:
        raise ValueError(f"longest = {longest}: a size is at least 0; give such a bound")
    near = sorted({n for n in (*edges, longest - 1, longest) if 0 <= n <= longest})
    # Hypothesis shrinks towards what stands first: to the smallest size of all, not to the smallest edge.
    return st.one_of(st.integers(0, min(_FREE, longest)), st.integers(0, longest), st.sampled_from(near))


def token_sequences(
    content: tuple[int, int], longest: int, edges: Sequence[int] = EDGES
) -> st.SearchStrategy[tuple[int, ...]]:
    """Sequences of at most `longest` tokens of the ids content[0] to content[1], both included."""
    return _token_sequences(content, longest, tuple(edges))


# Hypothesis looks through a strategy before its first draw, which costs more than the draw: it is kept.
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
