"""The sampler: prefixes are prefilled once, their samples decode side by side in one jitted loop.

A sample is a function of (weights, key, request id, sample number) and its own prefix: its random numbers are folded
from these alone, so that neither the order of requests nor the other slots of a batch enter.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from pit.model.decoder import Decoder
from pit.model.params import Params, merge
from pit.model.sharding import on_mesh
from pit.rollout.strategy import Strategy


class Samples(NamedTuple):
    """N samples of each of G prefixes.

    token: the sampled tokens, EOS included where there is one; 0 beyond `length`.
    length: number of sampled tokens, EOS included.
    finished: whether the sample ended in an EOS (otherwise it was cut at the window).
    logp: log-prob of each sampled token at the strategy's temperature, nats, recorded at decode; 0 beyond `length`.
    """

    token: Int32[np.ndarray, "G N C"]
    length: Int32[np.ndarray, "G N"]
    finished: Bool[np.ndarray, "G N"]
    logp: Float32[np.ndarray, "G N C"]

    def answer(self, tree: int, sample: int) -> list[int]:
        """Tokens of one answer without its EOS."""
        end = int(self.length[tree, sample]) - int(self.finished[tree, sample])
        return [int(t) for t in self.token[tree, sample, :end]]


class _Loop(NamedTuple):
    step: Int32[Array, ""]
    hidden: Float32[Array, "S D"]
    done: Bool[Array, " S"]
    length: Int32[Array, " S"]
    token: Int32[Array, "S C"]
    logp: Float32[Array, "S C"]
    suffix: tuple  # type: ignore[type-arg]


@partial(jax.jit, static_argnames=("graphdef", "n", "capacity", "strategy", "eos_ids"))
def _sample(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    prefix: Int32[Array, "G P"],
    length: Int32[Array, " G"],
    request_id: UInt32[Array, " G"],
    key: UInt32[Array, " 2"],
    *,
    n: int,
    capacity: int,
    strategy: Strategy,
    eos_ids: tuple[int, ...],
) -> tuple[Array, Array, Array, Array]:
    model = merge(graphdef, params)
    slots = prefix.shape[0] * n
    last, shared = model.prefill(prefix, length)

    def fold(key: UInt32[Array, " 2"], number: Array) -> UInt32[Array, " 2"]:
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), number))

    request_keys = jax.vmap(fold, (None, 0))(key, request_id)
    number = jnp.tile(jnp.arange(n, dtype=jnp.int32), prefix.shape[0])
    keys = jax.vmap(fold)(jnp.repeat(request_keys, n, axis=0), number)
    eos = jnp.asarray(eos_ids, jnp.int32)

    def unfinished(loop: _Loop) -> Bool[Array, ""]:
        return (loop.step < capacity) & ~jnp.all(loop.done)

    def body(loop: _Loop) -> _Loop:
        logits = model.logits(loop.hidden)
        token = strategy.choose(logits, jax.vmap(fold, (0, None))(keys, loop.step))
        scaled = jax.nn.log_softmax(logits / jnp.float32(strategy.temperature), axis=-1)
        logp = jnp.take_along_axis(scaled, token[:, None], axis=1)[:, 0]
        live = ~loop.done
        token = jnp.where(live, token, 0)
        # A finished slot keeps decoding token 0 into its own cache; nothing of it is recorded.
        hidden, suffix = model.decode(token, shared, loop.suffix, loop.step)
        ended = jnp.any(token[:, None] == eos[None, :], axis=1)
        return _Loop(
            step=loop.step + 1,
            hidden=hidden,
            done=loop.done | (live & ended),
            length=loop.length + live.astype(jnp.int32),
            token=jax.lax.dynamic_update_slice_in_dim(loop.token, token[:, None], loop.step, axis=1),
            logp=jax.lax.dynamic_update_slice_in_dim(
                loop.logp, jnp.where(live, logp, jnp.float32(0.0))[:, None], loop.step, axis=1
            ),
            suffix=suffix,
        )

    start = _Loop(
        step=jnp.int32(0),
        hidden=jnp.repeat(last, n, axis=0),
        done=jnp.zeros(slots, bool),
        length=jnp.zeros(slots, jnp.int32),
        token=jnp.zeros((slots, capacity), jnp.int32),
        logp=jnp.zeros((slots, capacity), jnp.float32),
        suffix=model.empty_suffix(slots, capacity),
    )
    end = jax.lax.while_loop(unfinished, body, start)
    shape = (prefix.shape[0], n)
    return (
        end.token.reshape(*shape, capacity),
        end.length.reshape(shape),
        end.done.reshape(shape),
        end.logp.reshape(*shape, capacity),
    )


def pad_prefixes(
    prefixes: Sequence[Sequence[int]], multiple: int = 32
) -> tuple[Int32[np.ndarray, "G P"], Int32[np.ndarray, " G"]]:
    """Prefixes as one array, padded to the next power of two of `multiple`, so that few shapes are ever compiled.

    Raises:
        ValueError: a prefix is empty.
    """
    length = np.array([len(p) for p in prefixes], np.int32)
    if len(prefixes) == 0 or length.min() == 0:
        raise ValueError("prefixes: every request needs at least one token; give each its closing role token")
    width = multiple
    while width < length.max():
        width *= 2
    token = np.zeros((len(prefixes), width), np.int32)
    for row, prefix in zip(token, prefixes, strict=True):
        row[: len(prefix)] = prefix
    return token, length


def sample(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    prefixes: Sequence[Sequence[int]],
    request_ids: Sequence[int],
    *,
    n: int,
    capacity: int,
    strategy: Strategy,
    eos_ids: tuple[int, ...],
    seed: int,
) -> Samples:
    """Draw `n` samples of at most `capacity` tokens after each prefix.

    Args:
        graphdef: definition of the decoder.
        params: its weights.
        prefixes: token ids of each request, its last closing role token included.
        request_ids: an id of each request; with `seed` and the sample's number it decides the random numbers.
        n: samples of a prefix.
        capacity: most tokens of a sample, EOS included.
        strategy: how tokens are chosen.
        eos_ids: ids that end a sample (the padding id may be one of them: lengths decide, not values).
        seed: root of the random numbers.
    """
    token, length = pad_prefixes(prefixes)
    with on_mesh(params):
        result = _sample(
            graphdef,
            params,
            token,
            length,
            np.asarray(request_ids, np.uint32),
            np.asarray(jax.random.key_data(jax.random.key(seed))),
            n=n,
            capacity=capacity,
            strategy=strategy,
            eos_ids=eos_ids,
        )
    drawn, lengths, finished, logp = jax.device_get(result)
    return Samples(drawn, lengths, finished, logp)
