"""Prefill: prefixes are packed into rows and read once; their keys and values are stored for the engine.

Every shard of the rows (X of them, the leading axis of all arrays) reads its own prefixes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int32

from pit.data import _core
from pit.data.packing import Layout, materialise, plan_trees, token_table
from pit.data.template import prefix
from pit.model.bits import written
from pit.model.decoder import Cache, Decoder
from pit.model.global_arrays import put_local
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.model.programs import Program, shape_of
from pit.model.sharding import each_shard, mesh_of, row_sharding
from pit.rollout.sizes import Sizes
from pit.types import Batch, Closings, Shards


class Prefixes(NamedTuple):
    """All prefixes of a call after prefill.

    stored: keys and values of every layer, of all packed rows one after the other.
    last: hidden state of the last token of each prefix, before the final norm.
    first: place of the first token of each prefix in the store.
    length: tokens of each prefix; 0 for those that fill the call up.
    """

    stored: tuple[Cache, ...]
    last: Float[Array, "*X G D"]
    first: Int32[Array | np.ndarray, "*X G"]
    length: Int32[Array | np.ndarray, "*X G"]


class Packed(NamedTuple):
    """Packed prefixes of a call.

    batches: rows of the local shards, a list of batches with one batch per local shard; `leaf` is where a prefix ends,
        `example_id` which of its shard's it is.
    first: place of the first token of each prefix in its shard's store, of all shards.
    """

    batches: list[list[Batch]]
    first: Int32[np.ndarray, "X G"]


def pack_prefixes(prefixes: Sequence[Sequence[Sequence[int]]], sizes: Sizes, shards: Shards) -> Packed:
    """Plan the rows of the prefixes of all shards, and write those of the local ones.

    Args:
        prefixes: token ids of the prefixes of every shard.
        sizes: static sizes.
        shards: all shards, and which of them this process has.
    """
    layout = Layout(
        closings=Closings.roles(0, 0, 0), pad=0, row_length=sizes.row_tokens, rows=sizes.rows, trees=sizes.requests
    )
    plans, first = [], np.zeros((shards.count, sizes.requests), np.int32)
    for x, of_shard in enumerate(prefixes):
        lengths = np.array([len(tokens) - 1 for tokens in of_shard], np.int32)
        plan = plan_trees(lengths[:, None], prefix(), layout)
        row = plan.tree_group[plan.piece_tree] * sizes.rows + plan.piece_row
        # A prefix is one segment, and so one piece.
        first[x, plan.tree_example[plan.piece_tree]] = row * sizes.row_tokens + plan.piece_start
        plans.append(plan)
    most = max(plan.groups for plan in plans)
    packed = [_packed(prefixes[x], plans[x], most, layout) for x in shards.local]
    return Packed([list(batches) for batches in zip(*packed, strict=True)], first)


def _packed(prefixes: Sequence[Sequence[int]], plan: _core.Plan, groups: int, layout: Layout) -> list[Batch]:
    """Return the batches of one shard's prefixes, a group each; those after its last one are padding."""
    table = token_table([[tokens[:-1] for tokens in prefixes]])
    batches = [materialise(plan, group, 1, table, prefix(), layout) for group in range(groups)]
    last = np.array([tokens[-1] for tokens in prefixes], np.int32)
    for batch in batches:
        present = batch.example_id >= 0
        rows, index = batch.leaf[present, 0].T
        # Prefixes end in different tokens, whereas the packer closes every segment of a kind alike.
        batch.token[rows, index] = last[batch.example_id[present]]
    return batches


def prefill(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    packed: Packed,
    length: Int32[np.ndarray, "X G"],
    sizes: Sizes,
    shards: Shards,
) -> Prefixes:
    """Read packed prefixes, batch by batch, by one compiled program.

    Args:
        graphdef: definition of the decoder.
        params: its weights.
        packed: the packed prefixes.
        length: tokens of each prefix of every shard.
        sizes: static sizes.
        shards: all shards, and which of them this process has.
    """
    mesh = mesh_of(params)

    def placed(values: np.ndarray) -> Array | np.ndarray:
        """Return values of the local shards as an array of all shards."""
        return values if mesh is None else put_local(values, shards, row_sharding(mesh))

    each = (len(shards.local), sizes.requests)
    stored, last = _empty(graphdef, params, sizes)
    for number, of_shards in enumerate(packed.batches):
        begin = number * sizes.rows * sizes.row_tokens
        leaf, owner = np.zeros((*each, 2), np.int32), np.zeros(each, np.int32)
        for x, batch in enumerate(of_shards):
            present = batch.example_id >= 0
            # Slots of the batch that no prefix fills write nowhere.
            owner[x] = np.where(present, batch.example_id, sizes.requests)
            leaf[x] = np.where(present[:, None], batch.leaf[:, 0], 0)
        rows_of = [np.stack([getattr(batch, name) for batch in of_shards]) for name in ROW_ARRAYS]
        read = tuple(map(placed, (*rows_of, leaf, owner)))
        stored, last = _read(graphdef, params, stored, last, read, np.int32(begin), sizes=sizes)
    return Prefixes(stored, last, packed.first, length)


