"""The sampler against the trainer's packed rows and an obvious decoder that reads the whole prefix for every token."""

import dataclasses
from functools import cache
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pit.config import MeshConfig, RolloutConfig
from pit.data.packing import Layout, pack
from pit.data.template import rollout
from pit.data.tokens import Tokens
from pit.losses.rl import sample_sum
from pit.model.model import Model
from pit.model.params import copy, merge
from pit.model.sharding import make_mesh
from pit.rl.readings import places, predictions
from pit.rl.records import by_slot
from pit.rollout import sample as sampling
from pit.rollout.sample import DEFAULT, Sampler, Samples, sample
from pit.rollout.strategy import Greedy, Temperature, TopK, strategy_at
from pit.types import Closings

CONFIGS = {"llama": twins.LLAMA, "gemma": twins.GEMMA, "learned": twins.LEARNED, "windowed": twins.WINDOWED}
TREES, N, CAPACITY = 3, 2, 6
EOS = twins.ROLES[2]
ROOMY = Layout(closings=twins.CLOSINGS, pad=twins.PAD, row_length=28, rows=TREES, trees=TREES)
TOPOLOGY = rollout(N, with_reference=True)

contents = st.lists(twins.CONTENT, max_size=twins.LONGEST)
trees_of = st.lists(contents, min_size=TREES, max_size=TREES)
prefixes_of = st.lists(contents.map(lambda x: [*x, 1]), min_size=TREES, max_size=TREES)
seeds = st.integers(0, 2**31 - 1)
ids = st.lists(st.integers(0, 2**32 - 1), min_size=TREES, max_size=TREES)


def draw_samples(
    config, prefixes, request_ids, seed, strategy, eos_ids=(EOS,), n=N, capacity=CAPACITY, rollout=DEFAULT, watch=None
):
    return sample(
        Model(*twins.random_decoder(config)),
        prefixes,
        request_ids,
        n=n,
        capacity=capacity,
        strategy=strategy,
        eos_ids=eos_ids,
        seed=seed,
        config=rollout,
        watch=watch,
    )


@cache
def trainer(config, temperature):
    graphdef, params = twins.random_decoder(config)

    def logprobs(params, batch):
        where = places(batch, CAPACITY)
        return where.of(predictions(merge(graphdef, params), batch, temperature).logp), where.sampled

    return params, twins.jit(logprobs)


@pytest.mark.parametrize(("name", "temperature"), [("llama", 1.0), ("llama", 1.7), ("gemma", 0.5), ("windowed", 1.0)])
@settings(max_examples=examples(25))
@given(inputs=trees_of, references=trees_of, seed=seeds)
def test_logprobs_of_the_sampler_and_the_trainer_agree(name, temperature, inputs, references, seed):
    prefixes = [[*x, twins.ROLES[0], *ref, twins.ROLES[1]] for x, ref in zip(inputs, references, strict=True)]
    drawn = draw_samples(CONFIGS[name], prefixes, range(TREES), seed, Temperature(temperature))
    (batch,) = pack([inputs, references, *drawn.answers()], TOPOLOGY, ROOMY)
    arrays = twins.arrays_of(batch)
    arrays |= {key: by_slot(getattr(drawn, key), batch) for key in ("length", "finished")}
    params, logprobs = trainer(CONFIGS[name], temperature)
    logp, sampled = logprobs(params, arrays)

    expected, length = by_slot(drawn.logp, batch), by_slot(drawn.length, batch)
    np.testing.assert_array_equal(sampled, np.arange(CAPACITY) < length[:, :, None])
    np.testing.assert_allclose(logp, expected, atol=1e-4)

    again, _ = logprobs(copy(params), arrays)
    assert np.all(np.asarray(sample_sum(logp - again, sampled)) == 0), "equal weights, the same program: exactly 0"


OTHERS = (4, 7, 9, 12, 15)
"""Ids that also end a sample, as a pretrained model's end of text does."""


