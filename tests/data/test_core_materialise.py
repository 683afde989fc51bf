"""Writing planned trees as rows: against the twin, and the visibility of each token."""

import re
from dataclasses import replace

import core_twins as twins
import numpy as np
import pytest
from core_cases import GAP, PAIR, Case, cases, random_tokens, token_table
from hypothesis import given
from hypothesis import strategies as st

from pit.data import _core
from pit.types import Batch

PAD = 1
FIELDS = tuple(Batch.__dataclass_fields__)


@st.composite
def filled_cases(draw):
    """(case, tokens of its columns, the core's table of them)."""
    case = draw(cases())
    columns = random_tokens(case.lengths, draw(st.integers(0, 2**32 - 1)))
    cut_lists = st.lists(st.integers(0, len(case.lengths)), max_size=3)  # a repeated cut is an empty chunk
    return case, columns, token_table(columns, [draw(cut_lists) for _ in columns])


def plan_of(case):
    return _core.plan_trees(case.lengths, case.core, **case.sizes)


def core_rows(plan, first, last, table, threads=1):
    batch = twins.empty_batch(last - first, plan)
    _core.materialise(plan, first, last, table, pad=PAD, threads=threads, out=batch)
    return batch


def twin_of(case):
    packer = twins.Packer(case.topology, case.lengths, **case.sizes, closings=case.closings)
    packer.window = [(i, 0) for i in range(len(case.lengths))]
    plan, groups = twins.TwinPlan(), 0
    while packer.window:
        packer.fill_group(groups, plan)
        groups += 1
    return plan


def visible(batch, row):
    """Return mask[q, k] of a row, from the definition."""
    until = batch.visible_until[row]
    index = np.arange(len(until))
    q, k = index[:, None], index[None, :]
    return (k <= q) & (q < until[None, :]) & (until[:, None] > q)


@given(filled=filled_cases(), data=st.data())
def test_materialise_agrees_with_its_twin(filled, data):
    case, columns, table = filled
    plan = plan_of(case)
    first = data.draw(st.integers(0, plan.groups))
    last = data.draw(st.integers(first, plan.groups))

    def contents(example):
        return [columns[s.column][example].tolist() for s in case.topology.segments]

    expected = twins.materialise(plan, twin_of(case), first, last, case.topology, contents, case.closings, PAD)
    for threads in (1, data.draw(st.integers(2, 20))):
        actual = core_rows(plan, first, last, table, threads=threads)
        for name in FIELDS:
            assert np.array_equal(getattr(actual, name), getattr(expected, name)), name


@given(filled_cases())
def test_a_token_sees_exactly_its_own_path(filled):
    """No two trees, and no two siblings, see each other; every token sees all earlier ones of its root-to-leaf path."""
    case, _, table = filled
    plan = plan_of(case)
    batch = core_rows(plan, 0, plan.groups, table)
    owner = np.full((*batch.token.shape, 2), -1)  # (piece, segment) of each token
    lengths = twins.Packer(case.topology, case.lengths, **case.sizes, closings=case.closings).segments
    for index, piece in enumerate(twin_of(case).pieces):
        at = piece.start
        example = int(plan.tree_example[piece.tree])
        for s in sorted(piece.segments):
            row = piece.group * plan.rows_per_group + piece.row
            owner[row, at : at + lengths(example)[s]] = (index, s)
            at += lengths(example)[s]
    for row in range(len(batch.token)):
        mask = visible(batch, row)
        for q in range(plan.row_length):
            piece, segment = owner[row, q]
            route = twins.path(case.topology, int(segment)) if piece >= 0 else []
            expected = [k <= q and owner[row, k][0] == piece and owner[row, k][1] in route for k in range(len(mask))]
            assert mask[q].tolist() == expected
            if piece >= 0:
                assert batch.position[row, q] == sum(expected) - 1


