"""The decode loop: slots that take the next sample as theirs ends, all on the device.

Samples are numbered by prefix and then by sample, and slots take them in that order. A few prefixes are held at a time,
their keys and values cut out of the store of prefilled rows when their first sample starts; all samples of a prefix
read the one copy. `decode` runs until the last sample has ended; `begin` and `advance` are the same loop a few steps
at a time, for a host that watches. On a mesh every shard of the rows decodes its own samples at its own pace: no step
waits for a neighbour.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from pit.model.bits import written
from pit.model.decoder import Cache, Decoder, DecodeStep
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.model.programs import Program
from pit.model.sharding import each_shard
from pit.rollout.prefill import Prefixes
from pit.rollout.sizes import Sizes
from pit.rollout.strategy import Drawn, Individual, Strategy

NONE = -1
"""Number of an idle slot's sample."""


class Results(NamedTuple):
    """Samples Q = G n of each shard, by number; 0 beyond the length of each.

    steps: number of decode steps.
    """

    token: Int32[Array, "*X Q C"]
    logp: Float32[Array, "*X Q C"]
    drawn_logp: Float32[Array, "*X Q C"]
    length: Int32[Array, "*X Q"]
    finished: Bool[Array, "*X Q"]
    steps: Int32[Array, "*X"]


class _Slots(NamedTuple):
    """Decoding state per slot: number of its sample or NONE, place of its prefix, tokens so far, random key."""

    sample: Int32[Array, " S"]
    place: Int32[Array, " S"]
    length: Int32[Array, " S"]
    key: UInt32[Array, "S 2"]
    hidden: Float[Array, "S D"]


class _Held(NamedTuple):
    """Prefixes in use: tokens of each, number of its unfinished samples, and the place that was filled last."""

    length: Int32[Array, " P"]
    unfinished: Int32[Array, " P"]
    newest: Int32[Array, ""]


class Loop(NamedTuple):
    """State between two steps: slots, held prefixes, caches, number of the next sample, and results so far."""

    slots: _Slots
    held: _Held
    prefixes: tuple[Cache, ...]
    suffixes: tuple[Cache, ...]
    following: Int32[Array, ""]
    results: Results


def _fold(key: UInt32[Array, " 2"], number: Array) -> UInt32[Array, " 2"]:
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), number))


_fold_each = jax.vmap(_fold)


@partial(jax.jit, static_argnames=("graphdef", "sizes", "strategy", "eos_ids"))
def decode(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    prefixes: Prefixes,
    request_id: UInt32[Array, "X G"],
    settings: Float32[Array, "X G 2"],
    key: UInt32[Array, " 2"],
    *,
    sizes: Sizes,
    strategy: Strategy | Individual,
    eos_ids: tuple[int, ...],
) -> Results:
    """Draw all samples of all prefixes, of each of X shards; all devices get all results.

    Args:
        graphdef: definition of the decoder.
        params: its weights.
        prefixes: prefilled prefixes. Prefixes of length 0 are at the end, and have no samples.
        request_id: id of each prefix; with the key and the number of the sample it decides the random numbers.
        settings: temperature and top-p of each prefix, which an `Individual` strategy reads.
        key: root of the random numbers.
        sizes: static sizes.
        strategy: choice of each token.
        eos_ids: ids that end a sample.
    """

    def samples(whole: tuple[Params, Array], prefixes: Prefixes, request_id: Array, settings: Array) -> Results:
        params, key = whole
        context = _Context(merge(graphdef, params), prefixes, request_id, settings, key, sizes, strategy, eos_ids)
        return jax.lax.while_loop(context.unfinished, context.step, _start(context.model, sizes)).results

    results: Results = each_shard(samples, sizes.shards)((params, key), prefixes, request_id, settings)
    return results if sizes.shards == 1 else jax.lax.with_sharding_constraint(results, P())