@settings(max_examples=examples(10))
@given(inputs=trees_of, references=trees_of, seed=seeds)
def test_a_sample_that_ends_in_another_eos_is_cut_off_and_trained_on_as_sampled(inputs, references, seed):
    sampler = Sampler(twins.CLOSINGS, CAPACITY, other_eos=OTHERS)
    model = Model(*twins.random_decoder(twins.LLAMA))
    drawn = sampler.samples(model, range(TREES), inputs, references, n=N, strategy=Temperature(1.0), seed=seed)
    for g, n in np.ndindex(drawn.length.shape):
        tokens = drawn.token[g, n, : drawn.length[g, n]].tolist()
        ends = [place for place, token in enumerate(tokens) if token in (EOS, *OTHERS)]
        assert ends == [len(tokens) - 1] or (not ends and len(tokens) == CAPACITY)
        assert drawn.finished[g, n] == (tokens[-1] == EOS)
        assert drawn.answers()[n][g].tolist() == tokens[: len(tokens) - drawn.finished[g, n]]
    (batch,) = pack([inputs, references, *drawn.answers()], TOPOLOGY, ROOMY)
    arrays = twins.arrays_of(batch) | {key: by_slot(getattr(drawn, key), batch) for key in ("length", "finished")}
    params, logprobs = trainer(twins.LLAMA, 1.0)
    logp, sampled = logprobs(params, arrays)
    np.testing.assert_array_equal(sampled, np.arange(CAPACITY) < by_slot(drawn.length, batch)[:, :, None])
    np.testing.assert_allclose(logp, by_slot(drawn.logp, batch), atol=1e-4)


def test_a_sampler_asks_in_the_order_of_a_tree_and_serves_its_answers(monkeypatch):
    asked = []

    def sample(model, prefixes, ids, *, eos_ids, n, capacity, **options):
        asked.append(([list(map(int, prefix)) for prefix in prefixes], eos_ids))
        token = np.array([[[8, 9, 0]], [[8, 7, 0]]], np.int32)
        logp = np.zeros(token.shape, np.float32)
        return Samples(token, np.full((2, 1), 2, np.int32), np.ones((2, 1), bool), logp, logp, 1.0)

    monkeypatch.setattr(sampling, "sample", sample)
    closings = Closings(input=(1, 2), reviewed=(3,), reference=(4, 5, 6), eos=7)
    served = []

    def serve(answers):
        served.append(answers.rows())
        return Tokens.of([[5], [6]])

    sampler = Sampler(closings, 3, other_eos=(9,), served=serve)
    for references in (None, [[20], [21]]):
        answers = sampler.answers(
            Model(*twins.random_decoder(twins.LLAMA)), [0, 1], [[10], [11]], references, strategy=1.0, seed=0
        )
        assert answers.rows() == [[5], [6]]
    assert asked == [
        ([[10, 1, 2], [11, 1, 2]], (7, 9)),
        ([[10, 3, 20, 4, 5, 6], [11, 3, 21, 4, 5, 6]], (7, 9)),
    ]
    # The first sample ended in another EOS, which is part of what it wrote.
    assert served == [[[8, 9], [8]]] * 2


def assert_same_samples(actual, expected):
    """The same tokens, with log-probs that differ by rounding."""
    for field in ("token", "length", "finished"):
        np.testing.assert_array_equal(getattr(actual, field), getattr(expected, field), field)
    for field in ("logp", "drawn_logp"):
        np.testing.assert_allclose(getattr(actual, field), getattr(expected, field), atol=1e-5)


def taken(samples, order):
    per_request = {name: value for name, value in samples._asdict().items() if name not in ("fill", "version")}
    return samples._replace(**{name: value[list(order)] for name, value in per_request.items()})


@settings(max_examples=examples(25))
@given(prefixes=prefixes_of, requests=ids, seed=seeds, data=st.data())
def test_samples_depend_neither_on_order_nor_on_neighbours(prefixes, requests, seed, data):
    strategy = Temperature(1.0)
    drawn = draw_samples(twins.LLAMA, prefixes, requests, seed, strategy)

    order = data.draw(st.permutations(range(TREES)))
    moved = draw_samples(twins.LLAMA, [prefixes[i] for i in order], [requests[i] for i in order], seed, strategy)
    for field, value in taken(drawn, order)._asdict().items():
        np.testing.assert_array_equal(getattr(moved, field), value, field)

    others = data.draw(trees_of)
    neighbours = [prefixes[0], *([*other, 1, 2] for other in others[1:])]
    placed = draw_samples(twins.LLAMA, neighbours, [requests[0], 7, 8], seed, strategy)
    assert_same_samples(taken(placed, [0]), taken(drawn, [0]))


