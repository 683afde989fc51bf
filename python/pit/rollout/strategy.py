"""Sampling strategies: small frozen types that compose, each with the log-probs of the token that it chose.

Two log-probs are recorded per token. `logp` is that of the policy at the temperature, over the whole vocabulary:
training, the KL and the check of the sampler against the trainer use it. `drawn_logp` is that of the distribution that
the token was drawn from. The two differ where a filter cut the distribution (top-k, top-p, min-p). Such samples are
off-policy: a policy gradient that takes them for samples of the policy is biased, because it never sees the tokens that
the filter forbids. Reinforcement learning therefore draws without filters; they are for inference, or for a learner
that weighs by exp(logp - drawn_logp).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt32


class Drawn(NamedTuple):
    """One token per slot, with its log-prob under the policy at the temperature and under the drawing distribution."""

    token: Int32[Array, " S"]
    logp: Float32[Array, " S"]
    drawn_logp: Float32[Array, " S"]


LANES = 128
"""Tokens of a block of the vocabulary."""


def _at(logp: Float32[Array, "S V"], token: Int32[Array, " S"]) -> Float32[Array, " S"]:
    chosen: Array = jnp.take_along_axis(logp, token[:, None], axis=1)[:, 0]
    return chosen


@dataclass(frozen=True)
class Greedy:
    """The most likely token, the first one at ties; `logp` is at temperature 1, `drawn_logp` is 0: it is certain."""

    def draw(self, logits: Float32[Array, "S V"], key: UInt32[Array, "S 2"]) -> Drawn:
        """Return one token per slot; the keys are not used."""
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logp = _at(jax.nn.log_softmax(logits, axis=-1), token)
        return Drawn(token, logp, jnp.zeros_like(logp))


@dataclass(frozen=True)
class Temperature:
    """A draw from softmax(logits / temperature)."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature}: must be > 0; use Greedy() for the limit at 0")

    def draw(self, logits: Float32[Array, "S V"], key: UInt32[Array, "S 2"]) -> Drawn:
        """Return one token per slot, from its own key, so that a draw does not depend on the other slots."""
        scaled = logits / jnp.float32(self.temperature)
        token, logp = _categorical(scaled, key)
        return Drawn(token, logp, logp)

    def log_probs(self, logits: Float32[Array, "S V"]) -> Float32[Array, "S V"]:
        """Return the log-probs of the whole vocabulary at the temperature."""
        return jax.nn.log_softmax(logits / jnp.float32(self.temperature), axis=-1)


