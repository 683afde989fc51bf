"""The queue: every item is worked on once, in batches of one kind and size, and a failing batch harms no other."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit.serve.batcher import Batcher, QueueFullError


def worked(items, most, *, failing=frozenset()):
    """Put items (kind, number) into a queue that is not started, then let it end; return its batches and failures."""
    batches, failures = [], []

    def work(batch):
        batches.append(list(batch))
        if failing & set(batch):
            raise RuntimeError("no")

    batcher = Batcher(
        work, kind=lambda item: item[0], fail=lambda item, error: failures.append(item), most=most, room=100
    )
    batcher.put(items)
    batcher.close()
    batcher.start()
    assert batcher.join(10.0)
    assert batcher.waiting == 0
    return batches, failures


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2), max_size=20), st.integers(1, 5), st.sets(st.integers(0, 19)))
def test_every_item_is_worked_on_once_in_batches_of_one_kind(kinds, most, bad):
    items = [(kind, number) for number, kind in enumerate(kinds)]
    failing = {item for item in items if item[1] in bad}
    batches, failures = worked(items, most, failing=failing)
    assert sorted(item for batch in batches for item in batch) == sorted(items)
    for batch in batches:
        assert len({kind for kind, _ in batch}) == 1
        assert len(batch) <= most
        assert batch == sorted(batch)
    # The oldest item is always in the next batch.
    left = list(items)
    for batch in batches:
        assert left[0] in batch
        left = [item for item in left if item not in batch]
    assert failures == [item for batch in batches if failing & set(batch) for item in batch]


def test_a_full_queue_takes_all_items_or_none() -> None:
    batcher = Batcher(lambda batch: None, kind=id, fail=lambda item, error: None, most=1, room=3)
    batcher.put([1, 2])
    with pytest.raises(QueueFullError):
        batcher.put([3, 4])
    assert batcher.waiting == 2
    batcher.put([3])
    assert batcher.discard(lambda item: item == 2) == [2]
    batcher.put([4])
    batcher.close()
    with pytest.raises(QueueFullError):
        batcher.put([])


def test_a_burst_becomes_one_batch_and_what_comes_meanwhile_the_next() -> None:
    begun, go, batches = threading.Event(), threading.Event(), []

    def work(batch):
        batches.append(list(batch))
        begun.set()
        assert go.wait(10)

    batcher = Batcher(work, kind=lambda item: 0, fail=lambda item, error: None, most=8, room=8, grace_s=0.5)
    batcher.start()
    for number in range(4):
        batcher.put([number])
    assert begun.wait(10)
    batcher.put([4])
    batcher.put([5])
    go.set()
    batcher.close()
    assert batcher.join(10.0)
    assert batches == [[0, 1, 2, 3], [4, 5]]