def prefill_program(model: Model[Decoder], sizes: Sizes) -> tuple[Program, Prefixes]:
    """Return the program that reads a batch of prefixes, and the shapes of all prefixes of a call.

    Args:
        model: the decoder, whose weights are shapes, gathered over fsdp.
        sizes: static sizes.
    """
    sharding = next(iter(model.params.values())).sharding
    assert isinstance(sharding, NamedSharding)
    with model.on_mesh():
        empty = jax.eval_shape(lambda params: _empty(model.graphdef, params, sizes), model.params)
    place = row_sharding(sharding.mesh)
    stored, last = jax.tree.map(lambda x: shape_of(x, place), empty)
    each = (sizes.shards, sizes.requests)
    packed = (sizes.shards, sizes.rows, sizes.row_tokens)
    *rows, leaf, owner = (
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)
        for shape in (*[packed] * len(ROW_ARRAYS), (*each, 2), each)
    )
    begin = jax.ShapeDtypeStruct((), jnp.int32)
    call = (model.graphdef, model.params, stored, last, (*rows, leaf, owner), begin)
    length = jax.ShapeDtypeStruct(each, jnp.int32)
    return Program("prefill", _read, call, {"sizes": sizes}), Prefixes(stored, last, length, length)  # type: ignore[arg-type]


ROW_ARRAYS = ("token", "position", "visible_until")
"""Arrays of a batch that the model reads."""


@partial(jax.jit, static_argnames=("graphdef", "sizes"))
def _empty(graphdef: nnx.GraphDef[Decoder], params: Params, sizes: Sizes) -> tuple[tuple[Cache, ...], Array]:
    def empty(params: Params) -> tuple[tuple[Cache, ...], Array]:
        model = merge(graphdef, params)
        config = model.config
        last = jnp.zeros((sizes.requests, config.width), jnp.dtype(config.compute_dtype))
        return model.empty_caches(config.kv_heads, sizes.stored_tokens), last

    made: tuple[tuple[Cache, ...], Array] = each_shard(empty, sizes.shards)(params)
    return made


# Seven arguments: the model, the stores that are written, a batch and its place.
@partial(jax.jit, static_argnames=("graphdef", "sizes"), donate_argnames=("stored", "last"))
def _read(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    stored: tuple[Cache, ...],
    last: Float[Array, "X G D"],
    batch: tuple[Array, ...],
    begin: Int32[Array, ""],
    *,
    sizes: Sizes,
) -> tuple[tuple[Cache, ...], Array]:
    def read(whole: tuple[Params, Array], *parts: Any) -> tuple[tuple[Cache, ...], Array]:
        return _read_shard(graphdef, *whole, *parts)

    result: tuple[tuple[Cache, ...], Array] = each_shard(read, sizes.shards)((params, begin), stored, last, *batch)
    return result


# Ten arguments: the model, a place, the stores that are written, and a batch.
def _read_shard(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    begin: Int32[Array, ""],
    stored: tuple[Cache, ...],
    last: Float[Array, "G D"],
    token: Int32[Array, "R T"],
    position: Int32[Array, "R T"],
    visible_until: Int32[Array, "R T"],
    leaf: Int32[Array, "L 2"],
    owner: Int32[Array, " L"],
) -> tuple[tuple[Cache, ...], Array]:
    hidden, caches = merge(graphdef, params).prefill(token, position, visible_until)

    def write(kept: Float[Array, "K A H"], new: Float[Array, "R T K H"]) -> Array:
        flat = new.reshape(-1, *new.shape[2:]).swapaxes(0, 1)
        return written(kept, flat, begin, axis=1)

    filled = tuple(Cache(write(old.k, new.k), write(old.v, new.v)) for old, new in zip(stored, caches, strict=True))
    return filled, last.at[owner].set(hidden[leaf[:, 0], leaf[:, 1]], mode="drop")
