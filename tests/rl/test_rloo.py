"""The loss of an RL step through the real decoder: against the exact objective, separate rows, other microbatches."""

import dataclasses
import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.config import FieldError, KlConfig, MeshConfig, PolicyRlConfig
from pit.data.packing import Layout, pack
from pit.data.template import rollout
from pit.losses.kl import token_kl
from pit.losses.rl import leave_one_out
from pit.model.decoder import Decoder
from pit.model.params import build, copy, merge
from pit.model.sharding import make_mesh, row_sharding
from pit.rl.algorithms import ALGORITHMS, algorithm_of
from pit.rl.readings import PolicyAndAnchor, full_kl, places, predictions
from pit.rl.records import Trees, by_slot
from pit.rl.rloo import charges_kl, policy_gradient

MODES = [(estimator, place) for place in ("reward", "loss") for estimator in ("k1", "k2", "k3", "full")]
FAST = ("full", "loss")
"""The mode that every run of the tests sees, as it has all terms; the others compile as many programs again."""

SMALL = dataclasses.replace(twins.GEMMA, layers=1)
EOS = twins.ROLES[2]


def modes():
    return [pytest.param(mode, marks=[] if mode == FAST else pytest.mark.slow, id="-".join(mode)) for mode in MODES]


def config_of(mode, temperature, samples=2, entropy=0.0):
    estimator, place = mode
    return PolicyRlConfig(
        samples=samples, temperature=temperature, entropy=entropy, kl=KlConfig(estimator=estimator, place=place)
    )


@cache
def models(vocabulary):
    """Definition of a decoder, and weights of a policy and of an anchor that is not it."""
    graphdef, params = build(Decoder, SMALL, vocabulary, 0)
    rng = np.random.default_rng(0)
    policy, anchor = (
        {name: value + rng.normal(0, 0.2, value.shape).astype(np.float32) for name, value in params.items()}
        for _ in range(2)
    )
    return graphdef, policy, anchor


def rows_of(paths, rows, length):
    """Each path in a row of its own, on the device."""
    return {name: jnp.asarray(values) for name, values in twins.rows_of(paths, rows, length).items()}


class Drawn:
    """Samples of some trees, `tokens[g][n]` with their EOS if they have one; the rest as a stage knows it."""

    def __init__(self, inputs, references, tokens, capacity):
        self.tokens, self.capacity = tokens, capacity
        self.length = np.array([[len(y) for y in tree] for tree in tokens], np.int32)
        self.finished = np.array([[y[-1] == EOS for y in tree] for tree in tokens])
        contents = [[list(y[:-1] if y[-1] == EOS else y) for y in tree] for tree in tokens]
        self.columns = [inputs, references, *map(list, zip(*contents, strict=True))]
        self.heads = [(*x, 1, *ref, 2) for x, ref in zip(inputs, references, strict=True)]

    def trees(self, layout, samples):
        """Packed batches with lengths and ends of the samples."""
        packed = pack(self.columns, rollout(samples, with_reference=True), layout)
        arrays = []
        for batch in packed:
            slots = {name: jnp.asarray(by_slot(getattr(self, name), batch)) for name in ("length", "finished")}
            arrays.append({**twins.arrays_of(batch), **slots})
        return Trees(packed, arrays, row_sharding(make_mesh(MeshConfig())))

    def batches(self, layout, vocabulary, config, advantage, coefficient):
        """Packed batches with all that the loss reads, the anchor's part through the compiled readings."""
        trees = self.trees(layout, config.samples)
        _, policy, _ = models(vocabulary)
        readings = read_with(vocabulary, config, self.capacity).read(policy, trees, len(self.tokens))
        slots = {"advantage": advantage, **({"kl_coefficient": coefficient} if charges_kl(config) else {})}
        result = []
        for batch, arrays, anchored in zip(trees.batches, trees.arrays, readings.anchored, strict=True):
            of_slots = {name: jnp.asarray(by_slot(values, batch)) for name, values in slots.items()}
            result.append({**arrays, **(anchored if charges_kl(config) else {}), **of_slots})
        return result

    def paths(self):
        """Every sample behind its prefix, tree by tree."""
        return [(*head, *y) for head, tree in zip(self.heads, self.tokens, strict=True) for y in tree]


