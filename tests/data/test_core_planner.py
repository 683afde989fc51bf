"""The curriculum and the planner of the C++ core: against their twins, invariants of packing, and resuming."""

import re
import threading
from collections import Counter

import core_twins as twins
import numpy as np
import pytest
from core_cases import GAP, PAIR, cases, core_topology
from hypothesis import given
from hypothesis import strategies as st

from pit.data import _core

WEIGHTS = st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4).filter(any)


@st.composite
def stage_lists(draw):
    starts = [0, *sorted(draw(st.sets(st.integers(1, 6), max_size=3)))]
    return [(start, draw(WEIGHTS)) for start in starts]


@st.composite
def planners(draw):
    """Return the arguments of a planner, and its twin."""
    case, stages = draw(cases()), draw(stage_lists())
    window, groups, seed = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(0, 2**64 - 1))
    more = {"groups_per_step": groups, "window": window, "seed": seed, "config_hash": 11, "data_hash": 22}
    arguments = (case.lengths, case.core), case.sizes | more | {"stages": stages}
    twin = twins.TwinPlanner(
        case.topology,
        case.lengths,
        **case.sizes,
        closings=case.closings,
        groups_per_step=groups,
        window_size=window,
        seed=seed,
        stages=stages,
    )
    return arguments, twin


def make(arguments, **changes):
    positional, named = arguments
    return _core.Planner(*positional, **(named | changes))


def simple(lengths=((3, 2, 2), (4, 1, 3)), topology=PAIR, **changes):
    named = {"row_length": 32, "rows_per_group": 2, "groups_per_step": 2, "trees_per_group": 4, "window": 3}
    named |= {"seed": 1, "config_hash": 2, "data_hash": 3, "stages": [(0, [0, 1, 1, 0])]}
    return _core.Planner(np.array(lengths, np.int32), core_topology(topology), **(named | changes))


def bits(mask):
    return frozenset(s for s in range(64) if int(mask) >> s & 1)


def as_twin(plan):
    """Return a core plan in the form of its twin."""
    columns = (plan.piece_tree, plan.piece_row, plan.piece_start, plan.piece_length)
    out = twins.TwinPlan(
        list(zip(plan.tree_example.tolist(), plan.tree_source.tolist(), plan.tree_group.tolist(), strict=True))
    )
    for tree, row, start, length, segments, owned in zip(
        *(c.tolist() for c in columns), plan.piece_segments, plan.piece_owned, strict=True
    ):
        group = out.trees[tree][2]
        out.pieces.append(twins.Placed(tree, group, row, start, length, bits(segments), bits(owned)))
    return out


@given(seed=st.integers(0, 2**64 - 1), examples=st.integers(1, 40), stages=stage_lists(), data=st.data())
def test_curriculum_agrees_with_its_twin(seed, examples, stages, data):
    curriculum = _core.StagedCurriculum(seed, examples, stages)
    k = 0
    for step in range(8):
        count = data.draw(st.integers(0, 15))
        ids, sources = curriculum.draw(step, count)
        expected = [twins.draw(seed, examples, stages, k + i, step) for i in range(count)]
        assert list(zip(ids.tolist(), sources.tolist(), strict=True)) == expected
        k += count
        assert curriculum.draws == k


@given(seed=st.integers(0, 2**64 - 1), examples=st.integers(2, 40))
def test_an_epoch_shows_every_example_once(seed, examples):
    curriculum = _core.StagedCurriculum(seed, examples, [(0, [1, 0, 0, 0])])
    for _ in range(3):
        ids, _ = curriculum.draw(0, examples)
        assert sorted(ids) == list(range(examples))


