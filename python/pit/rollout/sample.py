"""Samples of prefixes: packed, prefilled once, decoded side by side by the engine.

A sample is a function of (weights, seed, request id, sample number) and its own prefix: its random numbers are folded
from these alone. Equal requests (same id, same prefix) are computed once, and requests are sorted by id and prefix
first, so the order in which they are given changes no bit. Other neighbours or another number of slots move a logit by
rounding (below 1e-5), which changes a token only at a tie.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from pit.config import RolloutConfig
from pit.data.tokens import Sequences, Tokens, joined
from pit.model.decoder import Decoder
from pit.model.global_arrays import whole
from pit.model.model import Model, gathered
from pit.rollout.engine import Results, advance, begin, decode
from pit.rollout.prefill import pack_prefixes, prefill
from pit.rollout.sizes import few, sizes_of
from pit.rollout.strategy import Individual, Settings, Strategy, individual, strategy_at
from pit.types import Closings

Ids: TypeAlias = Iterable[int] | Int64[np.ndarray, " _"]
"""Ids of requests, below 2^32."""

Watch: TypeAlias = Callable[[Int32[np.ndarray, "G N C"], Int32[np.ndarray, "G N"]], Bool[np.ndarray, "G N"]]
"""A function that sees samples while they are drawn, as tokens and lengths so far, and returns which go on.

