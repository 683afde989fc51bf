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


class Tree(NamedTuple):
    """Two samples of the policy, their scores, and their KL as the reward is charged it."""

    places: Arrays
    score: jax.Array
    kl_nats: jax.Array


def step_loss(logits, anchor, tree, mode, temperature, beta, entropy):
    """The loss of one step on one tree, as the RL stage puts it together."""
    estimator, place = mode
    pair = tree.places
    logp = token_logp(logits, pair, temperature)[None]
    sampled = pair.sampled[None]
    reward = shaped_reward(
        tree.score[None],
        tree.kl_nats[None] if place == "reward" else jnp.zeros((1, 2)),
        pair.finished[None],
        pair.length[None],
        beta=beta,
        no_eos_penalty=PENALTY,
        length_cost=LENGTH_COST,
        length_free=LENGTH_FREE,
    )
    total = reinforce(logp, leave_one_out(reward), sampled, jnp.array([True]))
    loss = total.sum
    if mode != ("k1", "reward"):
        if estimator == "full":
            against = token_full_kl(logits, anchor, pair, temperature)[None]
        else:
            against = token_logp(anchor, pair, temperature)[None]
        loss = loss + beta * jnp.sum(kl_cost(estimator, place, logp, against, sampled))
    if entropy:
        of_rows = jax.scipy.special.entr(jax.nn.softmax(logits / temperature, axis=-1)).sum(axis=-1)
        of_tokens = jnp.where(pair.sampled, of_rows[pair.context], 0.0)[None]
        loss = loss - entropy * jnp.sum(expected_cost(of_tokens, of_tokens, logp, sampled, include_current=False))
    return loss / total.weight


@functools.cache
def expected_step(mode, temperature, beta, entropy=0.0):
    """Compiled: mean gradient over all pairs of samples, each by its probability, and the root of its variance."""

    def of_pair(pair, logits, anchor, samples):
        return jax.grad(step_loss)(
            logits, anchor, jax.tree.map(lambda x: x[pair], samples), mode, temperature, beta, entropy
        )

    def expected(logits, anchor, samples):
        count = samples.score.shape[0]
        pairs = jnp.stack([x.reshape(-1) for x in jnp.meshgrid(jnp.arange(count), jnp.arange(count))], axis=1)
        weight = jnp.prod(probability(logits, samples.places, temperature)[pairs], axis=1)
        gradients = jax.vmap(of_pair, (0, None, None, None))(pairs, logits, anchor, samples)
        # What is no sample has no chance, and whatever gradient.
        gradients = jnp.where(weight[:, None, None] > 0, gradients, 0.0)
        mean = jnp.einsum("p,pcv->cv", weight, gradients)
        return mean, jnp.sqrt(jnp.einsum("p,pcv->", weight, (gradients - mean[None]) ** 2))

    return twins.jit(expected)