def test_epochs_differ():
    curriculum = _core.StagedCurriculum(3, 100, [(0, [1, 0, 0, 0])])
    first, second = (curriculum.draw(0, 100)[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_sources_follow_the_stage():
    curriculum = _core.StagedCurriculum(1, 10, [(0, [0, 1, 3, 0]), (5, [0, 0, 0, 2])])
    early = np.bincount(curriculum.draw(4, 40000)[1], minlength=4)
    assert early[0] == early[3] == 0
    assert abs(early[2] - 30000) < 4 * np.sqrt(40000 * 0.25 * 0.75)
    assert set(curriculum.draw(5, 100)[1]) == {3}


@given(seed=st.integers(0, 2**64 - 1), before=st.integers(0, 50), flip=st.integers(0), bit=st.integers(0, 7))
def test_curriculum_resumes_and_refuses_damage(seed, before, flip, bit):
    stages = [(0, [0, 2, 1, 0])]
    curriculum, other = (_core.StagedCurriculum(seed, 7, stages) for _ in range(2))
    curriculum.draw(0, before)
    state = curriculum.state()
    other.restore(state)
    for left, right in zip(curriculum.draw(0, 20), other.draw(0, 20), strict=True):
        assert np.array_equal(left, right)
    damaged = bytearray(state)
    damaged[flip % len(state)] ^= 1 << bit
    with pytest.raises(_core.CoreError, match=r"curriculum: the (state is corrupted|.* do not start with PITDRAW1)"):
        other.restore(bytes(damaged))


def test_curriculum_refuses_a_state_of_other_settings():
    state = _core.StagedCurriculum(1, 7, [(0, [1, 0, 0, 0])]).state()
    with pytest.raises(_core.CoreError, match=r"written with settings \(seed, number of examples, stages\) 0x"):
        _core.StagedCurriculum(1, 8, [(0, [1, 0, 0, 0])]).restore(state)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "the first stage must start at step 0"),
        ([(1, [1, 0, 0, 0])], "the first stage must start at step 0"),
        ([(0, [1, 0, 0, 0]), (0, [1, 0, 0, 0])], "stage 1 starts at step 0, not after the stage before it (step 0)"),
        ([(0, [0, 0, 0, 0])], "stage 0 has only zero weights, so no source can be drawn"),
    ],
)
def test_curriculum_refuses_bad_stages(stages, message):
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        _core.StagedCurriculum(0, 5, stages)


def test_curriculum_refuses_bad_numbers():
    with pytest.raises(_core.CoreError, match=re.escape("curriculum: examples=0 is outside [1, ")):
        _core.StagedCurriculum(0, 0, [(0, [1, 0, 0, 0])])
    curriculum = _core.StagedCurriculum(0, 5, [(0, [1, 0, 0, 0])])
    with pytest.raises(_core.CoreError, match=re.escape("curriculum: step=-1 is outside [0, ")):
        curriculum.draw(-1, 1)
    with pytest.raises(_core.CoreError, match=re.escape("curriculum: count=-1 is outside [0, ")):
        curriculum.draw(0, -1)


@given(planners())
def test_planner_agrees_with_its_twin(both):
    arguments, twin = both
    planner = make(arguments)
    for step in range(4):
        assert planner.step == step
        plan = planner.next_step()
        assert (plan.step, plan.groups) == (step, arguments[1]["groups_per_step"])
        assert as_twin(plan) == twin.next_step()
        assert planner.draws == twin.draws


@given(cases(min_examples=0))
def test_plan_trees_agrees_with_its_twin(case):
    plan = _core.plan_trees(case.lengths, case.core, **case.sizes)
    packer = twins.Packer(case.topology, case.lengths, **case.sizes, closings=case.closings)
    packer.window = [(i, 0) for i in range(len(case.lengths))]
    twin = twins.TwinPlan()
    groups = 0
    while packer.window:
        packer.fill_group(groups, twin)
        groups += 1
    assert as_twin(plan) == twin
    assert plan.groups == groups
    assert sorted(plan.tree_example) == list(range(len(case.lengths)))