It is called every few steps and once at the end. Tokens beyond a length may be any."""

WATCHED_STEPS = 4
"""Decode steps between two looks of a watch."""

DEFAULT = RolloutConfig()
"""Slots and prefill of a call that names none."""


class Samples(NamedTuple):
    """N samples of each of G prefixes.

    token: sampled tokens, EOS included where there is one; 0 beyond `length`.
    length: number of sampled tokens, EOS included.
    finished: whether the sample ended in an EOS (otherwise it was cut at the window).
    logp: log-prob of each sampled token under the policy at the strategy's temperature, nats, recorded at decode; 0
        beyond `length`.
    drawn_logp: the same under the distribution that it was drawn from, which filters may have cut.
    fill: share of the slots' decode steps that a sample used.
    version: version of the weights that drew the samples (`Model.version`).
    """

    token: Int32[np.ndarray, "G N C"]
    length: Int32[np.ndarray, "G N"]
    finished: Bool[np.ndarray, "G N"]
    logp: Float32[np.ndarray, "G N C"]
    drawn_logp: Float32[np.ndarray, "G N C"]
    fill: float
    version: str = ""

    def answers(self) -> list[Tokens]:
        """Return the contents of the samples, without EOS: a column per sample number, a sequence per prefix."""
        content = self.length - self.finished.astype(np.int32)
        return [Tokens.padded(self.token[:, n], content[:, n]) for n in range(content.shape[1])]


def joined_samples(parts: Sequence[Samples]) -> Samples:
    """Return the samples of several calls, in order; `fill` is the mean of theirs, `version` names all of theirs."""
    if len(parts) == 1:
        return parts[0]
    token, length, finished, logp, drawn_logp = (
        np.concatenate(column) for column in zip(*(part[:5] for part in parts), strict=True)
    )
    versions = dict.fromkeys(part.version for part in parts)
    fill = float(np.mean([part.fill for part in parts]))
    return Samples(token, length, finished, logp, drawn_logp, fill, " and ".join(versions))


def sample(
    model: Model[Decoder],
    prefixes: Sequences,
    request_ids: Ids,
    *,
    n: int,
    capacity: int,
    strategy: Strategy | Sequence[Strategy],
    eos_ids: tuple[int, ...],
    seed: int,
    config: RolloutConfig = DEFAULT,
    watch: Watch | None = None,
) -> Samples:
    """Draw `n` samples of at most `capacity` tokens after each prefix.

    Args:
        model: the decoder.
        prefixes: token ids of each request, its closing tokens included.
        request_ids: id of each request, below 2^32; with `seed` and the sample's number it decides the random numbers.
        n: samples per prefix.
        capacity: most tokens of a sample, EOS included.
        strategy: choice of each token; or one per request, which differ in temperature and top-p alone.
        eos_ids: ids that end a sample (the padding id may be one of them: lengths decide, not values).
        seed: root of the random numbers, below 2^64.
        config: slots, and tokens that are prefilled at once.
        watch: sees the samples while they are drawn, and may end them before their time; None watches nothing.

    Raises:
        ValueError: a prefix is empty, or there is none; or strategies differ in more than that.
    """
    tokens = Tokens.of(prefixes).rows()
    shared, settings = _shared(strategy, len(tokens))
    requests = [
        (int(request), tuple(prefix), setting)
        for request, prefix, setting in zip(request_ids, tokens, settings, strict=True)
    ]
    distinct = sorted(set(requests))
    lengths = [len(prefix) for _, prefix, _ in distinct]
    if min(lengths, default=0) == 0:
        raise ValueError("prefixes: every request needs at least one token; give each its closing tokens")
    local = model.row_shards
    shards = local.count
    sizes = sizes_of(lengths, n=n, capacity=capacity, config=config, shards=shards)
    dealt = [distinct[x::shards] for x in range(shards)]
    packed = pack_prefixes([[prefix for _, prefix, _ in requests_X] for requests_X in dealt], sizes, local)
    sizes = replace(sizes, batches=few(len(packed.batches)))
    ids = np.zeros((shards, sizes.requests), np.uint32)
    held = np.zeros((shards, sizes.requests), np.int32)
    own = np.ones((shards, sizes.requests, 2), np.float32)
    for x, requests_X in enumerate(dealt):
        for turn, (request, prefix, setting) in enumerate(requests_X):
            ids[x, turn], held[x, turn], own[x, turn] = request, len(prefix), setting
    place = {request: number for number, request in enumerate(distinct)}
    order = _Order(*np.divmod([place[request] for request in requests], shards), shards, sizes.requests, n)
    with model.on_mesh():
        weights = gathered(model).params
        read = prefill(model.graphdef, weights, packed, held, sizes, local)
        call = model.graphdef, weights, read, ids, own, np.array([seed >> 32, seed & 0xFFFF_FFFF], np.uint32)
        chosen: dict[str, Any] = {"sizes": sizes, "strategy": shared, "eos_ids": eos_ids}
        results = decode(*call, **chosen) if watch is None else _watched(call, chosen, order, watch)
    on_host = whole(results)
    token, length, finished, logp, drawn_logp = (
        order.by_request(values)
        for values in (on_host.token, on_host.length, on_host.finished, on_host.logp, on_host.drawn_logp)
    )
    fill = int(on_host.length.sum()) / (int(on_host.steps.max()) * sizes.slots * shards)
    return Samples(token, length, finished, logp, drawn_logp, fill, model.version)


def _shared(strategy: Strategy | Sequence[Strategy], requests: int) -> tuple[Strategy | Individual, list[Settings]]:
    """Return the strategy of all requests, and the settings of each.

    Raises:
        ValueError: the strategies of the requests differ in more than temperature and top-p.
    """
    if not isinstance(strategy, Sequence):
        return strategy, [Settings(1.0, 1.0)] * requests
    each = [individual(one) for one in strategy]
    kinds = {kind for kind, _ in each}
    if len(each) != requests or len(kinds) != 1:
        raise ValueError(
            f"{len(each)} strategies for {requests} requests, of the kinds {kinds}: must be one per request, which "
            "differ in temperature and top-p alone; draw the others apart"
        )
    return kinds.pop(), [settings for _, settings in each]


class _Order(NamedTuple):
    """The place of each request's samples among the results, which lie by shard and then by sample of its prefixes."""

    turn: Int64[np.ndarray, " G"]
    shard: Int64[np.ndarray, " G"]
    shards: int
    requests: int
    samples: int

    def by_request(self, values: Any) -> Any:
        """Return results by request and sample."""
        return values.reshape(self.shards, self.requests, self.samples, *values.shape[2:])[self.shard, self.turn]

    def wanted(self, wanted: Bool[np.ndarray, "G N"]) -> Bool[np.ndarray, "X Q"]:
        """Return which results are wanted; equal requests share theirs."""
        of_results = np.zeros((self.shards, self.requests, self.samples), bool)
        np.logical_or.at(of_results, (self.shard, self.turn), wanted)
        return of_results.reshape(self.shards, -1)


