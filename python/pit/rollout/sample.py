"""Samples of prefixes: packed, prefilled once, decoded side by side by the engine.

A sample is a function of (weights, key, request id, sample number) and its own prefix: its random numbers are folded
from these alone. Requests with one id and prefix are one request, computed once, and all are put in the order of ids
and prefixes before anything is, so that the order in which they are given changes no bit; other neighbours or another
number of slots move a logit by rounding (below 1e-5), which changes a token only at a tie.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float32, Int32

from pit.config import RolloutConfig
from pit.model.decoder import Decoder
from pit.model.params import Params
from pit.model.sharding import gathered, on_mesh, shards_of
from pit.rollout.engine import decode
from pit.rollout.prefill import pack_prefixes, prefill
from pit.rollout.sizes import few, sizes_of
from pit.rollout.strategy import Strategy

DEFAULT = RolloutConfig()
"""What is taken where nobody said otherwise."""


class Samples(NamedTuple):
    """N samples of each of G prefixes.

    token: the sampled tokens, EOS included where there is one; 0 beyond `length`.
    length: number of sampled tokens, EOS included.
    finished: whether the sample ended in an EOS (otherwise it was cut at the window).
    logp: log-prob of each sampled token under the policy at the strategy's temperature, nats, recorded at decode; 0
        beyond `length`.
    drawn_logp: the same under the distribution that it was drawn from, which filters may have cut.
    fill: share of the slots' decode steps that a sample used.
    """

    token: Int32[np.ndarray, "G N C"]
    length: Int32[np.ndarray, "G N"]
    finished: Bool[np.ndarray, "G N"]
    logp: Float32[np.ndarray, "G N C"]
    drawn_logp: Float32[np.ndarray, "G N C"]
    fill: float

    def answer(self, tree: int, sample: int) -> list[int]:
        """Tokens of one answer without its EOS."""
        end = int(self.length[tree, sample]) - int(self.finished[tree, sample])
        return [int(t) for t in self.token[tree, sample, :end]]


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
    config: RolloutConfig = DEFAULT,
) -> Samples:
    """Draw `n` samples of at most `capacity` tokens after each prefix.

    Args:
        graphdef: definition of the decoder.
        params: its weights.
        prefixes: token ids of each request, its last closing role token included.
        request_ids: an id of each request, below 2^32; with `seed` and the sample's number it decides the random
            numbers.
        n: samples of a prefix.
        capacity: most tokens of a sample, EOS included.
        strategy: how tokens are chosen.
        eos_ids: ids that end a sample (the padding id may be one of them: lengths decide, not values).
        seed: root of the random numbers.
        config: slots, and tokens that are prefilled at once.

    Raises:
        ValueError: a prefix is empty, or there is none.
    """
    requests = [(own, tuple(prefix)) for own, prefix in zip(request_ids, prefixes, strict=True)]
    distinct = sorted(set(requests))
    lengths = [len(prefix) for _, prefix in distinct]
    if min(lengths, default=0) == 0:
        raise ValueError("prefixes: every request needs at least one token; give each its closing role token")
    shards = shards_of(params)
    sizes = sizes_of(lengths, n=n, capacity=capacity, config=config, shards=shards)
    dealt = [distinct[x::shards] for x in range(shards)]
    batches = pack_prefixes([[prefix for _, prefix in own] for own in dealt], sizes)
    sizes = replace(sizes, batches=few(len(batches)))
    ids = np.zeros((shards, sizes.requests), np.uint32)
    held = np.zeros((shards, sizes.requests), np.int32)
    for x, own in enumerate(dealt):
        ids[x, : len(own)] = [request for request, _ in own]
        held[x, : len(own)] = [len(prefix) for _, prefix in own]
    with on_mesh(params):
        weights = gathered(params)
        results = decode(
            graphdef,
            weights,
            prefill(graphdef, weights, batches, held, sizes),
            ids,
            np.asarray(jax.random.key_data(jax.random.key(seed))),
            sizes=sizes,
            strategy=strategy,
            eos_ids=eos_ids,
        )
    found = jax.device_get(results)
    place = {request: number for number, request in enumerate(distinct)}
    turn, shard = np.divmod([place[request] for request in requests], shards)

    def by_request(values: np.ndarray) -> np.ndarray:
        return values.reshape(shards, sizes.requests, n, *values.shape[2:])[shard, turn]

    return Samples(
        token=by_request(found.token),
        length=by_request(found.length),
        finished=by_request(found.finished),
        logp=by_request(found.logp),
        drawn_logp=by_request(found.drawn_logp),
        fill=int(found.length.sum()) / (int(found.steps.max()) * sizes.slots * shards),
    )
