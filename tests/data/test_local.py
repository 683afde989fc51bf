"""Parts of batches that several processes write are the whole batch, and every process knows the trees of all."""

from dataclasses import fields

import jax
import numpy as np
import pytest
from core_cases import GAP
from hypothesis import given
from hypothesis import strategies as st
from store_cases import random_batch, write_store

from pit.config import MeshConfig, PackingConfig
from pit.data.loader import Loader
from pit.data.local import pack_local
from pit.data.packing import Layout, groups_of, pack
from pit.data.store import Store
from pit.data.template import gap, rollout
from pit.model.global_arrays import put_local
from pit.model.sharding import make_mesh, row_sharding, shards_of
from pit.rollout.prefill import pack_prefixes
from pit.rollout.sizes import Sizes
from pit.types import Batch, Closings, LocalBatch, Shards

LAYOUT = Layout(Closings.roles(3, 4, 5), 1, row_length=60, rows=2, trees=3)
FIELDS = [field.name for field in fields(Batch)]

owners = st.lists(st.integers(0, 3), min_size=1, max_size=6)
"""Process of each shard; some may have none."""


def processes_of(owner):
    """Return the shards as each process that has one sees them."""
    return [Shards(len(owner), tuple(np.flatnonzero(np.array(owner) == k).tolist())) for k in sorted(set(owner))]


def put_together(parts):
    """Return the whole batch from the parts of all processes."""
    groups = {
        shard: groups_of(part.local, place, place + 1, LAYOUT)
        for part in parts
        for place, shard in enumerate(part.shards.local)
    }
    ordered = [groups[shard] for shard in range(parts[0].shards.count)]
    return Batch(**{name: np.concatenate([getattr(group, name) for group in ordered]) for name in FIELDS})


def require_same(parts, whole):
    made = put_together(parts)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name), name)
    alive = whole.visible_until > np.arange(whole.token.shape[1])
    for part in parts:
        np.testing.assert_array_equal(part.example_id, whole.example_id)
        assert (part.tokens, part.slots) == (alive.sum(), whole.token.size)


def columns_of(trees, seed, count):
    rng = np.random.default_rng(seed)
    return [[rng.integers(10, 99, rng.integers(0, 9)).tolist() for _ in range(trees)] for _ in range(count)]


@given(owner=owners, trees=st.integers(0, 20), seed=st.integers(0, 2**20), split=st.booleans())
def test_the_parts_of_all_processes_are_the_batch(owner, trees, seed, split):
    topology = rollout(4, with_reference=True) if split else GAP
    columns = columns_of(trees, seed, 6 if split else 3)
    whole = pack(columns, topology, LAYOUT, shards=len(owner))
    parts = [pack_local(columns, topology, LAYOUT, shards) for shards in processes_of(owner)]
    assert {len(batches) for batches in parts} == {len(whole)}
    for number, batch in enumerate(whole):
        require_same([batches[number] for batches in parts], batch)


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    return Store.open(write_store(tmp_path_factory.mktemp("store") / "s", [[random_batch(17, 5, 0)]])).fold("sft")


@given(owner=owners, microbatches=st.integers(1, 3), seed=st.integers(0, 2**20))
def test_the_steps_of_all_processes_loaders_are_one_loaders(fold, owner, microbatches, seed):
    packing = PackingConfig(row_length=60, rows=2, microbatches=microbatches, window=5, trees=3)

    def steps(shards):
        with Loader(fold, gap(), LAYOUT, packing, shards=shards, seed=seed, config_hash="") as loader:
            return [next(loader) for _ in range(3)]

    alone = steps(Shards.all_local(len(owner)))
    together = [steps(shards) for shards in processes_of(owner)]
    for number, step in enumerate(alone):
        for microbatch, batch in enumerate(step):
            require_same([of[number][microbatch] for of in together], batch.local)


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_a_part_lies_on_the_mesh_where_the_whole_batch_would(axis):
    mesh = make_mesh(MeshConfig(**{axis: 2}))
    shards = shards_of(mesh)
    assert shards == Shards.all_local(1 if axis == "tensor" else 2)
    values = np.arange(4 * 3, dtype=np.int32).reshape(4, 3)
    laid = put_local(values, shards, row_sharding(mesh))
    like = jax.device_put(values, row_sharding(mesh))
    assert laid.sharding.is_equivalent_to(like.sharding, 2)
    for part, expected in zip(laid.addressable_shards, like.addressable_shards, strict=True):
        np.testing.assert_array_equal(part.data, expected.data)


def test_rows_of_later_shards_count_from_the_first_row_of_the_batch():
    (part,) = pack_local(columns_of(4, 0, 3), GAP, LAYOUT, Shards(2, (1,)))
    rows = part.local.leaf[..., 0]
    assert set(rows[rows >= 0].tolist()) <= {2, 3}
    assert isinstance(part, LocalBatch)
    assert (rows >= 0).any()


@given(owner=owners, count=st.integers(1, 9), seed=st.integers(0, 2**20))
def test_processes_write_the_prefixes_of_their_shards_where_all_expect_them(owner, count, seed):
    rng = np.random.default_rng(seed)
    shards = len(owner)
    prefixes = [[rng.integers(1, 99, rng.integers(1, 40)).tolist() for _ in range(count)] for _ in range(shards)]
    sizes = Sizes(shards, count, 1, 4, 4, 64, 8, row_tokens=64, rows=2, batches=8)
    alone = pack_prefixes(prefixes, sizes, Shards.all_local(shards))
    for held in processes_of(owner):
        packed = pack_prefixes(prefixes, sizes, held)
        np.testing.assert_array_equal(packed.first, alone.first)
        assert len(packed.batches) == len(alone.batches)
        for place, shard in enumerate(held.local):
            stored = np.concatenate([batches[place].token.reshape(-1) for batches in packed.batches])
            for number, tokens in enumerate(prefixes[shard]):
                begin = packed.first[shard, number]
                assert stored[begin : begin + len(tokens)].tolist() == tokens
