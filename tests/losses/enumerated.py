"""A language so small that all its samples can be listed, with their probabilities and the expected gradient of a step.

The policy is a table, a row of logits for each prefix; float64 under `jax.enable_x64(True)`.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins

from pit.losses.kl import FactoredLogits, kl_cost, vocabulary_kl
from pit.losses.rl import expected_cost, leave_one_out, reinforce, shaped_reward

PENALTY, LENGTH_COST, LENGTH_FREE = 0.5, 0.25, 1
"""Penalty for a sample that was cut off, and cost of every token beyond the first."""


class Language(NamedTuple):
    """Samples over `vocabulary` tokens: they end at a token of `eos`, or are cut off after `capacity` tokens."""

    vocabulary: int
    capacity: int
    eos: tuple[int, ...]

    @property
    def samples(self):
        """All samples, the ones that ended and the ones that were cut off."""
        samples = []
        for length in range(1, self.capacity + 1):
            for tokens in itertools.product(range(self.vocabulary), repeat=length):
                early = any(token in self.eos for token in tokens[:-1])
                if not early and (tokens[-1] in self.eos or length == self.capacity):
                    samples.append(tokens)
        return samples

    @property
    def prefixes(self):
        """Everything a token can follow."""
        return [p for n in range(self.capacity) for p in itertools.product(range(self.vocabulary), repeat=n)]


class Arrays(NamedTuple):
    """The samples of a language as [S, C] arrays: tokens, rows of the table before each, and what holds a token."""

    token: np.ndarray
    context: np.ndarray
    sampled: np.ndarray
    finished: np.ndarray
    length: np.ndarray

    def of(self, index):
        return Arrays(*(values[index] for values in self))


def arrays(language):
    """Padded to the most samples that could be, so that all languages of a size share their compiled programs."""
    samples, row = language.samples, {prefix: i for i, prefix in enumerate(language.prefixes)}
    rows = language.vocabulary**language.capacity
    shape = (rows, language.capacity)
    token, context, sampled = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    for s, tokens in enumerate(samples):
        token[s, : len(tokens)] = tokens
        context[s, : len(tokens)] = [row[tokens[:t]] for t in range(len(tokens))]
        sampled[s, : len(tokens)] = True
    finished = np.array([tokens[-1] in language.eos for tokens in samples] + [False] * (rows - len(samples)))
    return Arrays(token, context, sampled, finished, np.sum(sampled, axis=1, dtype=np.int32))


def table(language, rng, size=1.0):
    """Random logits, a row for each prefix."""
    return jnp.asarray(rng.normal(0, size, (len(language.prefixes), language.vocabulary)))


def token_logp(logits, places, temperature):
    """[S, C] log-probs of the samples' tokens; 0 where there is none."""
    logp = jax.nn.log_softmax(logits / temperature, axis=-1)[places.context, places.token]
    return jnp.where(places.sampled, logp, 0.0)


def probability(logits, places, temperature):
    """[S] probabilities of the samples; 0 where there is none."""
    logp = jnp.sum(token_logp(logits, places, temperature), axis=-1)
    return jnp.where(places.length > 0, jnp.exp(logp), 0.0)


def token_full_kl(logits, anchor, places, temperature):
    """[..., C] KL over the vocabulary before each token, through the function that training uses."""
    shape = places.context.shape
    hidden = jax.nn.one_hot(places.context.reshape(-1), logits.shape[0], dtype=logits.dtype)
    valid = jnp.asarray(places.sampled.reshape(-1))
    policy, reference = FactoredLogits(hidden, logits.T), FactoredLogits(hidden, anchor.T)
    return vocabulary_kl(policy, reference, valid, temperature=temperature).reshape(shape)


def exact_kl(logits, anchor, places, temperature):
    """KL(policy || anchor) over whole samples, by its definition."""
    p, q = (jnp.sum(token_logp(x, places, temperature), axis=-1) for x in (logits, anchor))
    return jnp.sum(probability(logits, places, temperature) * (p - q))


def exact_entropy(logits, anchor, places, temperature):
    """-E[log p(sample)]; the anchor has no part in it."""
    logp = jnp.sum(token_logp(logits, places, temperature), axis=-1)
    return -jnp.sum(probability(logits, places, temperature) * logp)