def decode_program(
    model: Model[Decoder], prefixes: Prefixes, sizes: Sizes, strategy: Strategy, eos_ids: tuple[int, ...]
) -> Program:
    """Return the program that draws all samples of a call.

    Args:
        model: the decoder, whose weights are shapes, gathered over fsdp.
        prefixes: shapes of all prefixes.
        sizes: static sizes.
        strategy: choice of each token.
        eos_ids: ids that end a sample.
    """
    each = (sizes.shards, sizes.requests)
    ids, key = jax.ShapeDtypeStruct(each, jnp.uint32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    call = (model.graphdef, model.params, prefixes, ids, jax.ShapeDtypeStruct((*each, 2), jnp.float32), key)
    # Samples fill the slots one after the other, each as long as its window.
    steps = -(-sizes.requests * sizes.samples // sizes.slots) * sizes.output_tokens
    static = {"sizes": sizes, "strategy": strategy, "eos_ids": eos_ids}
    return Program("decode", decode, call, static, loop_steps=steps)


@partial(jax.jit, static_argnames=("graphdef", "sizes"))
def begin(graphdef: nnx.GraphDef[Decoder], params: Params, *, sizes: Sizes) -> Loop:
    """Return the state before the first step, of each shard."""
    loop: Loop = each_shard(lambda params: _start(merge(graphdef, params), sizes), sizes.shards)(params)
    return loop


class Progress(NamedTuple):
    """Samples Q of each shard so far, by number, and whether a step is left; tokens beyond `length` may be any."""

    token: Int32[Array, "*X Q C"]
    length: Int32[Array, "*X Q"]
    unfinished: Bool[Array, "*X"]


# Twelve arguments: those of `decode`, and of the steps.
@partial(jax.jit, static_argnames=("graphdef", "sizes", "strategy", "eos_ids"), donate_argnames=("loop",))
def advance(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    prefixes: Prefixes,
    request_id: UInt32[Array, "X G"],
    settings: Float32[Array, "X G 2"],
    key: UInt32[Array, " 2"],
    loop: Loop,
    wanted: Bool[Array, "X Q"],
    steps: Int32[Array, ""],
    *,
    sizes: Sizes,
    strategy: Strategy | Individual,
    eos_ids: tuple[int, ...],
) -> tuple[Loop, Progress]:
    """Run at most some steps of the loop; all devices get the progress.

    Args:
        graphdef: definition of the decoder.
        params: its weights.
        prefixes: prefilled prefixes, as `decode` takes them.
        request_id: id of each prefix.
        settings: temperature and top-p of each prefix, which an `Individual` strategy reads.
        key: root of the random numbers.
        loop: the state, which is used up.
        wanted: samples that go on; any other one ends, unfinished, with its next token.
        steps: most steps.
        sizes: static sizes.
        strategy: choice of each token.
        eos_ids: ids that end a sample.
    """

    def some(whole: tuple[Params, Array, Array], *parts: Any) -> tuple[Loop, Progress]:
        params, key, steps = whole
        prefixes, request_id, settings, loop, wanted = parts
        context = _Context(merge(graphdef, params), prefixes, request_id, settings, key, sizes, strategy, eos_ids)
        until = loop.results.steps + steps
        loop = jax.lax.while_loop(
            lambda loop: context.unfinished(loop) & (loop.results.steps < until),
            lambda loop: context.step(loop, wanted),
            loop,
        )
        slots, results = loop.slots, loop.results
        running = jnp.where(slots.sample != NONE, slots.sample, results.length.shape[0])
        length = results.length.at[running].set(slots.length, mode="drop")
        return loop, Progress(results.token, length, context.unfinished(loop))

    loop, progress = each_shard(some, sizes.shards)((params, key, steps), prefixes, request_id, settings, loop, wanted)
    return loop, progress if sizes.shards == 1 else jax.lax.with_sharding_constraint(progress, P())


class _Context(NamedTuple):
    """All that the steps of a shard share."""

    model: Decoder
    prefixes: Prefixes
    request_id: UInt32[Array, " G"]
    settings: Float32[Array, "G 2"]
    key: UInt32[Array, " 2"]
    sizes: Sizes
    strategy: Strategy | Individual
    eos_ids: tuple[int, ...]

    @property
    def total(self) -> Int32[Array, ""]:
        """Number of samples."""
        return jnp.sum(self.prefixes.length > 0, dtype=jnp.int32) * self.sizes.samples

    def unfinished(self, loop: Loop) -> Bool[Array, ""]:
        """Return whether a step is left."""
        return (loop.following < self.total) | jnp.any(loop.slots.sample != NONE)

    def step(self, loop: Loop, wanted: Bool[Array, " Q"] | None = None) -> Loop:
        """Refill the slots, and draw a token for each."""
        loop = _refill(loop, self.prefixes, self.request_id, self.key, self.total, self.sizes)
        drawn = self._draw(loop.slots)
        return _step(loop, drawn, self.model, self.sizes, jnp.asarray(self.eos_ids, jnp.int32), wanted)

    def _draw(self, slots: _Slots) -> Drawn:
        """Return a token for every slot."""
        logits, key = self.model.logits(slots.hidden), _fold_each(slots.key, slots.length)
        if not isinstance(self.strategy, Individual):
            return self.strategy.draw(logits, key)
        own = self.settings[jnp.maximum(slots.sample, 0) // self.sizes.samples]
        return self.strategy.draw(logits, key, own[:, 0], own[:, 1])


def _start(model: Decoder, sizes: Sizes) -> Loop:
    slots, config, samples = sizes.slots, model.config, sizes.requests * sizes.samples
    nothing = jnp.zeros(slots, jnp.int32)
    by_token = jnp.zeros((samples, sizes.output_tokens), jnp.float32)
    return Loop(
        _Slots(
            sample=jnp.full(slots, NONE, jnp.int32),
            place=nothing,
            length=nothing,
            key=jnp.zeros((slots, 2), jnp.uint32),
            hidden=jnp.zeros((slots, config.width), jnp.dtype(config.compute_dtype)),
        ),
        _Held(jnp.zeros(sizes.prefixes, jnp.int32), jnp.zeros(sizes.prefixes, jnp.int32), jnp.int32(0)),
        prefixes=model.empty_caches(sizes.prefixes, config.kv_heads, sizes.prefix_tokens),
        suffixes=model.empty_caches(slots, config.kv_heads, sizes.output_tokens),
        following=jnp.int32(0),
        results=Results(
            token=by_token.astype(jnp.int32),
            logp=by_token,
            drawn_logp=by_token,
            length=jnp.zeros(samples, jnp.int32),
            finished=jnp.zeros(samples, bool),
            steps=jnp.int32(0),
        ),
    )


def _refill(
    loop: Loop,
    prefixes: Prefixes,
    request_id: UInt32[Array, " G"],
    key: UInt32[Array, " 2"],
    total: Int32[Array, ""],
    sizes: Sizes,
) -> Loop:
    """Give idle slots the next samples: the rest of the newest prefix, then those of new prefixes while places last."""
    n = sizes.samples

    def take(loop: Loop, left: Array) -> Loop:
        """Give the next samples of the newest prefix, which has `left` of them, to idle slots in their order."""
        owner, number = loop.following // n, loop.following % n
        idle = loop.slots.sample == NONE
        rank = jnp.cumsum(idle, dtype=jnp.int32) - 1
        takes = idle & (rank < left)
        keys = jax.vmap(_fold, (None, 0))(_fold(key, request_id[owner]), number + rank)
        slots = _Slots(
            sample=jnp.where(takes, loop.following + rank, loop.slots.sample),
            place=jnp.where(takes, loop.held.newest, loop.slots.place),
            length=jnp.where(takes, 0, loop.slots.length),
            key=jnp.where(takes[:, None], keys, loop.slots.key),
            hidden=jnp.where(takes[:, None], prefixes.last[owner][None, :], loop.slots.hidden),
        )
        return loop._replace(slots=slots, following=loop.following + jnp.sum(takes, dtype=jnp.int32))

    def has_room(loop: Loop) -> Bool[Array, ""]:
        waits = (loop.following < total) & jnp.any(loop.slots.sample == NONE)
        return waits & jnp.any(loop.held.unfinished == 0)

    def open_one(loop: Loop) -> Loop:
        """Hold the next prefix in the first free place, and give its samples to slots."""
        owner, place = loop.following // n, jnp.argmin(loop.held.unfinished).astype(jnp.int32)

        def cut(held: Float[Array, "P K C H"], stored: Float[Array, "K A H"]) -> Array:
            own = jax.lax.dynamic_slice_in_dim(stored, prefixes.first[owner], sizes.prefix_tokens, axis=1)
            return written(held, own[None], place, axis=0)

        caches = tuple(
            Cache(cut(old.k, stored.k), cut(old.v, stored.v))
            for old, stored in zip(loop.prefixes, prefixes.stored, strict=True)
        )
        held = _Held(
            length=loop.held.length.at[place].set(prefixes.length[owner]),
            unfinished=loop.held.unfinished.at[place].set(n),
            newest=place,
        )
        return take(loop._replace(held=held, prefixes=caches), jnp.int32(n))

    # Number 0 is of a prefix that is not held yet. Idle slots that stay behind here, the rest was too small for.
    return jax.lax.while_loop(has_room, open_one, take(loop, (n - loop.following % n) % n))


# Six parameters: the state, the tokens and who reads them, and when samples end.
def _step(
    loop: Loop,
    drawn: Drawn,
    model: Decoder,
    sizes: Sizes,
    eos: Int32[Array, " E"],
    wanted: Bool[Array, " Q"] | None,
) -> Loop:
    """Record the token that was drawn for every slot, and feed it; samples that are not `wanted` end."""
    slots, held, results = loop.slots, loop.held, loop.results
    samples = results.length.shape[0]
    live = slots.sample != NONE
    token = jnp.where(live, drawn.token, 0)
    length = slots.length + live.astype(jnp.int32)
    ends = jnp.any(token[:, None] == eos[None, :], axis=1)
    done = live & (ends | (length == sizes.output_tokens))
    if wanted is not None:
        done |= live & ~wanted[slots.sample]
    # Rows past the end are dropped: those of idle slots, and of samples that go on.
    here = jnp.where(live, slots.sample, samples), slots.length
    ended = jnp.where(done, slots.sample, samples)
    fed = DecodeStep(
        position=held.length[slots.place] + slots.length,
        prefix_id=jnp.where(live, slots.place, NONE),
        prefix_length=held.length,
        suffix_length=jnp.where(live, length, 0),
        write_at=results.steps % sizes.output_tokens,
        slots_per_prefix=sizes.samples,
    )
    hidden, suffixes = model.decode(token, loop.prefixes, loop.suffixes, fed)
    return loop._replace(
        slots=_Slots(jnp.where(done, NONE, slots.sample), slots.place, length, slots.key, hidden),
        held=held._replace(unfinished=held.unfinished.at[slots.place].add(-done.astype(jnp.int32))),
        suffixes=suffixes,
        results=Results(
            token=results.token.at[here].set(token, mode="drop"),
            logp=results.logp.at[here].set(drawn.logp, mode="drop"),
            drawn_logp=results.drawn_logp.at[here].set(drawn.drawn_logp, mode="drop"),
            length=results.length.at[ended].set(length, mode="drop"),
            finished=results.finished.at[ended].set(ends, mode="drop"),
            steps=results.steps + 1,
        ),
    )