def test_copies_of_a_request_are_one_request():
    drawn = draw_samples(twins.LLAMA, [[4, 4, 1], [1], [4, 4, 1]], [0, 0, 0], 0, Temperature(1.0))
    alone = draw_samples(twins.LLAMA, [[4, 4, 1], [1]], [0, 0], 0, Temperature(1.0))
    for field, value in taken(drawn, [0, 1])._asdict().items():
        np.testing.assert_array_equal(getattr(alone, field), value, field)
        if field not in ("fill", "version"):
            np.testing.assert_array_equal(getattr(drawn, field)[2], value[0], field)


MANY = 7


@given(
    prefixes=st.lists(contents.map(lambda x: [*x, 1]), min_size=MANY, max_size=MANY),
    seed=seeds,
    slots=st.sampled_from((1, 2, 5, 8)),
)
@settings(max_examples=examples(8))
def test_slots_are_filled_again_and_change_no_sample(prefixes, seed, slots):
    few, all_at_once = (
        draw_samples(twins.LLAMA, prefixes, range(MANY), seed, Temperature(1.0), n=3, rollout=RolloutConfig(slots=s))
        for s in (slots, 64)
    )
    assert_same_samples(few, all_at_once)
    if slots == 1:
        assert few.fill == 1, "one slot that is never idle"


ONE_LAYER = dataclasses.replace(twins.LLAMA, layers=1)
RAGGED = [[5, 9, 1], [7, 1], [4, 4, 6, 1], [8, 1], [9, 9, 9, 8, 1]]


@pytest.mark.parametrize(
    ("split", "prefixes"), [("data", RAGGED), ("fsdp", RAGGED), ("tensor", RAGGED), ("data", RAGGED[:1])]
)
def test_shards_of_a_mesh_draw_the_same_samples(split, prefixes):
    model = Model(*twins.random_decoder(ONE_LAYER))
    mesh = make_mesh(MeshConfig(**{split: 2}))

    def drawn(model):
        return sample(
            model,
            prefixes,
            range(len(prefixes)),
            n=3,
            capacity=CAPACITY,
            strategy=Temperature(1.0),
            eos_ids=(EOS, 7, 9),
            seed=4,
            config=RolloutConfig(slots=4),
        )

    assert_same_samples(drawn(model.sharded(mesh)), drawn(model))


def test_slots_refill_so_that_ragged_samples_waste_little():
    prefixes, ends = [[5, 9, 1], [7, 1], [4, 4, 1], [8, 1]] * 8, (EOS, 7, 9, 11)
    refilled, waiting = (
        draw_samples(
            twins.LLAMA,
            prefixes,
            range(32),
            0,
            Temperature(1.0),
            ends,
            n=4,
            capacity=32,
            rollout=RolloutConfig(slots=s),
        )
        for s in (8, 128)
    )
    assert_same_samples(refilled, waiting)
    # 128 samples at once wait for the longest of them.
    assert waiting.fill == pytest.approx(waiting.length.sum() / 128 / waiting.length.max())
    assert waiting.fill < 0.3
    assert refilled.fill > 0.85


def test_prefixes_longer_than_a_batch_of_rows_are_read_in_several():
    prefixes = [[*range(4, 4 + i % 16), 1] for i in range(90)]
    small, large = (
        draw_samples(
            twins.LLAMA,
            prefixes,
            range(90),
            0,
            Temperature(1.0),
            n=1,
            rollout=RolloutConfig(slots=32, prefill_tokens=t),
        )
        for t in (1, 1 << 20)
    )
    assert_same_samples(small, large)


