"""The loader gives the planned batches, each example once an epoch, and continues from any step with the same ones."""

import json
from collections import Counter
from dataclasses import fields
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.config import PackingConfig
from pit.data import _core
from pit.data.loader import Loader, count_steps
from pit.data.packing import Layout, pack
from pit.data.store import build
from pit.data.synthetic import generate
from pit.data.template import RoleTemplate, gap, improver_sft
from pit.data.tokenizer import Tokenizer
from pit.types import Closings, Shards

ROW = 40
CONFIG = "config of this test"


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    tokenizer = Tokenizer.train_bpe(["describe this red lamp: price and size."], 330)
    store = build(generate(90, 0), tmp_path_factory.mktemp("store") / "s", RoleTemplate(tokenizer, (16, 12, 12)))
    assert len(store.fold("sft")) > 15
    return store.fold("sft")


def layout_of(packing):
    return Layout(closings=Closings.roles(1, 2, 3), pad=0, row_length=ROW, rows=packing.rows, trees=packing.trees)


def loader(fold, packing, *, topology=None, shards=1, seed=0, config_hash=CONFIG):
    tree = topology or improver_sft()
    return Loader(fold, tree, layout_of(packing), packing, shards=held(shards), seed=seed, config_hash=config_hash)


def held(shards):
    """Return shards, all of them on this process's devices where a number is given."""
    return Shards.all_local(shards) if isinstance(shards, int) else shards


def assert_same_step(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for field in fields(a.local):
            np.testing.assert_array_equal(getattr(a.local, field.name), getattr(b.local, field.name), field.name)


packings = st.builds(
    PackingConfig,
    row_length=st.just(ROW),
    rows=st.integers(4, 6),
    microbatches=st.integers(1, 3),
    window=st.integers(1, 40),
    trees=st.integers(1, 9),
)


@given(packing=packings, shards=st.integers(1, 2), seed=st.integers(0, 2**40), before=st.integers(0, 4), data=st.data())
def test_a_restored_loader_continues_with_the_same_batches(fold, packing, shards, seed, before, data):
    topology = data.draw(st.sampled_from([improver_sft(), gap()]))
    first = loader(fold, packing, topology=topology, shards=shards, seed=seed)
    for _ in range(before):
        next(first)
    state = json.loads(json.dumps(first.state()))
    expected = [next(first) for _ in range(3)]

    second = loader(fold, packing, topology=topology, shards=shards, seed=seed)
    # Planned steps are in flight in the loader that is restored, and must not come out of it.
    for _ in range(data.draw(st.integers(0, 2))):
        next(second)
    second.restore(state)
    for step in expected:
        assert_same_step(next(second), step)
    assert second.state() == first.state()


def examples_of(steps):
    return Counter(int(e) for batches in steps for batch in batches for e in batch.example_id if e >= 0)


@given(seed=st.integers(0, 2**40), trees=st.integers(1, 9))
def test_without_a_window_an_epoch_holds_every_example_exactly_once(fold, seed, trees):
    packing = PackingConfig(row_length=ROW, rows=4, window=1, trees=trees)
    order = []
    for batches in islice(loader(fold, packing, seed=seed), 2 * len(fold)):
        order += [int(e) for batch in batches for e in batch.example_id if e >= 0]
    assert len(order) >= 2 * len(fold), "every step places a tree"
    for epoch in (order[: len(fold)], order[len(fold) : 2 * len(fold)]):
        assert sorted(epoch) == list(range(len(fold)))
    assert order[: len(fold)] != order[len(fold) : 2 * len(fold)]


@given(packing=packings, seed=st.integers(0, 2**40))
def test_with_a_window_no_example_is_lost(fold, packing, seed):
    seen = examples_of(islice(loader(fold, packing, seed=seed), 12))
    placed = sum(seen.values())
    # The draws are whole epochs and a part of one; those not placed yet wait in the window.
    fits = []
    for drawn in range(placed, placed + packing.window + 1):
        least = drawn // len(fold)
        waiting = [least - seen[e] for e in range(len(fold))]
        extra = drawn - least * len(fold)
        missing = sum(w for w in waiting if w > 0)
        ahead = [-w for w in waiting if w < 0]
        fits.append(missing <= drawn - placed and all(a == 1 for a in ahead) and len(ahead) <= extra)
    assert any(fits)


def test_the_batches_are_those_of_the_rows(fold):
    """Each tree of a step holds the contents of its row and the closing tokens, by the packer of given trees."""
    packing = PackingConfig(row_length=ROW, rows=4, microbatches=2, trees=6)
    for batch in next(loader(fold, packing)):
        for e in batch.example_id[batch.example_id >= 0].tolist():
            one = pack([[row.tolist()] for row in fold.row(e)], improver_sft(), layout_of(packing))[0]
            live = one.token[0][one.visible_until[0] > np.arange(ROW)].tolist()
            rows = [row.tolist() for row in batch.local.token]
            assert any(live == row[i : i + len(live)] for row in rows for i in range(ROW))


def test_count_steps_covers_the_fold(fold):
    packing = PackingConfig(row_length=ROW, rows=4, window=1, trees=3)
    steps = count_steps(fold, improver_sft(), layout_of(packing), packing, shards=1, seed=5)
    seen = examples_of(islice(loader(fold, packing, seed=5), steps))
    assert set(seen) == set(range(len(fold)))
    assert len(examples_of(islice(loader(fold, packing, seed=5), steps - 1))) < len(fold)


def test_a_state_of_another_config_or_seed_is_refused(fold):
    packing = PackingConfig(row_length=ROW, rows=4)
    state = loader(fold, packing).state()
    with pytest.raises(_core.CoreError, match="config"):
        loader(fold, packing, config_hash="another").restore(state)