@given(filled_cases())
def test_materialise_conserves_tokens_and_loss(filled):
    case, columns, table = filled
    plan = plan_of(case)
    batch = core_rows(plan, 0, plan.groups, table)
    alive = batch.visible_until > np.arange(plan.row_length)
    assert alive.sum() == plan.piece_length.sum()
    targets = sum(
        len(columns[s.column][example]) + 1 - (s.parent < 0)
        for example in range(len(case.lengths))
        for s in case.topology.segments
        if s.loss
    )
    assert batch.loss_weight.sum() == targets
    assert sorted(batch.example_id[batch.example_id >= 0]) == list(range(len(case.lengths)))
    closing = [case.closings[s.kind] for s in case.topology.segments]
    closings = sum(len(closing[s]) for piece in plan_segments(plan) for s in piece)
    assert np.isin(batch.token[alive], [token for tokens in case.closings for token in tokens]).sum() == closings
    assert (batch.token[~alive] == PAD).all()


def plan_segments(plan):
    return [[s for s in range(64) if int(mask) >> s & 1] for mask in plan.piece_segments]


def test_a_pair_by_hand():
    case = Case(PAIR, np.array([[2, 1, 0]], np.int32), row_length=9, rows_per_group=1, trees_per_group=2)
    table = token_table([[np.array(c, np.int32)] for c in ([10, 11], [20], [])], [[], [], []])
    batch = core_rows(plan_of(case), 0, 1, table)
    assert batch.token.tolist() == [[10, 11, 3, 20, 5, 5, 1, 1, 1]]
    assert batch.position.tolist() == [[0, 1, 2, 3, 4, 3, 0, 0, 0]]
    assert batch.visible_until.tolist() == [[6, 6, 6, 5, 5, 6, 0, 0, 0]]
    assert batch.previous.tolist() == [[0, 0, 1, 2, 3, 2, 6, 7, 8]]
    assert batch.loss_weight.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 0]]
    assert batch.leaf.tolist() == [[[0, 4], [0, 5]], [[-1, -1], [-1, -1]]]
    assert batch.example_id.tolist() == [0, -1]
    assert batch.source.tolist() == [0, 0]


def test_a_pair_with_longer_closings_by_hand():
    # The second closing token of an output carries no loss, and is where its score is read.
    closings = ((3, 6), (4,), (5, 7))
    case = Case(PAIR, np.array([[1, 1, 0]], np.int32), 10, rows_per_group=1, trees_per_group=1, closings=closings)
    table = token_table([[np.array(c, np.int32)] for c in ([10], [20], [])], [[], [], []])
    batch = core_rows(plan_of(case), 0, 1, table)
    assert batch.token.tolist() == [[10, 3, 6, 20, 5, 7, 5, 7, 1, 1]]
    assert batch.position.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 0, 0]]
    assert batch.visible_until.tolist() == [[8, 8, 8, 6, 6, 6, 8, 8, 0, 0]]
    assert batch.previous.tolist() == [[0, 0, 1, 2, 3, 4, 2, 6, 8, 9]]
    assert batch.loss_weight.tolist() == [[0, 0, 0, 1, 1, 0, 1, 0, 0, 0]]
    assert batch.leaf.tolist() == [[[0, 5], [0, 7]]]


def test_a_split_tree_by_hand():
    # Root of 2 tokens and two leaves of 3 in rows of 5: the root is repeated and carries its loss once.
    lossy = replace(PAIR, segments=(PAIR.segments[0]._replace(loss=True), *PAIR.segments[1:]))
    case = Case(lossy, np.array([[1, 2, 2]], np.int32), row_length=5, rows_per_group=2, trees_per_group=1)
    table = token_table([[np.array(c, np.int32)] for c in ([10], [20, 21], [30, 31])], [[], [], []])
    plan = plan_of(case)
    assert plan.piece_segments.tolist() == [0b011, 0b101]
    assert plan.piece_owned.tolist() == [0b011, 0b100]
    batch = core_rows(plan, 0, 1, table)
    assert batch.token.tolist() == [[10, 3, 20, 21, 5], [10, 3, 30, 31, 5]]
    assert batch.loss_weight.tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.leaf.tolist() == [[[0, 4], [1, 4]]]


def table_of(lengths):
    return token_table(random_tokens(np.array(lengths, np.int32), 0), [[]] * len(lengths[0]))