@settings(max_examples=examples(25))
@given(prefixes=prefixes_of, seed=seeds)
def test_lengths_decide_when_several_ids_end_a_sample_and_padding_is_one(prefixes, seed):
    ends = (EOS, twins.PAD, 7)
    drawn = draw_samples(twins.LLAMA, prefixes, range(TREES), seed, Temperature(1.0), ends)
    for g in range(TREES):
        for i in range(N):
            length, tokens = int(drawn.length[g, i]), drawn.token[g, i].tolist()
            sampled = tokens[:length]
            assert 1 <= length <= CAPACITY
            assert not set(sampled[:-1]) & set(ends)
            assert bool(drawn.finished[g, i]) == (sampled[-1] in ends)
            assert drawn.finished[g, i] or length == CAPACITY, "cut at the capacity: not finished"
            assert tokens[length:] == [0] * (CAPACITY - length)
            assert np.all(drawn.logp[g, i, :length] < 0)
            assert np.all(drawn.logp[g, i, length:] == 0)
            assert drawn.answers()[i][g].tolist() == (sampled[:-1] if drawn.finished[g, i] else sampled)


@cache
def next_logits(config):
    graphdef, params = twins.random_decoder(config)

    def logits(params, rows):
        return twins.path_logits(merge(graphdef, params), rows)

    return params, twins.jit(logits)


@settings(max_examples=examples(25))
@given(prefixes=prefixes_of, seed=seeds)
def test_greedy_takes_the_most_likely_token_of_the_whole_context(prefixes, seed):
    drawn = draw_samples(twins.GEMMA, prefixes, range(TREES), seed, Greedy())
    np.testing.assert_array_equal(drawn.token[:, 0], drawn.token[:, 1])
    params, logits = next_logits(twins.GEMMA)
    paths = [(*prefix, *drawn.token[g, 0, : drawn.length[g, 0]].tolist()) for g, prefix in enumerate(prefixes)]
    rows = jax.device_get(logits(params, twins.rows_of(paths)))
    for row, (prefix, path) in enumerate(zip(prefixes, paths, strict=True)):
        for at in range(len(prefix), len(path)):
            before = rows[row, at - 1]
            # Logits of the cache and of the whole context differ by rounding: a near tie may fall either way.
            assert before[path[at]] >= before.max() - 1e-4
            expected = before[path[at]] - np.log(np.exp(before.astype(float)).sum())
            assert drawn.logp[row, 0, at - len(prefix)] == pytest.approx(expected, abs=1e-4)


def test_requests_draw_at_temperatures_of_their_own():
    model = Model(*twins.random_decoder(ONE_LAYER))
    prefixes, requests = [[3, 1], [3, 1], [5, 6, 1], [3, 1]], [1, 1, 2, 1]
    # The first two are equal but for their temperature; the last is the first again.
    each = [Temperature(0.5), Greedy(), Temperature(2.0), Temperature(0.5)]
    options = {"n": 2, "capacity": CAPACITY, "eos_ids": (EOS,), "seed": 3}
    together = sample(model, prefixes, requests, strategy=each, **options)
    for place, strategy in enumerate(each):
        alone = sample(model, prefixes, requests, strategy=strategy, **options)
        for name in ("token", "length", "finished"):
            np.testing.assert_array_equal(getattr(together, name)[place], getattr(alone, name)[place])
        np.testing.assert_allclose(together.logp[place], alone.logp[place], rtol=1e-4, atol=1e-5)
    assert not np.array_equal(together.token[0], together.token[1])
    with pytest.raises(ValueError, match="3 strategies for 4 requests"):
        sample(model, prefixes, requests, strategy=each[:3], **options)
    with pytest.raises(ValueError, match="which differ in temperature and top-p alone; draw the others apart"):
        sample(model, prefixes, requests, strategy=[*each[:3], strategy_at(1.0, TopK(2))], **options)


def test_equal_requests_draw_equal_samples_and_the_samples_of_one_differ():
    drawn = draw_samples(twins.LLAMA, [[5, 9, 1]] * TREES, [4, 4, 5], 0, Temperature(1.0))
    np.testing.assert_array_equal(drawn.token[0], drawn.token[1])
    assert np.any(drawn.token[0] != drawn.token[2])
    assert np.any(drawn.token[:, 0] != drawn.token[:, 1])