def _categorical(
    logits: Float32[Array, "S V"], key: UInt32[Array, "S 2"]
) -> tuple[Int32[Array, " S"], Float32[Array, " S"]]:
    """Return a draw from each softmax and its log-prob, from two uniform numbers: for a block, and for a token in it.

    Gumbel noise would take a random number and two logarithms per token of the vocabulary. With a single uniform
    number, whose steps are 2^-23, tokens of a large vocabulary would have probabilities wrong by some percent.
    """
    slots, vocabulary = logits.shape
    blocks = -(-vocabulary // LANES)
    peak = jnp.max(logits, axis=-1)
    p = jnp.exp(logits - peak[:, None])
    p_SbL = jnp.pad(p, ((0, 0), (0, blocks * LANES - vocabulary))).reshape(slots, blocks, LANES)
    uniform = jax.vmap(lambda one: jax.random.uniform(one, (2,), jnp.float32))(jax.random.wrap_key_data(key))
    weight_Sb = jnp.sum(p_SbL, axis=-1)
    block = _first_above(weight_Sb, uniform[:, 0])
    lane = _first_above(jnp.take_along_axis(p_SbL, block[:, None, None], axis=1)[:, 0], uniform[:, 1])
    token = block * LANES + lane
    return token, _at(logits, token) - peak - jnp.log(jnp.sum(weight_Sb, axis=-1))


def _first_above(weight: Float32[Array, "S n"], uniform: Float32[Array, " S"]) -> Int32[Array, " S"]:
    """Return the first index whose cumulated weight exceeds a share of the total; never one of weight 0."""
    until = jnp.cumsum(weight, axis=-1)
    index = jnp.sum(until <= (uniform * until[:, -1])[:, None], axis=-1, dtype=jnp.int32)
    last = weight.shape[-1] - 1 - jnp.argmax(weight[:, ::-1] > 0, axis=-1).astype(jnp.int32)
    return jnp.minimum(index, last)


@dataclass(frozen=True)
class TopK:
    """A filter that keeps the k most likely tokens, and all that are as likely as the last of them."""

    k: int

    def __post_init__(self) -> None:
        if not (isinstance(self.k, int) and self.k >= 1):
            raise ValueError(f"top-k: k = {self.k!r}: must be an int of at least 1; leave TopK out to keep all tokens")

    def least(self, logp: Float32[Array, "S V"]) -> Float32[Array, " S"]:
        """Return the least log-prob that is kept."""
        return jax.lax.top_k(logp, min(self.k, logp.shape[-1]))[0][:, -1]


@dataclass(frozen=True)
class TopP:
    """A filter that keeps the fewest most likely tokens of total probability p (nucleus sampling, arXiv 1904.09751).

    Tokens that are as likely as the last of them are kept with it.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"top-p: p = {self.p}: must be above 0 and at most 1; leave TopP out to keep all tokens")

    def least(self, logp: Float32[Array, "S V"]) -> Float32[Array, " S"]:
        """Return the least log-prob that is kept."""
        return _least_of_top(logp, jnp.full(logp.shape[0], self.p, jnp.float32))


def _least_of_top(logp: Float32[Array, "S V"], p: Float32[Array, " S"]) -> Float32[Array, " S"]:
    """Return the log-prob of the last of the fewest most likely tokens of total probability p."""
    falling = -jnp.sort(-logp, axis=-1)
    before = jnp.cumsum(jnp.exp(falling), axis=-1) - jnp.exp(falling)
    # A smaller number is taken for 0, and then not even the most likely token would stay.
    p = jnp.maximum(p, jnp.float32(np.finfo(np.float32).tiny))
    return jnp.min(jnp.where(before < p[:, None], falling, jnp.inf), axis=-1)


@dataclass(frozen=True)
class MinP:
    """A filter that keeps tokens at least p times as likely as the most likely one (arXiv 2407.01082)."""

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"min-p: p = {self.p}: must be above 0 and at most 1; leave MinP out to keep all tokens")

    def least(self, logp: Float32[Array, "S V"]) -> Float32[Array, " S"]:
        """Return the least log-prob that is kept."""
        return jnp.max(logp, axis=-1) + jnp.log(jnp.float32(self.p))


Filter = TopK | TopP | MinP
"""A filter of unlikely tokens; the most likely one always stays."""


@dataclass(frozen=True)
class Filtered:
    """A draw at a temperature among the tokens that the filters keep, applied one after the other."""

    base: Temperature
    filters: tuple[Filter, ...]

    def draw(self, logits: Float32[Array, "S V"], key: UInt32[Array, "S 2"]) -> Drawn:
        """Return one token per slot, from its own key."""
        logp = self.base.log_probs(logits)
        kept = logp
        for filter_ in self.filters:
            kept = _cut(kept, filter_.least(kept))
        token, drawn_logp = _categorical(kept, key)
        return Drawn(token, _at(logp, token), drawn_logp)


@dataclass(frozen=True)
class Individual:
    """A draw at a temperature, and perhaps a top-p, of each slot's own; all slots share top-k and min-p.

    Requests that differ in these two numbers are drawn together, by one compiled program.

    top_k: filter before top-p, if any.
    top_p: whether there is a top-p.
    min_p: filter after top-p, if any.
    """

    top_k: TopK | None = None
    top_p: bool = False
    min_p: MinP | None = None

    def draw(
        self,
        logits: Float32[Array, "S V"],
        key: UInt32[Array, "S 2"],
        temperature: Float32[Array, " S"],
        top_p: Float32[Array, " S"],
    ) -> Drawn:
        """Return one token per slot, from its own key; the most likely one at temperature 0."""
        greedy = temperature == 0
        scaled = logits / jnp.where(greedy, jnp.float32(1), temperature)[:, None]
        logp = kept = jax.nn.log_softmax(scaled, axis=-1)
        if self.top_k is not None:
            kept = _cut(kept, self.top_k.least(kept))
        if self.top_p:
            kept = _cut(kept, _least_of_top(kept, top_p))
        if self.min_p is not None:
            kept = _cut(kept, self.min_p.least(kept))
        token, drawn_logp = _categorical(kept, key)
        token = jnp.where(greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), token)
        return Drawn(token, _at(logp, token), jnp.where(greedy, jnp.float32(0), drawn_logp))


def _cut(logp: Float32[Array, "S V"], least: Float32[Array, " S"]) -> Float32[Array, "S V"]:
    """Return the log-probs among the tokens of at least some log-prob."""
    return jax.nn.log_softmax(jnp.where(logp >= least[:, None], logp, -jnp.inf), axis=-1)


Strategy = Greedy | Temperature | Filtered


class Settings(NamedTuple):
    """Temperature and top-p of a request, 1 where it has none."""

    temperature: float
    top_p: float


def individual(strategy: Strategy) -> tuple[Individual, Settings]:
    """Return a strategy as what it shares with others, and its own temperature and top-p.

    Raises:
        ValueError: its filters are not top-k, top-p and min-p in this order, each at most once.

    Example:
        >>> individual(strategy_at(0.7, TopK(50), TopP(0.9)))
        (Individual(top_k=TopK(k=50), top_p=True, min_p=None), Settings(temperature=0.7, top_p=0.9))
    """
    if isinstance(strategy, Greedy):
        return Individual(), Settings(0.0, 1.0)
    if isinstance(strategy, Temperature):
        return Individual(), Settings(strategy.temperature, 1.0)
    of_kind = {type(each): each for each in strategy.filters}
    top_k, top_p, min_p = of_kind.get(TopK), of_kind.get(TopP), of_kind.get(MinP)
    if strategy.filters != tuple(each for each in (top_k, top_p, min_p) if each is not None):
        raise ValueError(f"filters {strategy.filters}: must be top-k, top-p and min-p, in this order; reorder them")
    assert isinstance(top_k, TopK | None)
    assert isinstance(top_p, TopP | None)
    assert isinstance(min_p, MinP | None)
    settings = Settings(strategy.base.temperature, 1.0 if top_p is None else top_p.p)
    return Individual(top_k, top_p is not None, min_p), settings


def strategy_at(temperature: float, *filters: Filter) -> Strategy:
    """Return the strategy of a temperature: greedy at 0 (all filters keep the most likely token), otherwise a draw.

    Example:
        >>> strategy_at(0.7, TopK(50), TopP(0.9))
        Filtered(base=Temperature(temperature=0.7), filters=(TopK(k=50), TopP(p=0.9)))
    """
    if temperature == 0:
        return Greedy()
    base = Temperature(temperature)
    return Filtered(base, filters) if filters else base


FILTERS: Mapping[str, Callable[[float], Filter]] = MappingProxyType(
    {"top_k": lambda number: TopK(int(number)), "top_p": TopP, "min_p": MinP}
)
"""Filters by the names that configs and requests give their numbers, in the order in which they are applied."""


def sampling(temperature: float, **numbers: float | int | None) -> Strategy:
    """Return the strategy of a temperature, then of the filters of `FILTERS` that have a number.

    Example:
        >>> sampling(0.7, top_p=0.9, top_k=50, min_p=None)
        Filtered(base=Temperature(temperature=0.7), filters=(TopK(k=50), TopP(p=0.9)))
    """
    given = {name: number for name, number in numbers.items() if number is not None}
    return strategy_at(temperature, *(FILTERS[name](given[name]) for name in sorted(given, key=list(FILTERS).index)))