@cache
def read_with(vocabulary, config, capacity):
    graphdef, _, anchor = models(vocabulary)
    return PolicyAndAnchor(graphdef, config, anchor, capacity)


@cache
def gradient_of(vocabulary, config, capacity):
    loss = policy_gradient(models(vocabulary)[0], config, capacity)

    def packed(params, batch):
        total, _ = loss(params, batch)
        return total.sum, total.weight

    return twins.jit(jax.value_and_grad(packed, has_aux=True))


def summed(vocabulary, config, capacity, batches):
    """Gradient of the summed loss over batches."""
    _, policy, _ = models(vocabulary)
    grads = None
    for batch in batches:
        _, more = gradient_of(vocabulary, config, capacity)(policy, batch)
        grads = more if grads is None else jax.tree.map(jnp.add, grads, more)
    return jax.device_get(grads)


def assert_close(actual, expected, tolerance=1e-4):
    scale = max(float(np.abs(value).max()) for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name] / scale, value / scale, atol=tolerance, err_msg=name)


# Four tokens, at most two of them: 13 samples, 169 pairs, each pair a tree in a row of its own.
WORDS, CAPACITY, BETA = 4, 2, 0.6
ALL = [(EOS,), *((a, b) for a in range(3) for b in range(4))]
PAIRS = list(itertools.product(range(len(ALL)), repeat=2))
ROW = Layout(closings=twins.CLOSINGS, pad=twins.PAD, row_length=10, rows=len(PAIRS), trees=len(PAIRS))
HEAD = (0, 1, 2, 2)


def sample_logp(params, temperature):
    """[13] log-probs of all samples, read off rows of their own."""
    decoder = merge(models(WORDS)[0], params)
    rows = rows_of([(*HEAD, *y) for y in ALL], len(ALL), len(HEAD) + CAPACITY)
    logp = twins.path_logp(decoder, rows, temperature)
    return jnp.sum(jnp.where(rows["visible_until"][:, len(HEAD) :] > 0, logp[:, len(HEAD) :], jnp.float32(0)), axis=1)


def token_ratio(params, anchor, temperature):
    """[13, C] log-ratios of the samples' tokens."""
    rows = rows_of([(*HEAD, *y) for y in ALL], len(ALL), len(HEAD) + CAPACITY)
    p, q = (twins.path_logp(merge(models(WORDS)[0], x), rows, temperature) for x in (params, anchor))
    there = rows["visible_until"][:, len(HEAD) :] > 0
    return jnp.where(there, (p - q)[:, len(HEAD) :], jnp.float32(0))


@cache
def exact_gradient(temperature, squared):
    """Gradient of -(E[score] - beta KL), or with half the squared log-ratios in the place of the KL."""
    anchor = models(WORDS)[2]

    def objective(params, score):
        ratio = token_ratio(params, anchor, temperature)
        cost = jnp.sum(0.5 * ratio**2 if squared else ratio, axis=1)
        return -jnp.sum(jnp.exp(sample_logp(params, temperature)) * (score - jnp.float32(BETA) * cost))

    return twins.jit(jax.grad(objective))