def test_first_tokens_are_drawn_from_the_softmax_at_the_temperature():
    n, temperature, prefix = 4096, 0.7, [5, 9, 1]
    drawn = draw_samples(twins.LLAMA, [prefix], [3], 11, Temperature(temperature), n=n, capacity=1)
    params, logits = next_logits(twins.LLAMA)
    at_last = np.asarray(logits(params, twins.rows_of([tuple(prefix)])))[0, len(prefix) - 1]
    probability = np.asarray(jax.nn.softmax(jnp.asarray(at_last) / jnp.float32(temperature)), float)
    counts = np.bincount(drawn.token[0, :, 0], minlength=twins.VOCAB)
    chi_square = np.sum((counts - n * probability) ** 2 / (n * probability))
    # 23 degrees of freedom: mean 23, standard deviation 6.8; 60 is a chance of 4e-5 (and the seed is fixed).
    assert chi_square < 60


@pytest.mark.parametrize("steps", [1, 3, 4])
@settings(max_examples=examples(4))
@given(prefixes=prefixes_of, seed=seeds)
def test_watched_samples_are_the_same_and_grow_token_by_token(steps, prefixes, seed):
    seen = []

    def watch(token, length):
        seen.append((token.copy(), length.copy()))
        return np.ones(length.shape, bool)

    arguments = ([*prefixes, prefixes[0]], [5, 9, 7, 5], seed, Temperature(1.0))
    plain = draw_samples(twins.LLAMA, *arguments, rollout=RolloutConfig(slots=3))
    with mock.patch.object(sampling, "WATCHED_STEPS", steps):
        watched = draw_samples(twins.LLAMA, *arguments, rollout=RolloutConfig(slots=3), watch=watch)
    for name in ("token", "length", "finished", "logp", "drawn_logp"):
        np.testing.assert_array_equal(getattr(watched, name), getattr(plain, name))
    lengths = np.stack([length for _, length in seen])
    assert np.all(np.diff(lengths, axis=0) >= 0)
    assert np.all(np.diff(lengths, axis=0, prepend=0) <= steps)
    np.testing.assert_array_equal(lengths[-1], plain.length)
    for token, length in seen:
        there = np.arange(CAPACITY) < length[:, :, None]
        np.testing.assert_array_equal(token[there], plain.token[there])


@pytest.mark.parametrize("split", [MeshConfig(), pytest.param(MeshConfig(data=2), marks=pytest.mark.slow)])
def test_a_sample_that_is_not_wanted_ends_and_changes_no_other(split):
    model = Model(*twins.random_decoder(ONE_LAYER))
    if split != MeshConfig():
        model = model.sharded(make_mesh(split))
    prefixes, requests = [[3, 1], [5, 6, 1], [7, 1], [3, 1]], [1, 2, 3, 1]
    options = {"n": 2, "capacity": 24, "strategy": Temperature(1.0), "eos_ids": (twins.PAD,), "seed": 3}
    plain = sample(model, prefixes, requests, **options)

    def watch(token, length):
        # The second sample of the second prefix, and one of two equal requests, which lasts with the other.
        wanted = np.ones(length.shape, bool)
        wanted[1, 1] = length[1, 1] < 5
        wanted[0] = False
        return wanted

    watched = sample(model, prefixes, requests, **options, watch=watch)
    assert plain.length[1, 1] > 10
    # A look every few steps, and one more token.
    assert 5 <= watched.length[1, 1] <= 5 + sampling.WATCHED_STEPS
    assert not watched.finished[1, 1]
    others = np.ones(plain.length.shape, bool)
    others[1, 1] = False
    np.testing.assert_array_equal(watched.length[others], plain.length[others])
    np.testing.assert_array_equal(watched.token[others], plain.token[others])
    cut = watched.length[1, 1]
    np.testing.assert_array_equal(watched.token[1, 1, :cut], plain.token[1, 1, :cut])


@pytest.mark.parametrize("prefixes", [[], [[4], []]])
def test_an_empty_prefix_is_refused(prefixes):
    message = "^prefixes: every request needs at least one token; give each its closing tokens$"
    with pytest.raises(ValueError, match=message):
        draw_samples(twins.LLAMA, prefixes, range(len(prefixes)), 0, Greedy())