@given(planners())
def test_packing_conserves_tokens(both):
    """Every tree is whole and in one group, owns each segment once, and no two pieces overlap or leave their row."""
    arguments, twin = both
    plan = make(arguments).next_step()
    placed = as_twin(plan)
    for index, (example, _, group) in enumerate(placed.trees):
        pieces = [p for p in placed.pieces if p.tree == index]
        assert {p.group for p in pieces} == {group}
        owned = Counter(s for p in pieces for s in p.owned)
        assert owned == Counter(range(len(twin.topology.segments)))
        for piece in pieces:
            assert piece.owned <= piece.segments
            assert all(set(twins.path(twin.topology, s)) <= piece.segments for s in piece.segments)
            assert piece.length == sum(twin.segments(example)[s] for s in piece.segments)
    rows = {}
    for piece in placed.pieces:
        rows.setdefault((piece.group, piece.row), []).append((piece.start, piece.start + piece.length))
    for (_, row), spans in rows.items():
        assert 0 <= row < plan.rows_per_group
        assert sorted(spans) == spans
        assert [0, *(end for _, end in spans)][:-1] == [start for start, _ in spans]
        assert spans[-1][1] <= plan.row_length
    assert max(Counter(group for _, _, group in placed.trees).values()) <= plan.trees_per_group


@given(planners())
def test_every_draw_is_placed_once_and_none_starves(both):
    arguments, twin = both
    planner, window = make(arguments), arguments[1]["window"]
    groups = arguments[1]["groups_per_step"]
    steps = -(-window // groups)
    placed, drawn_first = [], 0
    for step in range(steps + 1):
        placed += planner.next_step().tree_example.tolist()
        drawn_first = planner.draws if step == 0 else drawn_first
    stages, seed, n = arguments[1]["stages"], arguments[1]["seed"], len(twin.lengths)
    # The examples do not depend on the step of the draw, the sources do; the window holds what is drawn, not placed.
    drawn = Counter(twins.draw(seed, n, stages, k, 0)[0] for k in range(planner.draws))
    assert Counter(placed) <= drawn
    assert planner.draws - len(placed) <= window
    # All that was drawn in the first step has been placed `window` groups later.
    first = Counter(twins.draw(seed, n, stages, k, 0)[0] for k in range(drawn_first))
    assert first <= Counter(placed)


@given(both=planners(), before=st.integers(0, 4))
def test_a_restored_planner_never_stopped(both, before):
    arguments, _ = both
    straight, resumed = make(arguments), make(arguments)
    for _ in range(before):
        straight.next_step()
    resumed.next_step()  # restoring must discard this
    resumed.restore(straight.state())
    assert (resumed.step, resumed.draws) == (straight.step, straight.draws)
    for _ in range(3):
        assert resumed.state() == straight.state()
        assert as_twin(resumed.next_step()) == as_twin(straight.next_step())


@given(both=planners(), before=st.integers(0, 3), place=st.integers(0), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_state_is_refused(both, before, place, flip):
    arguments, _ = both
    planner = make(arguments)
    for _ in range(before):
        planner.next_step()
    state = planner.state()
    damaged = bytearray(state)
    damaged[place % len(state)] ^= flip
    with pytest.raises(_core.CoreError, match=r"planner: the (state is corrupted|.* do not start with PITPLAN1)"):
        planner.restore(bytes(damaged))
    assert planner.state() == state


def test_every_single_bit_flip_and_cut_is_refused():
    planner = simple()
    planner.next_step()
    state = planner.state()
    for place in range(len(state) * 8):
        damaged = bytearray(state)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(_core.CoreError, match="planner: the"):
            planner.restore(bytes(damaged))
    for size in range(len(state)):
        with pytest.raises(_core.CoreError, match="planner: the"):
            planner.restore(state[:size])
    with pytest.raises(_core.CoreError, match="corrupted"):
        planner.restore(state + b"\0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config_hash": 9},
            "written with config_hash 0x0000000000000009, this run has 0x0000000000000002; resume with",
        ),
        ({"data_hash": 9}, "written with data_hash 0x0000000000000009, this run has 0x0000000000000003; resume with"),
        ({"seed": 9}, "written with settings (seed, stages, topology, sizes, window) 0x"),
        ({"window": 9}, "written with settings (seed, stages, topology, sizes, window) 0x"),
        ({"topology": GAP}, "written with settings (seed, stages, topology, sizes, window) 0x"),
        ({"stages": [(0, [0, 1, 2, 0])]}, "written with settings (seed, stages, topology, sizes, window) 0x"),
    ],
)
def test_a_state_of_another_run_is_refused(changes, message):
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        simple().restore(simple(**changes).state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_length": 0}, "row_length=0 is outside [1, 1073741824]"),
        ({"rows_per_group": 0}, "rows_per_group=0 is outside [1, 16777216]"),
        ({"trees_per_group": 0}, "trees_per_group=0 is outside [1, 16777216]"),
        ({"groups_per_step": 0}, "groups_per_step=0 is outside [1, 16777216]"),
        ({"window": 0}, "window=0 is outside [1, 16777216]"),
        ({"lengths": [[1, 2]]}, "lengths has 2 columns, but the topology names column 2"),
        ({"lengths": [[1, -2, 0]]}, "example 0: column 1 has length -2"),
        ({"lengths": np.zeros((0, 3))}, "curriculum: examples=0 is outside [1, "),
        (
            {"lengths": [[0, 0, 0], [16, 15, 0]]},
            "example 1: the path from the root to segment 1 has 33 tokens (closing tokens included), more than "
            "row_length=32",
        ),
        (
            {"lengths": [[16, 14, 14]], "rows_per_group": 1},
            "example 0: its tree of 47 tokens needs 2 rows, more than rows_per_group=1",
        ),
    ],
)
def test_planner_refuses(changes, message):
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        simple(**changes)