CASE = Case(GAP, np.array([[1, 2, 3]], np.int32), row_length=40, rows_per_group=1, trees_per_group=1)


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (0, 2), (1, 0), (0, 2**62)])
def test_materialise_refuses_a_group_range(first, last):
    message = f"groups [{first}, {last}) are outside the plan's [0, 1)"
    plan = plan_of(CASE)
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        _core.materialise(plan, first, last, table_of([[1, 2, 3]]), pad=PAD, out=twins.empty_batch(1, plan))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([[1, 2, 4]], "example 0 was planned with 23 tokens in a row, but the token table gives 26"),
        (np.zeros((0, 3)), "the plan names example 0, but the token table has 0 rows"),
        ([[1, 2]], "the token table has 2 columns, but the topology names column 2"),
    ],
)
def test_materialise_refuses_another_table(lengths, message):
    lengths = np.array(lengths, np.int32)
    table = token_table(random_tokens(lengths, 0), [[]] * lengths.shape[1])
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        core_rows(plan_of(CASE), 0, 1, table)


@pytest.mark.parametrize("threads", [0, 257])
def test_materialise_refuses_a_number_of_threads(threads):
    with pytest.raises(_core.CoreError, match=re.escape(f"materialise: threads={threads} is outside [1, 256]")):
        core_rows(plan_of(CASE), 0, 1, table_of([[1, 2, 3]]), threads=threads)


@pytest.mark.parametrize("name", FIELDS)
def test_materialise_refuses_wrong_outputs(name):
    plan, table = plan_of(CASE), table_of([[1, 2, 3]])
    right = {f: getattr(twins.empty_batch(1, plan), f) for f in FIELDS}

    def materialise(array):
        out = type("Out", (), right | {name: array})()
        _core.materialise(plan, 0, 1, table, pad=PAD, out=out)

    array = right[name]
    with pytest.raises(_core.CoreError, match=re.escape(f"out.{name} has shape (") + ".*; give shape "):
        materialise(np.concatenate([array, array]))
    with pytest.raises(_core.CoreError, match=f"out.{name} is an array of int16; give a C-contiguous NumPy array of"):
        materialise(np.zeros(array.shape, np.int16))
    array.flags.writeable = False
    with pytest.raises(_core.CoreError, match=f"out.{name} is read-only"):
        materialise(array)
    array.flags.writeable = True
    materialise(array)


def test_token_table_gives_lengths():
    lengths = np.array([[1, 0, 5], [0, 0, 2], [7, 3, 1]], np.int32)
    table = token_table(random_tokens(lengths, 0), [[1], [], [0, 2, 2]])
    assert (table.rows, table.columns) == (3, 3)
    assert np.array_equal(table.lengths(), lengths)


def test_token_table_keeps_its_arrays_alive():
    table = _core.TokenTable([[(np.arange(10, 14, dtype=np.int32), np.array([0, 4]))]])
    topology = _core.Topology([-1], [0], [[3]], [False], [0])
    plan = _core.plan_trees(table.lengths(), topology, row_length=5, rows_per_group=1, trees_per_group=1)
    assert core_rows(plan, 0, 1, table).token.tolist() == [[10, 11, 12, 13, 3]]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([[([1, 2], [0, 3])]], "column 0, chunk 0: offset 1 is 3, outside [0, 2]"),
        ([[([1, 2], [-1, 2])]], "column 0, chunk 0: offset 0 is -1, outside [0, 2]"),
        ([[([1, 2], [0, 2, 1])]], "column 0, chunk 0: offset 2 is 1, outside [2, 2]"),
        ([[([1], [0, 1])], [([1], [0, 1]), ([], [1])]], "column 1, chunk 1: offset 0 is 1, outside [0, 0]"),
        ([[([1], [0, 1])], [([1], [0, 1, 1])]], "column 1 has 2 rows, column 0 has 1"),
        ([[([1], [])]], "column 0, chunk 0: offsets is empty"),
    ],
)
def test_token_table_refuses(chunks, message):
    arrays = [[(np.array(v, np.int32), np.array(o, np.int64)) for v, o in column] for column in chunks]
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        _core.TokenTable(arrays)


def test_token_table_converts_nothing():
    with pytest.raises(
        _core.CoreError, match="chunk 0, values is an array of int64; give a C-contiguous NumPy array of"
    ):
        _core.TokenTable([[(np.zeros(2, np.int64), np.array([0, 2]))]])
    with pytest.raises(_core.CoreError, match="chunk 0, offsets is an array of int32; give a C-contiguous NumPy array"):
        _core.TokenTable([[(np.zeros(2, np.int32), np.array([0, 2], np.int32))]])
