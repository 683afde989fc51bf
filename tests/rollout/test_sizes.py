"""Sizes are few, hold what they must, and their bytes are those of the arrays."""

import jax
import numpy as np
import path_twins as twins
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.config import RolloutConfig
from pit.model.model import Model
from pit.model.params import merge
from pit.plan.sizes import rollout_sizes
from pit.recipes import recipe
from pit.rollout import engine, prefill
from pit.rollout.sample import sample
from pit.rollout.sizes import few, sizes_of
from pit.rollout.strategy import Temperature
from pit.stages.rl_iterated import IMPROVER_1


@given(st.integers(1, 10**6))
def test_few_is_the_next_of_its_steps(n):
    steps = sorted({2**k for k in range(21)} | {3 * 2**k for k in range(20)})
    assert few(n) == next(step for step in steps if step >= n)
    assert few(few(n)) == few(n) < 1.5 * n + 1


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    n=st.integers(1, 20),
    slots=st.integers(1, 300),
    tokens=st.integers(1, 20_000),
    shards=st.integers(1, 4),
)
def test_everything_fits(lengths, n, slots, tokens, shards):
    config = RolloutConfig(slots=slots, prefill_tokens=tokens)
    sizes = sizes_of(lengths, n=n, capacity=7, config=config, shards=shards)
    dealt = [lengths[x::shards] for x in range(shards)]
    assert sizes.requests >= max(map(len, dealt))
    assert sizes.prefix_tokens >= max(lengths)
    assert sizes.row_tokens >= 2 * max(lengths)
    assert 1 <= sizes.slots <= -(-slots // shards)
    assert 1 <= sizes.prefixes <= sizes.requests
    # Places for as many prefixes as fill the slots: none of them must wait for a place at the start.
    assert sizes.prefixes * n >= min(sizes.slots, max(map(len, dealt)) * n)
    assert shards * sizes.rows * sizes.row_tokens <= max(tokens, shards * sizes.row_tokens)
    assert sizes.batches * sizes.rows * sizes.row_tokens >= max(map(sum, dealt))


def test_bytes_are_those_of_the_arrays():
    sizes = sizes_of([5, 9], n=3, capacity=4, config=RolloutConfig(slots=4))
    graphdef, params = twins.random_decoder(twins.LLAMA)
    model = merge(graphdef, params)
    loop = jax.eval_shape(lambda: engine._start(model, sizes))
    stored = jax.eval_shape(lambda: prefill._empty(graphdef, params, sizes))
    held = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    named = sizes.nbytes(twins.LLAMA, twins.VOCAB)
    assert named["prefilled rows"] == held(stored[0])
    assert named["prefixes in use"] == held(loop.prefixes)
    assert named["samples in progress"] == held(loop.suffixes)
    assert named["last hidden states"] == held((stored[1], loop.slots.hidden))
    results = loop.results
    assert named["results"] - held((results.token, results.logp, results.drawn_logp)) == 8 * results.length.size


def test_batches_of_about_the_same_size_run_the_same_programs():
    def programs(count, longest):
        prefixes = [[4 + i % 9] * (1 + i % longest) for i in range(count)]
        sample(
            Model(*twins.random_decoder(twins.LLAMA)),
            prefixes,
            range(count),
            n=2,
            capacity=3,
            strategy=Temperature(1.0),
            eos_ids=(3,),
            seed=0,
        )
        return engine.decode._cache_size(), prefill._read._cache_size()

    first = programs(9, 20)
    assert programs(12, 32) == first
    assert programs(10, 3) == first
    assert programs(13, 3) != first


@pytest.mark.parametrize("name", ["tiny", "demo", "hh", "paper"])
def test_a_plan_names_the_bytes_of_rollouts_before_the_first_step(name):
    config = recipe(name)
    held = rollout_sizes(config, IMPROVER_1)
    assert held.prefix_tokens >= config.windows.input + config.windows.reference
    assert held.output_tokens == config.windows.output - 1
    assert np.all([nbytes > 0 for nbytes in held.nbytes(config.policy, config.tokenizer.vocab_size).values()])
