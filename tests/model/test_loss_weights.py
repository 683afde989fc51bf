"""Loss weights: every token of a segment with loss, its closing token included, carries one, however trees split."""

from collections import Counter

import numpy as np
import path_twins as twins
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.packing import pack
from pit.data.template import gap, improver_sft, policy_sft, quality, rollout
from pit.types import Segment, SegmentKind, Topology

X, REF, Y = twins.ROLES

ROOT_WITH_LOSS = Topology(
    "root_with_loss",
    (Segment(-1, 0, SegmentKind.INPUT, loss=True), Segment(0, 1, SegmentKind.OUTPUT, loss=True, leaf=0)),
)


def weighted_paths(batch):
    """Count the tokens with weight by the path that ends in them; a weight is 0 or 1."""
    assert set(np.unique(batch.loss_weight)) <= {0.0, 1.0}
    places = np.argwhere(batch.loss_weight > 0).tolist()
    return Counter(twins.packed_path(batch, row, index) for row, index in places)


@given(data=st.data())
def test_weights_previous_and_positions_follow_the_paths(data):
    topology = data.draw(st.sampled_from([*twins.TOPOLOGIES, ROOT_WITH_LOSS]))
    columns = data.draw(twins.forests(topology))
    layout = data.draw(st.sampled_from([twins.WHOLE, twins.SPLIT]))
    batches = pack(columns, topology, layout)
    assert sum((weighted_paths(batch) for batch in batches), Counter()) == twins.loss_paths(topology, columns)
    for batch in batches:
        for row, index in twins.live(batch):
            assert batch.position[row, index] == len(twins.packed_path(batch, row, index)) - 1
            before = batch.previous[row, index]
            assert before <= index < batch.visible_until[row, before], "a token sees the one before it on its path"


@pytest.mark.parametrize(
    ("topology", "columns", "expected"),
    [
        (policy_sft(), [[[4, 5]], [[6, 7]], [[8]]], [6, 7, Y]),
        (improver_sft(), [[[4, 5]], [[6, 7]], [[8]]], [6, 7, Y]),
        (policy_sft(), [[[4]], [[]], [[8]]], [Y]),
        (rollout(2, with_reference=True), [[[4]], [[5]], [[6, 7]], [[8]]], [6, 7, Y, 8, Y]),
        (rollout(2, with_reference=False), [[[4]], [[6, 7]], [[8]]], [6, 7, Y, 8, Y]),
        (quality(), [[[4]], [[5]], [[6]]], []),
        (gap(), [[[4]], [[5]], [[6]]], []),
        (ROOT_WITH_LOSS, [[[4, 5]], [[6]]], [5, X, 6, Y]),
    ],
    ids=lambda value: value.name if isinstance(value, Topology) else "",
)
def test_tokens_with_weight_come_in_the_expected_order(topology, columns, expected):
    (batch,) = pack(columns, topology, twins.WHOLE)
    assert batch.token[batch.loss_weight > 0].tolist() == expected
