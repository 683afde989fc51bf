"""The workloads: deterministic, well formed, and the shapes that they say they are."""

import numpy as np
import pytest

from pit_kernels.workloads import LAYOUTS, WORKLOADS, visible_until

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
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS) == 3 * len(LAYOUTS)