@pytest.mark.parametrize("mode", modes())
def test_the_expected_step_of_the_real_decoder_is_the_exact_gradient(mode):
    """All pairs of samples at once: advantages and coefficients, in which the loss is linear, carry their chances."""
    temperature = 0.7 if mode[1] == "reward" else 1.5
    config = config_of(mode, temperature)
    _, policy, anchor = models(WORDS)
    score = np.random.default_rng(1).normal(size=len(ALL)).astype(np.float32)
    one, two = np.array(PAIRS).T
    chance = np.exp(np.asarray(sample_logp(policy, temperature)))
    assert chance.sum() == pytest.approx(1, abs=1e-5)
    weight = chance[one] * chance[two]

    reward = score.copy()
    if mode[1] == "reward":
        ratio = token_ratio(policy, anchor, temperature)
        reward -= np.float32(BETA) * np.asarray(estimates(mode[0], policy, anchor, ratio, temperature))
    advantage = np.asarray(leave_one_out(jnp.asarray(reward[np.array(PAIRS)]))) * weight[:, None]
    drawn = Drawn([[0]] * len(PAIRS), [[2]] * len(PAIRS), [[ALL[a], ALL[b]] for a, b in PAIRS], CAPACITY)
    batches = drawn.batches(ROW, WORDS, config, advantage, np.float32(BETA) * weight)
    grads = {name: value / 2 for name, value in summed(WORDS, config, CAPACITY, batches).items()}
    expected = exact_gradient(temperature, mode == ("k2", "reward"))(policy, jnp.asarray(score))
    assert_close(grads, jax.device_get(expected))


def estimates(estimator, policy, anchor, ratio, temperature):
    """[13] estimates of the KL by their formulas."""
    if estimator == "full":
        rows = rows_of([(*HEAD, *y) for y in ALL], len(ALL), len(HEAD) + CAPACITY)
        tokens = row_full_kl(policy, anchor, rows, temperature, WORDS)[:, len(HEAD) :]
        return jnp.sum(jnp.where(rows["visible_until"][:, len(HEAD) :] > 0, tokens, jnp.float32(0)), axis=1)
    formula = {"k1": lambda x: x, "k2": lambda x: x**2 / 2, "k3": lambda x: jnp.exp(-x) - 1 + x}[estimator]
    return jnp.sum(formula(ratio), axis=1)


def row_full_kl(policy, anchor, rows, temperature, vocabulary):
    """KL over the vocabulary of the distribution that each token of separate rows was drawn from."""
    log_p, log_q = (
        jax.nn.log_softmax(twins.path_logits(merge(models(vocabulary)[0], x), rows) / jnp.float32(temperature), axis=-1)
        for x in (policy, anchor)
    )
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return jnp.pad(kl[:, :-1], ((0, 0), (1, 0)))


# Packed trees against separate rows, with three samples a tree and rows of about one path.
N, LONG, TEMPERATURE, BONUS = 3, 5, 1.3, 0.2


def drawn_with(seed, trees=3):
    """Random trees: inputs, references and samples of any lengths, some samples cut off."""
    rng = np.random.default_rng(seed)

    def content(most):
        return rng.integers(4, twins.VOCAB, rng.integers(0, most + 1)).tolist()

    def sample():
        whole = rng.integers(4, twins.VOCAB, LONG).tolist()
        return tuple(whole) if rng.random() < 0.3 else (*content(LONG - 1), EOS)

    tokens = [[sample() for _ in range(N)] for _ in range(trees)]
    return Drawn([content(4) for _ in range(trees)], [content(4) for _ in range(trees)], tokens, LONG)


def signals(trees):
    rng = np.random.default_rng(trees)
    return rng.normal(size=(trees, N)).astype(np.float32), rng.uniform(0.2, 1, trees).astype(np.float32)


def to_go(cost, own):
    """[.., C] cost of each token and those after it (or of those after it alone), by its definition."""
    return np.stack([cost[..., s + (not own) :].sum(axis=-1) for s in range(cost.shape[-1])], axis=-1)


def less_siblings(values):
    """Values [G, N, C] less the mean of the other samples'."""
    return np.stack([values[:, n] - np.delete(values, n, axis=1).mean(axis=1) for n in range(values.shape[1])], axis=1)


