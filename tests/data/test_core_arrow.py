"""Tables over Arrow streams, and single rows: against the arrays they come from, and errors of the binding."""

import re

import numpy as np
import pyarrow as pa
import pytest
from core_cases import random_tokens, token_table
from hypothesis import given
from hypothesis import strategies as st
from store_cases import SCHEMA, checksum, random_batch, record_batch

from pit.data import _core
from pit.types import COLUMNS


def arrow_file(batches, name="f.arrow"):
    """Return record batches as the arguments of the core for a file, here one in memory."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
    content = sink.getvalue()
    reader = pa.ipc.open_file(content)
    read = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    sizes = [[[b.size if b else 0 for b in column.buffers()[1::2]] for column in batch.columns] for batch in read]
    return (
        name,
        content,
        pa.RecordBatchReader.from_batches(SCHEMA, read),
        np.array(sizes, np.int64).reshape(-1, 3, 2),
        np.array([checksum(batch) for batch in batches], np.uint32),
    )


def table_of(*files):
    return _core.TokenTable.from_arrow(files, COLUMNS, 1000)


@given(files=st.lists(st.lists(st.integers(1, 6), max_size=3), max_size=3), tokens=st.integers(0, 5))
def test_rows_are_those_of_the_batches(files, tokens):
    batches = [[random_batch(rows, tokens, 7 * i + rows) for rows in file] for i, file in enumerate(files)]
    table = table_of(*map(arrow_file, batches))
    expected = [list(row.values()) for file in batches for batch in file for row in batch.to_pylist()]
    assert (table.rows, table.columns) == (len(expected), 3)
    assert [[column.tolist() for column in table.row(i)] for i in range(table.rows)] == expected
    assert table.lengths().tolist() == [[len(column) for column in row] for row in expected]
    table.verify()


def test_rows_of_arrays_in_memory():
    lengths = np.array([[1, 0, 5], [0, 0, 2], [7, 3, 1]], np.int32)
    columns = random_tokens(lengths, 0)
    table = token_table(columns, [[1], [], [0, 2, 2]])
    for row in range(3):
        for tokens, column in zip(table.row(row), columns, strict=True):
            assert np.array_equal(tokens, column[row])
            assert not tokens.flags.writeable
    table.verify()


def test_rows_keep_the_table_and_its_stream():
    rows = [table_of(arrow_file([random_batch(50, 9, seed)])).row(49) for seed in range(20)]
    for seed, row in enumerate(rows):
        assert [column.tolist() for column in row] == list(random_batch(50, 9, seed).to_pylist()[49].values())


@pytest.mark.parametrize("row", [-1, 2, 2**62])
def test_other_rows_are_refused(row):
    with pytest.raises(IndexError, match=f"the token table has 2 rows, there is no row {row}"):
        table_of(arrow_file([record_batch(*[[[1], [2]]] * 3)])).row(row)


def test_sizes_and_checksums_must_fit_the_batches():
    def refused(message, **changes):
        file = dict(
            zip(("name", "map", "stream", "sizes", "checksums"), arrow_file([random_batch(2, 3, 0)]), strict=True)
        )
        with pytest.raises(_core.CoreError, match=re.escape(message)):
            table_of(tuple((file | changes).values()))

    right = arrow_file([random_batch(2, 3, 0)])[3]
    refused("f.arrow: sizes has shape (2, 3, 2, ); give shape (1, 3, 2, )", sizes=np.concatenate([right, right]))
    refused("f.arrow: sizes is an array of int32", sizes=right.astype(np.int32))
    refused("f.arrow: checksums has shape (0, ); give shape (1, )", checksums=np.zeros(0, np.uint32))
    refused("f.arrow: checksums is an array of int64", checksums=np.zeros(1, np.int64))
    refused("column 'prompt', buffer of offsets needs 3 elements from 0 on, each of 8 bytes", sizes=right // 8)
    refused("column 'prompt', buffer of offsets lies outside the memory map of its file", map=b"elsewhere")
    other = pa.RecordBatchReader.from_batches(pa.schema([("prompt", pa.int32())]), [])
    refused("f.arrow: its columns are not large lists of int32 named prompt better worse", stream=other)


def test_a_stream_is_required():
    file = arrow_file([random_batch(2, 3, 0)])
    with pytest.raises(AttributeError, match="__arrow_c_stream__"):
        table_of((*file[:2], object(), *file[3:]))

    class Wrong:
        def __arrow_c_stream__(self):
            return SCHEMA.__arrow_c_schema__()

    with pytest.raises(ValueError, match="PyCapsule_GetPointer called with incorrect name"):
        table_of((*file[:2], Wrong(), *file[3:]))


def test_a_stream_is_read_once():
    file = arrow_file([random_batch(2, 3, 0)])
    capsule = file[2].__arrow_c_stream__()

    class Again:
        def __arrow_c_stream__(self):
            return capsule

    table_of((*file[:2], Again(), *file[3:])).verify()
    with pytest.raises(_core.CoreError, match=r"f.arrow: its Arrow stream was already read"):
        table_of((*file[:2], Again(), *file[3:]))
