"""The workloads: deterministic, well formed, and the shapes that they say they are."""

import numpy as np
import pytest

from pit_kernels.workloads import (
    HEAD_SHAPES,
    LAYOUTS,
    WORKLOADS,
    forest,
    gap_workload,
    pack_sequences,
    path_lengths,
    visible_until,
)

BY_LAYOUT = {workload.layout.name: workload for workload in WORKLOADS}


@pytest.mark.parametrize("name", BY_LAYOUT)
def test_rows_are_forests_and_repeat_with_their_seed(name):
    workload = BY_LAYOUT[name]
    rows = visible_until(workload, seed=3)
    np.testing.assert_array_equal(rows, visible_until(workload, seed=3))
    assert rows.shape == (workload.layout.batch, workload.layout.row_length)
    assert rows.dtype == np.int32
    for row in rows:
        open_until = []
        for t, until in enumerate(row):
            if until <= t:
                assert until == 0
                continue
            while open_until and open_until[-1] <= t:
                open_until.pop()
            # A subtree ends no later than the one it stands in.
            assert not open_until or until <= open_until[-1]
            open_until.append(until)
        assert row.max() <= row.size


def test_the_classic_row_is_three_padded_slots():
    row = visible_until(BY_LAYOUT["classic-1536"], seed=0)[0]
    expected = np.zeros(1536, np.int32)
    for start, length in ((0, 200), (512, 100), (1024, 100)):
        expected[start : start + length] = 1124
    np.testing.assert_array_equal(row, expected)


def test_a_rollout_tree_has_sixteen_samples_that_do_not_see_each_other():
    row = visible_until(BY_LAYOUT["rollout-4096"], seed=0)[0]
    tree_end = row[0]
    ends = sorted(set(row[:tree_end].tolist()))
    # The last sample ends where the prompt and the reference do.
    assert len(ends) == 16
    assert ends[-1] == tree_end


def test_causal_rows_are_one_segment():
    assert (visible_until(BY_LAYOUT["causal-4096"], seed=0) == 4096).all()


def test_every_model_has_every_layout():
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS) == len(HEAD_SHAPES) * len(LAYOUTS)


@pytest.mark.parametrize("name", BY_LAYOUT)
def test_paths_are_the_sequences_that_the_trees_stand_for(name):
    workload = BY_LAYOUT[name]
    rows = visible_until(workload, seed=1)
    lengths = path_lengths(workload, seed=1)
    leaves = sum(segment not in workload.layout.parents for segment in range(len(workload.layout.parents)))
    assert len(lengths) == leaves * sum(map(len, forest(workload, seed=1)))
    if workload.layout.slot is None:
        # A token is seen by itself and by all below it: paths hold what the ends of segments see.
        row = rows[0]
        alive = row > np.arange(row.size)
        seen = (row[None, :] > np.arange(row.size)[:, None]) & np.tri(row.size, dtype=bool) & alive[:, None]
        last = alive & ~np.append((row[1:] <= row[:-1]) & (row[1:] > np.arange(1, row.size)), False)
        assert set(lengths) >= {int(seen[t].sum()) for t in np.flatnonzero(last)}


def test_separate_sequences_are_packed_longest_first():
    packed = pack_sequences([100, 300, 200, 512], 512)
    assert packed.shape == (3, 512)
    assert (packed > np.arange(512)).sum() == 1112
    with pytest.raises(ValueError, match=r"^a sequence has 600 tokens; rows of 512 must hold the longest"):
        pack_sequences([600], 512)


def test_given_lengths_make_gap_trees():
    workload = gap_workload([(100, 50, 40), (200, 10, 20)], 512, HEAD_SHAPES[2])
    rows = visible_until(workload, seed=0)
    assert rows.shape == (2, 512)
    assert (rows > np.arange(512)).sum() == 100 + 3 * 50 + 3 * 40 + 200 + 3 * 10 + 3 * 20
    assert sorted(path_lengths(workload, 0)) == sorted([200, 190, 190, 180, 220, 230, 230, 240])
    with pytest.raises(ValueError, match=r"^a tree has 900 tokens; rows of 512 must hold the longest"):
        gap_workload([(300, 100, 100)], 512, HEAD_SHAPES[2])