def exact_k2(logits, anchor, places, temperature):
    """E[sum_t x_t^2 / 2], what k2 in the reward penalises."""
    ratio = token_logp(logits, places, temperature) - token_logp(anchor, places, temperature)
    return jnp.sum(probability(logits, places, temperature) * jnp.sum(0.5 * ratio**2, axis=-1))


def plain_reward(score, places):
    """Scores less the penalties of cut-off and of length, by their definition."""
    excess = jnp.maximum(places.length - LENGTH_FREE, 0).astype(float)
    return score - jnp.where(places.finished, 0.0, PENALTY) - LENGTH_COST * excess


class Settings(NamedTuple):
    """Temperature of sampling, KL coefficient, and coefficient of the entropy bonus."""

    temperature: float
    beta: float
    bonus: float


ESTIMATORS, PLACES = ("k1", "k2", "k3", "full"), ("reward", "loss")
MODES = [(estimator, place) for place in PLACES for estimator in ESTIMATORS]
BONUS = "entropy bonus"
"""Name of the step of mode ("k1", "loss") with an entropy bonus."""


def step_losses(logits, anchor, pair, score, kl_nats, settings):
    """The loss of one step on one tree of two samples, as the RL stage computes it, for each mode and with a bonus.

    kl_nats: estimator to the KL of both samples.
    """
    logp = token_logp(logits, pair, settings.temperature)[None]
    against = dict.fromkeys(ESTIMATORS, token_logp(anchor, pair, settings.temperature)[None])
    against["full"] = token_full_kl(logits, anchor, pair, settings.temperature)[None]
    sampled = pair.sampled[None]
    losses = {}
    for estimator, place in MODES:
        reward = shaped_reward(
            score[None],
            kl_nats[estimator][None] if place == "reward" else jnp.zeros((1, 2)),
            pair.finished[None],
            pair.length[None],
            beta=settings.beta,
            no_eos_penalty=PENALTY,
            length_cost=LENGTH_COST,
            length_free=LENGTH_FREE,
        )
        total = reinforce(logp, leave_one_out(reward), sampled, jnp.array([True]))
        loss = total.sum
        if (estimator, place) != ("k1", "reward"):
            loss = loss + settings.beta * jnp.sum(kl_cost(estimator, place, logp, against[estimator], sampled))
        losses[estimator, place] = loss / total.weight
    entropy = jax.scipy.special.entr(jax.nn.softmax(logits / settings.temperature, axis=-1)).sum(axis=-1)
    tokens = jnp.where(pair.sampled, entropy[pair.context], 0.0)[None]
    bonus = jnp.sum(expected_cost(tokens, tokens, logp, sampled, include_current=False))
    losses[BONUS] = losses["k1", "loss"] - settings.bonus * bonus / total.weight
    # Keys of a pytree must compare with each other.
    return {"-".join(mode) if mode in MODES else mode: loss for mode, loss in losses.items()}


@functools.cache
def expected_steps(settings):
    """Compiled: for each step loss, the mean gradient over all pairs of samples by probability, and its spread.

    The spread is the root of the summed variances. One program for all losses: compiling is nearly all of the time.
    """

    def expected(logits, anchor, places, score, kl_nats):
        count = score.shape[0]
        pairs = jnp.stack([x.reshape(-1) for x in jnp.meshgrid(jnp.arange(count), jnp.arange(count))], axis=1)
        weight = jnp.prod(probability(logits, places, settings.temperature)[pairs], axis=1)

        def pair_gradients(pair):
            samples = jax.tree.map(lambda x: x[pair], (places, score, kl_nats))
            return jax.jacrev(lambda x: step_losses(x, anchor, *samples, settings))(logits)

        def moments(gradients):
            # Places without a sample have probability 0 and any gradient.
            gradients = jnp.where(weight[:, None, None] > 0, gradients, 0.0)
            mean = jnp.einsum("p,pcv->cv", weight, gradients)
            return mean, jnp.sqrt(jnp.einsum("p,pcv->", weight, (gradients - mean[None]) ** 2))

        return {name: moments(gradients) for name, gradients in jax.vmap(pair_gradients)(pairs).items()}

    return twins.jit(expected)
