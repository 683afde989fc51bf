"""Edit distance and similarity against the textbook recurrence."""

import core_twins as twins
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data import _core
from pit.data.edit import edit_similarity

SHORT = st.lists(st.integers(0, 3), max_size=9)
LONG = st.builds(
    lambda seed, n: np.random.default_rng(seed).integers(0, 5, n).tolist(), st.integers(0, 99), st.integers(60, 200)
)
SEQUENCES = st.one_of(SHORT, LONG)


@given(rows=st.lists(st.tuples(SEQUENCES, SEQUENCES), max_size=4))
def test_edit_distance_agrees_with_its_twin(rows):
    def column(c):
        offsets = np.cumsum([0, *(len(row[c]) for row in rows)])
        return np.array([token for row in rows for token in row[c]], np.int32), offsets.astype(np.int64)

    table = _core.TokenTable([[column(0)], [column(1)]])
    assert table.edit_distances(0, 1).tolist() == [twins.levenshtein(a, b) for a, b in rows]
    assert table.edit_distances(1, 1).tolist() == [0] * len(rows)
    with pytest.raises(_core.CoreError, match=r"token table: column b=2 is outside \[0, 1\]"):
        table.edit_distances(0, 2)


def similarity(a, b):
    longest = max(len(a), len(b))
    return 1.0 - twins.levenshtein(a, b) / longest if longest else 1.0


ITEMS = st.one_of(st.integers(-(2**70), 2**70), st.sampled_from(["a", "b", "1", ""]), st.integers(0, 2))


@given(rows=st.lists(st.tuples(st.lists(ITEMS, max_size=9), st.lists(ITEMS, max_size=9)), max_size=4))
def test_edit_similarity_agrees_with_its_twin(rows):
    """Items are any integers and words; only their equality counts."""
    first, second = [a for a, _ in rows], [b for _, b in rows]
    result = edit_similarity(first, second)
    assert result.dtype == np.float64
    assert result.tolist() == [similarity(a, b) for a, b in rows]
    assert edit_similarity(second, first).tolist() == result.tolist()


def test_edit_similarity_by_hand():
    first, second = [[], [1], [], ["a", "b", "c", "d"]], [[], [], [1], ["a", "b", "c", "x"]]
    assert edit_similarity(first, second).tolist() == [1, 0, 0, 0.75]
    with pytest.raises(ValueError, match="2 sequences to compare with 1"):
        edit_similarity([[1], [2]], [[1]])
