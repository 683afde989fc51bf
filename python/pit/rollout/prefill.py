"""Prefixes, read once: packed into rows, prefilled, their keys and values stored where the engine takes them from."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from pit.data.packing import Layout, pack_lists
from pit.data.template import prefix
from pit.model.decoder import Cache, Decoder
from pit.model.params import Params, merge
from pit.rollout.sizes import Sizes
from pit.types import Batch


class Prefixes(NamedTuple):
    """All prefixes of a call, as read by the model.

    stored: keys and values of every layer, of all packed rows one after the other.
    last: hidden state of the last token of each prefix, before the final norm.
    first: place of the first token of each prefix in the store.
    length: tokens of each prefix; 0 for those that fill the call up.
    """

    stored: tuple[Cache, ...]
    last: Float[Array, "G D"]
    first: Int32[Array, " G"]
    length: Int32[Array, " G"]


def pack_prefixes(prefixes: Sequence[Sequence[int]], sizes: Sizes) -> list[Batch]:
    """Packed rows of prefixes; `leaf` is where each ends, `example_id` which it is."""
    layout = Layout(closings=(0, 0, 0), pad=0, row_length=sizes.row_tokens, rows=sizes.rows, trees=sizes.requests)
    batches = pack_lists([[each[:-1] for each in prefixes]], prefix(), layout)
    last = np.array([each[-1] for each in prefixes], np.int32)
    for batch in batches:
        present = batch.example_id >= 0
        rows, index = batch.leaf[present, 0].T
        # A prefix ends in a role token of its own, where the template closes every segment of a kind alike.
        batch.token[rows, index] = last[batch.example_id[present]]
    return batches


def prefill(
    graphdef: nnx.GraphDef[Decoder], params: Params, batches: Sequence[Batch], lengths: Sequence[int], sizes: Sizes
) -> Prefixes:
    """Read packed prefixes, batch by batch, by one compiled program."""
    length = np.zeros(sizes.requests, np.int32)
    length[: len(lengths)] = lengths
    first = np.zeros(sizes.requests, np.int32)
    stored, last = _empty(graphdef, params, sizes)
    for number, batch in enumerate(batches):
        begin = number * sizes.rows * sizes.row_tokens
        present = batch.example_id >= 0
        rows, index = batch.leaf[present, 0].T
        owners = batch.example_id[present]
        first[owners] = begin + rows * sizes.row_tokens + index + 1 - length[owners]
        # Slots of the batch that no prefix fills write nowhere.
        owner = np.where(present, batch.example_id, sizes.requests).astype(np.int32)
        leaf = np.where(present[:, None], batch.leaf[:, 0], 0)
        arrays = (batch.token, batch.position, batch.visible_until, leaf, owner, np.int32(begin))
        stored, last = _read(graphdef, params, stored, last, *arrays)
    return Prefixes(stored, last, jnp.asarray(first), jnp.asarray(length))


@partial(jax.jit, static_argnames=("graphdef", "sizes"))
def _empty(graphdef: nnx.GraphDef[Decoder], params: Params, sizes: Sizes) -> tuple[tuple[Cache, ...], Array]:
    model = merge(graphdef, params)
    config = model.config
    last = jnp.zeros((sizes.requests, config.width), jnp.dtype(config.compute_dtype))
    return model.empty_caches(config.kv_heads, sizes.stored_tokens), last


# Ten arguments: the model, what is written into, and a batch.
@partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("stored", "last"))
def _read(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    stored: tuple[Cache, ...],
    last: Float[Array, "G D"],
    token: Int32[Array, "R T"],
    position: Int32[Array, "R T"],
    visible_until: Int32[Array, "R T"],
    leaf: Int32[Array, "L 2"],
    owner: Int32[Array, " L"],
    begin: Int32[Array, ""],
) -> tuple[tuple[Cache, ...], Array]:
    hidden, caches = merge(graphdef, params).prefill(token, position, visible_until)

    def write(kept: Float[Array, "K A H"], new: Float[Array, "R T K H"]) -> Array:
        flat = new.reshape(-1, *new.shape[2:]).swapaxes(0, 1)
        return jax.lax.dynamic_update_slice_in_dim(kept, flat, begin, axis=1)

    written = tuple(Cache(write(old.k, new.k), write(old.v, new.v)) for old, new in zip(stored, caches, strict=True))
    return written, last.at[owner].set(hidden[leaf[:, 0], leaf[:, 1]], mode="drop")
