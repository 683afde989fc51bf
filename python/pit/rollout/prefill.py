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
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32

from pit.data.packing import Layout, pack, padding_batch
from pit.data.template import prefix
from pit.model.axes import ROWS
from pit.model.decoder import Cache, Decoder
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.model.programs import Program, shape_of
from pit.model.sharding import each_shard
from pit.rollout.sizes import Sizes
from pit.types import Batch, Closings


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


def pack_prefixes(prefixes: Sequence[Sequence[Sequence[int]]], sizes: Sizes) -> list[list[Batch]]:
    """Return packed rows of each shard's prefixes: a list of batches, each with one batch per shard.

    `leaf` is where a prefix ends, `example_id` which of its shard's it is.
    """
    layout = Layout(
        closings=Closings.roles(0, 0, 0), pad=0, row_length=sizes.row_tokens, rows=sizes.rows, trees=sizes.requests
    )
    packed = [_packed(of_shard, layout) for of_shard in prefixes]
    most = max(map(len, packed))
    for batches in packed:
        if len(batches) < most:
            batches += [padding_batch(1, prefix(), layout)] * (most - len(batches))
    return [list(shards) for shards in zip(*packed, strict=True)]


def _packed(prefixes: Sequence[Sequence[int]], layout: Layout) -> list[Batch]:
    batches = pack([[tokens[:-1] for tokens in prefixes]], prefix(), layout)
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
    batches: Sequence[Sequence[Batch]],
    length: Int32[np.ndarray, "X G"],
    sizes: Sizes,
) -> Prefixes:
    """Read packed prefixes, batch by batch, by one compiled program.

    Args:
        graphdef: definition of the decoder.
        params: its weights.
        batches: batches of `pack_prefixes`.
        length: tokens of each prefix.
        sizes: static sizes.
    """
    first = np.zeros_like(length)
    stored, last = _empty(graphdef, params, sizes)
    for number, shards in enumerate(batches):
        begin = number * sizes.rows * sizes.row_tokens
        leaf, owner = np.zeros((*length.shape, 2), np.int32), np.zeros(length.shape, np.int32)
        for x, batch in enumerate(shards):
            present = batch.example_id >= 0
            rows, index = batch.leaf[present, 0].T
            owners = batch.example_id[present]
            first[x, owners] = begin + rows * sizes.row_tokens + index + 1 - length[x, owners]
            # Slots of the batch that no prefix fills write nowhere.
            owner[x] = np.where(present, batch.example_id, sizes.requests)
            leaf[x] = np.where(present[:, None], batch.leaf[:, 0], 0)
        rows_of = (np.stack([getattr(batch, name) for batch in shards]) for name in ROW_ARRAYS)
        stored, last = _read(graphdef, params, stored, last, (*rows_of, leaf, owner), np.int32(begin), sizes=sizes)
    return Prefixes(stored, last, first, length)


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
    place = NamedSharding(sharding.mesh, ROWS if sizes.shards > 1 else P())
    stored, last = jax.tree.map(lambda x: shape_of(x, place), empty)
    each = (sizes.shards, sizes.requests)
    rows = [jax.ShapeDtypeStruct((sizes.shards, sizes.rows, sizes.row_tokens), jnp.int32) for _ in ROW_ARRAYS]
    leaf, owner = jax.ShapeDtypeStruct((*each, 2), jnp.int32), jax.ShapeDtypeStruct(each, jnp.int32)
    begin = jax.ShapeDtypeStruct((), jnp.int32)
    call = (model.graphdef, model.params, stored, last, (*rows, leaf, owner), begin)
    return Program("prefill", _read, call, {"sizes": sizes}), Prefixes(stored, last, owner, owner)  # type: ignore[arg-type]


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
        return jax.lax.dynamic_update_slice_in_dim(kept, flat, begin, axis=1)

    written = tuple(Cache(write(old.k, new.k), write(old.v, new.v)) for old, new in zip(stored, caches, strict=True))
    return written, last.at[owner].set(hidden[leaf[:, 0], leaf[:, 1]], mode="drop")