def test_boundary_lengths_are_taken():
    assert simple(lengths=[[15, 15, 15]]).next_step().piece_length.tolist() == [32, 32] * 2
    largest = np.full((1, 3), 2**31 - 1, np.int32)
    with pytest.raises(_core.CoreError, match="segment 1 has 4294967296 tokens"):
        simple(lengths=largest)


@pytest.mark.parametrize(
    ("parents", "columns", "closings", "leaves", "message"),
    [
        ([], [], [], [], "0 segments, but a tree has 1 to 64"),
        ([-1] + [0] * 64, [0] * 65, [[1]] * 65, [-1] * 65, "65 segments, but a tree has 1 to 64"),
        ([0], [0], [[1]], [-1], "segment 0 has parent 0, but the first segment is the root"),
        ([-1, 0, 0, 1], [0] * 4, [[1]] * 4, [-1] * 4, "segment 3 has parent 1, but segments are written depth-first"),
        ([-1, -1], [0] * 2, [[1]] * 2, [-1] * 2, "segment 1 has parent -1, but segments are written depth-first"),
        ([-1], [-1], [[1]], [-1], "segment 0 has column -1"),
        ([-1], [0], [[]], [-1], "segment 0 has no closing token; give each segment at least one"),
        ([-1], [0], [[1]], [-2], "segment 0 has leaf slot -2"),
        ([-1, 0], [0] * 2, [[1]] * 2, [0, 0], "segment 1 has leaf slot 0, but the 2 slots must be 0..1, each once"),
        ([-1], [0], [[1]], [1], "segment 0 has leaf slot 1, but the 1 slots must be 0..0, each once"),
        ([-1], [0, 0], [[1]], [-1], "must have one entry per segment, got 1, 2, 1, 1 and 1"),
    ],
)
def test_topology_refuses(parents, columns, closings, leaves, message):
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        _core.Topology(parents, columns, closings, [False] * len(parents), leaves)


def test_sixty_four_segments_are_taken():
    star = _core.Topology([-1] + [0] * 63, [0] * 64, [[1]] * 64, [False] * 64, [-1] * 64)
    plan = _core.plan_trees(np.zeros((1, 1), np.int32), star, row_length=64, rows_per_group=1, trees_per_group=1)
    assert plan.piece_segments.tolist() == [2**64 - 1]
    assert plan.piece_length.tolist() == [64]


def test_plan_arrays_are_read_only_and_outlive_the_plan():
    example = simple().next_step().tree_example
    copy = example.copy()
    with pytest.raises(ValueError, match="read-only"):
        example[0] = 5
    assert np.array_equal(example, copy)


def test_threads_may_share_a_planner():
    planner, reference = simple(), simple()
    plans = []
    threads = [threading.Thread(target=lambda: plans.extend(planner.next_step() for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plans.sort(key=lambda plan: plan.step)
    assert [as_twin(plan) for plan in plans] == [as_twin(reference.next_step()) for _ in range(200)]
