"""Columns of token sequences: the same as lists of lists, whatever is asked of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.tokens import Tokens, joined

SEQUENCES = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=6)


@given(rows=SEQUENCES)
def test_a_column_holds_its_sequences(rows):
    column = Tokens.of(rows)
    assert column.rows() == rows
    assert [sequence.tolist() for sequence in column] == rows
    assert [column[i].tolist() for i in range(-len(rows), len(rows))] == rows + rows
    assert (len(column), column.length.tolist()) == (len(rows), [len(row) for row in rows])
    assert Tokens.of(column) is column
    assert Tokens.of(list(column)).rows() == rows
    assert column[1:3].rows() == rows[1:3]
    with pytest.raises(IndexError):
        column[len(rows)]


@given(data=st.data(), rows=SEQUENCES.filter(len))
def test_taken_chosen_and_equal_sequences(data, rows):
    index = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    column, other = Tokens.of(rows), Tokens.of(data.draw(st.permutations(rows)))
    assert column.take(index).rows() == [rows[i] for i in index]
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    picked = [a if choice else b for choice, a, b in zip(chosen, rows, other.rows(), strict=True)]
    assert column.where(chosen, other).rows() == picked
    assert column.equal(other).tolist() == [a == b for a, b in zip(rows, other.rows(), strict=True)]


@given(rows=st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=4)] * 2), min_size=1, max_size=5))
def test_columns_are_joined_sequence_by_sequence(rows):
    first, second = (Tokens.of([row[i] for row in rows]) for i in range(2))
    assert joined(first, 7, second).rows() == [[*a, 7, *b] for a, b in rows]


@given(rows=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5))
def test_padded_rows_lose_their_padding(rows):
    values = np.full((len(rows), 4), -1, np.int32)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
    assert Tokens.padded(values, np.array([len(row) for row in rows], np.int32)).rows() == rows
