"""Batches in buffers that are used again, shared out to threads, and written while Python goes on."""

import os
import re
import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from core_cases import GAP, PAIR
from hypothesis import given
from hypothesis import strategies as st

from pit.data import _core, packing
from pit.data.errors import DataError
from pit.data.packing import (
    Layout,
    core_topology,
    default_threads,
    empty_batch,
    materialise,
    pack,
    rows_needed,
    token_table,
)
from pit.data.template import gap_scoring
from pit.types import Batch, Closings

LAYOUT = Layout(Closings.roles(3, 4, 5), 1, row_length=60, rows=2, trees=3)
FIELDS = [f.name for f in fields(Batch)]


def planned(examples=7, topology=GAP, layout=LAYOUT):
    """(plan, table) of some trees of 7 to 31 tokens."""
    rng = np.random.default_rng(4)
    columns = [[rng.integers(10, 99, rng.integers(0, 5)).tolist() for _ in range(examples)] for _ in range(3)]
    table = token_table(columns)
    sizes = {"row_length": layout.row_length, "rows_per_group": layout.rows, "trees_per_group": layout.trees}
    return _core.plan_trees(table.lengths(), core_topology(topology, LAYOUT.closings), **sizes), table


def assert_same(left, right):
    for name in FIELDS:
        assert np.array_equal(getattr(left, name), getattr(right, name)), name


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_a_batch_may_be_written_over_another(threads):
    plan, table = planned()
    assert plan.groups == 3
    out = empty_batch(2, GAP, LAYOUT)
    arrays = [getattr(out, name) for name in FIELDS]
    # The second batch ends with an empty group, the last has no other; what was there before shows through nowhere.
    for first in (0, 2, 0, 3):
        fresh = materialise(plan, first, 2, table, GAP, LAYOUT, threads=1)
        assert materialise(plan, first, 2, table, GAP, LAYOUT, out=out, threads=threads) is out
        assert_same(out, fresh)
    assert all(getattr(out, name) is array for name, array in zip(FIELDS, arrays, strict=True))


def test_a_leaf_names_a_row_of_the_batch():
    plan, table = planned()
    batch = materialise(plan, 0, 2, table, GAP, LAYOUT)
    rows = batch.leaf[:, :, 0][batch.leaf[:, :, 0] >= 0]
    assert set(rows // LAYOUT.rows) == {0, 1}
    closing = LAYOUT.closings.eos
    for row, index in batch.leaf.reshape(-1, 2):
        assert row < 0 or batch.token[row, index] == closing


@pytest.mark.parametrize(
    ("groups", "layout", "name"),
    [(3, LAYOUT, "token"), (1, LAYOUT, "token"), (2, replace(LAYOUT, trees=4), "leaf")],
)
def test_a_batch_of_other_sizes_is_refused(groups, layout, name):
    plan, table = planned()
    other, right = empty_batch(groups, GAP, layout), empty_batch(2, GAP, LAYOUT)
    found, needed = (getattr(batch, name).shape for batch in (other, right))
    message = f"out.{name} has shape {found}, must have {needed}"
    with pytest.raises(DataError, match=re.escape(message)):
        materialise(plan, 0, 2, table, GAP, LAYOUT, out=other)


def test_threads_are_taken_for_large_batches_only(monkeypatch):
    million = packing.TOKENS_PER_THREAD
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert [default_threads(n) for n in (0, million, 2 * million - 1, 2 * million, 9 * million)] == [1, 1, 1, 2, 3]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads(9 * million) == 1


def ticks_during(call):
    """Times, as shares of the call's duration, at which another Python thread ran meanwhile."""
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0)

    other = threading.Thread(target=tick)
    other.start()
    try:
        begin = time.perf_counter()
        call()
        end = time.perf_counter()
    finally:
        stop.set()
        other.join()
    return [(t - begin) / (end - begin) for t in ticks]


def test_python_runs_on_while_a_batch_is_planned_and_written():
    """The two calls hold the GIL for their arguments only: another thread runs in the middle half of each.

    Were it held throughout, no tick could lie there; a busy machine may starve the other thread, hence the attempts.
    """
    examples = 200_000
    layout = Layout(Closings.roles(3, 4, 5), 1, row_length=8, rows=4096, trees=4096)
    columns = [(np.zeros(0, np.int32), np.zeros(examples + 1, np.int64))]
    table = _core.TokenTable([columns] * 3)
    sizes = {"row_length": layout.row_length, "rows_per_group": layout.rows, "trees_per_group": layout.trees}
    lengths, topology = table.lengths(), core_topology(PAIR, LAYOUT.closings)
    plan = _core.plan_trees(lengths, topology, **sizes)
    out = empty_batch(plan.groups, PAIR, layout)
    calls = [
        lambda: _core.plan_trees(lengths, topology, **sizes),
        lambda: materialise(plan, 0, plan.groups, table, PAIR, layout, out=out, threads=1),
        lambda: materialise(plan, 0, plan.groups, table, PAIR, layout, out=out, threads=2),
    ]
    for call in calls:
        assert any(any(0.25 < t < 0.75 for t in ticks_during(call)) for _ in range(20))


@pytest.mark.parametrize("topology", [PAIR, GAP])
def test_rows_are_full(topology):
    """At least 98 % of all slots hold a token, and 90 % of any group's, at lengths spread like real preferences'."""
    rng = np.random.default_rng(6)
    lengths = np.minimum(rng.lognormal(np.log([109, 61, 56]), 0.9, (8000, 3)), 511).astype(np.int32)
    planner = _core.Planner(
        lengths,
        core_topology(topology, LAYOUT.closings),
        row_length=2048,
        rows_per_group=4,
        groups_per_step=1,
        trees_per_group=128,
        window=1024,
        seed=1,
        config_hash=0,
        data_hash=0,
        stages=[(0, [1, 0, 0, 0])],
    )
    filled = [int(planner.next_step().piece_length.sum()) / (4 * 2048) for _ in range(300)]
    assert np.mean(filled) >= 0.98
    assert min(filled) >= 0.9


@given(st.data())
def test_trees_within_their_windows_fit_in_the_rows_needed(data):
    outputs = data.draw(st.integers(1, 4))
    form = data.draw(st.sampled_from([{}, {"identity": True}, {"swapped": True}]))
    tree, _ = gap_scoring(outputs, **form)
    longest = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    path = longest[0] + 2 * longest[1] + 3
    layout = replace(LAYOUT, row_length=path + data.draw(st.integers(0, 20)))
    layout = replace(layout, rows=rows_needed(tree, layout, (longest[0], longest[1], longest[1])))
    assert layout.rows <= tree.leaves
    contents = [[0] * data.draw(st.integers(0, longest[column > 0])) for column in range(2 + outputs)]
    assert len(pack([[content] for content in contents], tree, layout)) == 1
    full = [[0] * longest[column > 0] for column in range(2 + outputs)]
    if layout.rows > 1:
        with pytest.raises(_core.CoreError, match=f"needs {layout.rows} rows"):
            pack([[content] for content in full], tree, replace(layout, rows=layout.rows - 1))
    with pytest.raises(_core.CoreError, match="more than row_length"):
        rows_needed(tree, replace(layout, row_length=path - 1), (longest[0], longest[1], longest[1]))