def separate_parts(params, rows, index, there):
    """Of samples in rows of their own [G, N, C]: log-probs, log-ratios, KLs over the vocabulary, entropies."""
    graphdef, _, anchor = models(twins.VOCAB)
    decoder = merge(graphdef, params)
    log_p = jax.nn.log_softmax(twins.path_logits(decoder, rows) / jnp.float32(TEMPERATURE), axis=-1)
    entropy = jnp.pad(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    logp = twins.path_logp(decoder, rows, TEMPERATURE)
    ratio = logp - twins.path_logp(merge(graphdef, anchor), rows, TEMPERATURE)
    full = row_full_kl(params, anchor, rows, TEMPERATURE, twins.VOCAB)

    def of_samples(values):
        picked = jnp.where(there, jnp.take_along_axis(values, index, axis=1), jnp.float32(0))
        return picked.reshape(-1, N, LONG)

    return tuple(map(of_samples, (logp, ratio, full, entropy)))


PARTS = twins.jit(separate_parts)


@cache
def separate_gradient(estimator):
    """The same loss term by term; the weights of score terms are worked out outside."""

    def loss(params, rows, index, there, advantage, coefficient, weight, entropy_weight):
        logp, ratio, full, entropy = separate_parts(params, rows, index, there)
        cost = {"k1": jnp.zeros_like(ratio), "k2": ratio**2 / 2, "k3": jnp.exp(-ratio) - 1 + ratio, "full": full}
        kl = jnp.sum(cost[estimator] + weight * logp, axis=(1, 2))
        bonus = jnp.sum(entropy + entropy_weight * logp)
        reinforced = -jnp.sum(advantage[:, :, None] * logp)
        return reinforced + jnp.sum(coefficient * kl) - jnp.float32(BONUS) * bonus

    return twins.jit(jax.grad(loss))


def separate(mode, drawn):
    estimator, place = mode
    _, policy, _ = models(twins.VOCAB)
    rows = rows_of(drawn.paths(), 3 * N, 24)
    there = np.arange(LONG) < drawn.length.reshape(-1)[:, None]
    heads = np.repeat([len(head) for head in drawn.heads], N)
    index = np.where(there, heads[:, None] + np.arange(LONG), 0)
    _, ratio, full, entropy = map(np.asarray, PARTS(policy, rows, index, there))
    scored = {"k1": ratio, "k2": ratio, "k3": np.exp(-ratio) - 1 + ratio, "full": full}[estimator]
    weight = less_siblings(to_go(scored, own=estimator in ("k1", "k3"))) * (place == "loss")
    signal = signals(len(drawn.tokens))
    weights = (x.astype(np.float32) for x in (weight, less_siblings(to_go(entropy, own=False))))
    return jax.device_get(separate_gradient(estimator)(policy, rows, index, there, *signal, *weights))


SPLIT = Layout(closings=twins.CLOSINGS, pad=twins.PAD, row_length=20, rows=9, trees=3)
"""Rows in which larger trees are split."""


@pytest.mark.parametrize("mode", modes())
def test_a_step_on_packed_trees_is_that_of_separate_samples_and_of_a_microbatch_a_tree(mode):
    config = config_of(mode, TEMPERATURE, samples=N, entropy=BONUS)
    for seed in range(4):
        drawn = drawn_with(seed)
        advantage, coefficient = signals(len(drawn.tokens))
        whole = drawn.batches(SPLIT, twins.VOCAB, config, advantage, coefficient)
        cut = []
        for g in range(len(drawn.tokens)):
            inputs, references = ([drawn.columns[c][g]] for c in range(2))
            one = Drawn(inputs, references, [drawn.tokens[g]], LONG)
            cut += one.batches(SPLIT, twins.VOCAB, config, advantage[g : g + 1], coefficient[g : g + 1])
        expected = separate(mode, drawn)
        for batches in (whole, cut):
            assert_close(summed(twins.VOCAB, config, LONG, batches), expected)


def an_example():
    tokens = [[(4, 5, EOS), (6, 7, 8, 9, 10), (EOS,)], [(11, EOS), (4, 4, 4, EOS), (5, 6, 7, 8, 9)]]
    return Drawn([[4], [5, 6]], [[7, 8], []], tokens, LONG)


@pytest.mark.parametrize("mode", modes())
def test_padding_changes_no_bit_of_a_gradient(mode):
    """Whatever padding holds: in the rows, in the anchor's states, at places of a sample that hold no token."""
    config = config_of(mode, TEMPERATURE, samples=N, entropy=BONUS)
    drawn = an_example()
    (arrays,) = drawn.batches(SPLIT, twins.VOCAB, config, *signals(2))
    until = np.asarray(arrays["visible_until"])
    dead = until <= np.arange(until.shape[1], dtype=np.int32)
    rng = np.random.default_rng(0)
    other = dict(arrays)
    for name, high in (("token", twins.VOCAB), ("position", 60), ("previous", until.shape[1])):
        other[name] = jnp.where(dead, rng.integers(0, high, dead.shape, np.int32), arrays[name])
    other["loss_weight"] = jnp.where(dead, jnp.float32(np.nan), arrays["loss_weight"])
    if "anchor_hidden" in arrays:
        other["anchor_hidden"] = jnp.where(dead[:, :, None], jnp.float32(np.nan), arrays["anchor_hidden"])
    if "anchor_logp" in arrays:
        beyond = np.arange(LONG) >= np.asarray(arrays["length"])[:, :, None]
        other["anchor_logp"] = jnp.where(beyond, jnp.float32(np.nan), arrays["anchor_logp"])
    one, two = (gradient_of(twins.VOCAB, config, LONG)(models(twins.VOCAB)[1], each) for each in (arrays, other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.all(np.isfinite(a))


@pytest.mark.parametrize("estimator", ["k1", "k3", "full"])
def test_equal_weights_have_a_kl_of_exactly_0_and_nearly_0_from_another_program(estimator):
    # k1 and k3 read the same programs.
    config = config_of(("full" if estimator == "full" else "k1", "loss"), TEMPERATURE, samples=N, entropy=BONUS)
    graphdef, policy, _ = models(twins.VOCAB)
    trees = an_example().trees(SPLIT, N)
    (arrays,) = trees.arrays
    readings = PolicyAndAnchor(graphdef, config, policy, LONG).read(copy(policy), trees, 2)

    def elsewhere(params, states):
        """The KL to another program's reading, a reading of the same weights."""
        model, where = merge(graphdef, params), places(arrays, LONG)
        rows = predictions(model, arrays, TEMPERATURE)
        if estimator == "full":
            anchor = states["anchor_hidden"], states["anchor_table"]
            return where.of(full_kl(model, rows.hidden, anchor, rows.valid, TEMPERATURE))
        kl = token_kl(estimator, where.of(rows.logp) - states["anchor_logp"])
        return jnp.where(where.sampled, kl, jnp.float32(0))

    same = (
        readings.vocabulary_kl
        if estimator == "full"
        else token_kl(estimator, jnp.asarray(readings.logp - readings.anchor_logp))
    )
    assert np.all(np.asarray(same) == 0)
    assert np.any(readings.logp != 0)
    other = np.asarray(twins.jit(elsewhere)(policy, readings.anchored[0]))
    assert np.abs(np.sum(other, axis=-1)).max() <= 1e-5


def test_an_unknown_algorithm_is_refused_under_its_path():
    config = PolicyRlConfig(algorithm="ppo")
    with pytest.raises(FieldError) as caught:
        algorithm_of(config, "rl_policy")
    assert (caught.value.path, caught.value.value) == ("rl_policy.algorithm", "ppo")
    for algorithm in ALGORITHMS:
        assert algorithm.name in caught.value.rule
        assert algorithm_of(PolicyRlConfig(algorithm=algorithm.name), "rl_policy") is algorithm