def _watched(call: tuple[Any, ...], chosen: Mapping[str, Any], order: _Order, watch: Watch) -> Results:
    """Return the results of `decode`, a few steps at a time, under the eyes of a watch."""
    graphdef, params = call[:2]
    loop = begin(graphdef, params, sizes=chosen["sizes"])
    wanted = order.wanted(np.ones((len(order.turn), order.samples), bool))
    while True:
        loop, progress = advance(*call, loop, wanted, np.int32(WATCHED_STEPS), **chosen)
        now = whole(progress)
        wanted = order.wanted(watch(order.by_request(now.token), order.by_request(now.length)))
        if not now.unfinished.any():
            results: Results = loop.results
            return results


def _as_sampled(answers: Tokens) -> Tokens:
    return answers


@dataclass(frozen=True)
class Sampler:
    """PIT's own sampler of answers, in the process that trains (`pit.rollout.protocol.SamplerProtocol`).

    A sample that ends in another EOS than the template's own counts as cut off, and that token is part of its content:
    a tree holds the very tokens that were sampled, so their log-probs are exact.

    closings: closing tokens of the segments.
    capacity: most tokens of an answer, EOS included.
    rollout: slots, and tokens that are prefilled at once.
    other_eos: ids besides `closings.eos` that end a sample.
    served: returns answers as the conversation after them shows them.
    """

    closings: Closings
    capacity: int
    rollout: RolloutConfig = DEFAULT
    other_eos: tuple[int, ...] = ()
    served: Callable[[Tokens], Tokens] = _as_sampled

    def samples(
        self,
        model: Model[Decoder],
        ids: Ids,
        inputs: Sequences,
        references: Sequences | None = None,
        *,
        n: int,
        strategy: Strategy | Sequence[Strategy],
        seed: int,
        watch: Watch | None = None,
    ) -> Samples:
        """Draw n samples of every prefix: the input, or the input and its reference.

        Args:
            model: the policy, or with references the improver.
            ids: id of each prompt, below 2^32; with `seed` and the sample's number it decides the random numbers.
            inputs: contents of x.
            references: contents of the references, None for the policy.
            n: samples per prefix.
            strategy: choice of each token; or one per prompt, which differ in temperature and top-p alone.
            seed: root of the random numbers.
            watch: sees the samples while they are drawn, and may end them before their time.
        """
        closings, xs = self.closings, Tokens.of(inputs)
        if references is None:
            prefixes = joined(xs, *closings.input)
        else:
            prefixes = joined(xs, *closings.reviewed, Tokens.of(references), *closings.reference)
        samples = sample(
            model,
            prefixes,
            ids,
            n=n,
            capacity=self.capacity,
            strategy=strategy,
            eos_ids=(closings.eos, *self.other_eos),
            seed=seed,
            config=self.rollout,
            watch=watch,
        )
        last = np.take_along_axis(samples.token, np.maximum(samples.length[:, :, None] - 1, 0), axis=2)[:, :, 0]
        return samples._replace(finished=samples.finished & (last == closings.eos))

    def answers(
        self,
        model: Model[Decoder],
        ids: Ids,
        inputs: Sequences,
        references: Sequences | None = None,
        *,
        strategy: Strategy | float,
        seed: int,
    ) -> Tokens:
        """Draw one answer of every prefix, as served; `strategy` may be a temperature, and 0 is greedy."""
        chosen = strategy_at(strategy) if isinstance(strategy, float | int) else strategy
        return self.served(self.samples(model, ids, inputs, references, n=1, strategy=chosen, seed=seed).answers()[0])
