"""Examples of the strategies are within bounds, reach boundaries, are valid, and shrink to a few tokens."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from pit.config import CurriculumConfig, from_dict, to_dict
from pit.data.packing import Layout
from pit.data.template import gap, quality
from pit.testing import strategies
from pit.testing.paths import leaf_paths, live, packed_path
from pit.types import Closings, Preference

CLOSINGS = Closings.roles(1, 2, 3)
FEW = settings(max_examples=30)
LONG = settings(max_examples=2000, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
"""Settings of a search for the smallest example."""

FIRST = settings(LONG, phases=[Phase.generate])
"""Settings of a search for any example."""


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 511, 512])
def test_sizes_reach_every_boundary(size):
    assert find(strategies.sizes(512), lambda n: n == size, settings=FIRST) == size


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match=r"^longest = -1: must be at least 0"):
        strategies.sizes(-1)


@FEW
@given(tokens=strategies.token_sequences((4, 9), 129))
def test_tokens_within_bounds(tokens):
    assert len(tokens) <= 129
    assert set(tokens) <= set(range(4, 10))


def test_a_long_sequence_shrinks_to_one_repeated_token():
    tokens = find(strategies.token_sequences((4, 99), 512), lambda t: len(t) >= 128, settings=LONG)
    assert tokens == (4,) * 128


@FEW
@given(text=strategies.texts(["a real answer"], longest=50))
def test_texts_are_unicode_and_bounded(text):
    assert len(text) <= 50
    text.encode()


def test_seeds_appear_whole_and_cut():
    seeds = ["the answer of a real person"]
    assert find(strategies.texts(seeds), lambda text: text == seeds[0], settings=FIRST) == seeds[0]
    cut = find(
        strategies.texts(seeds), lambda text: text.startswith("the answer of") and text != seeds[0], settings=FIRST
    )
    assert cut.startswith("the answer of")


@FEW
@given(messages=strategies.conversations())
def test_a_user_has_the_last_word(messages):
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns == ["user", *["assistant", "user"] * (len(turns) // 2)]


@FEW
@given(row=strategies.preferences())
def test_preferences_have_two_answers(row):
    assert row.better != row.worse


def test_real_preferences_are_used_as_seeds():
    seeds = [Preference((), "better", "worse")]
    assert find(strategies.preferences(seeds), lambda row: row.better == "better", settings=FIRST).worse == "worse"


@given(config=strategies.curricula())
@FEW
def test_curricula_are_within_their_bounds(config):
    assert config.examples is None or 1 <= config.examples <= 64
    assert config == from_dict(CurriculumConfig, to_dict(config))


@pytest.mark.parametrize("name", ["uniform", "staged", "learnability", "gap_band"])
def test_every_curriculum_appears(name):
    assert find(strategies.curricula(), lambda c: c.strategy == name, settings=FIRST).strategy == name


@FEW
@given(data=st.data())
def test_packed_rows_hold_the_paths_of_their_forest(data):
    topology = data.draw(strategies.topologies())
    forest = data.draw(strategies.forests(topology, (4, 23), 6))
    leaves = max(topology.leaves, 1)
    layout = Layout(CLOSINGS, 0, row_length=24, rows=max(leaves, 4), trees=4)
    packed = {packed_path(batch, *place) for batch in forest.pack(layout) for place in live(batch)}
    expected = {p for i in range(forest.trees) for p in leaf_paths(topology, forest.columns, i, CLOSINGS)}
    assert expected <= packed
    assert strategies.Forest.from_json(json.loads(json.dumps(forest.to_json()))) == forest


@FEW
@given(batches=strategies.packed_rows(quality(), (4, 23), 6, Layout(CLOSINGS, 0, row_length=24, rows=4, trees=4)))
def test_packed_rows_hold_every_tree_once(batches):
    trees = np.concatenate([batch.example_id[batch.example_id >= 0] for batch in batches])
    assert sorted(trees) == list(range(len(trees)))


def test_a_failing_tree_shrinks_to_a_few_tokens():
    """The fault needs two trees and an answer of 5 tokens or more, so that much remains."""

    def wrong(forest):
        return forest.trees >= 2 and any(len(row) >= 5 for column in forest.columns for row in column)

    forest = find(strategies.forests(gap(), (4, 99), 128), wrong, settings=LONG)
    sizes = sorted(len(row) for column in forest.columns for row in column)
    assert sizes == [0, 0, 0, 0, 0, 5]
    assert {token for column in forest.columns for row in column for token in row} == {4}
