"""References of an RL step: data, policy, improver; at the temperature of use, and the same wherever they are asked."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from pit.config import ConfigError, RlConfig, RolloutConfig
from pit.data.store import Fold
from pit.rollout.strategy import Greedy
from pit.stages.references import Prompts, References, Sampling, passes_of
from pit.types import Source

ROWS = [([1, 10], [2], [3, 3]), ([1, 11], [4], [5]), ([1, 12], [6], [7])]


class Rows(Fold):
    """Three rows: input, better, worse."""

    def __init__(self):
        pass

    def row(self, i):
        return tuple(np.array(part, np.int32) for part in ROWS[i])


def model(number):
    """A model that is known by its number."""
    return nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))[0], {"number": jnp.int32(number)}


class Spoken(Sampling):
    """The policy answers [100 + last of x], an improver appends its own number to the reference."""

    def answers(self, model, prompts, temperature, seed):
        model = int(model[1]["number"])
        LOG.append((model, temperature, seed))
        if prompts.references is None:
            return [[100 + x[-1]] for x in prompts.inputs]
        return [[*ref, model] for ref in prompts.references]


LOG = []


def references(config, improver=None):
    LOG.clear()
    return References(config, Spoken((7, 8, 9), 5, RolloutConfig()), model(1), improver)


def test_each_source_gives_its_reference_and_the_policy_is_asked_at_the_temperature_of_use():
    config = RlConfig(sources=(1, 1, 1), reference_temperature=0.25)
    made = references(config).of(Rows(), [0, 1, 2], [Source.WORSE, Source.BETTER, Source.POLICY], seed=3)
    assert made == Prompts([0, 1, 2], [[1, 10], [1, 11], [1, 12]], [[3, 3], [4], [112]])
    assert LOG == [(1, 0.25, 3)]
    references(RlConfig(sources=(1, 0, 0))).of(Rows(), [0], [Source.WORSE], seed=3)
    assert LOG == []
    references(RlConfig(sources=(0, 0, 1), temperature=0.7)).of(Rows(), [0], [Source.POLICY], seed=3)
    assert LOG == [(1, 0.7, 3)]


def test_only_references_of_the_policy_are_rewritten_as_often_as_was_drawn():
    config = RlConfig(sources=(1, 0, 1), passes=(0, 3))
    ids, sources = [0, 1, 2, 0], [Source.POLICY, Source.POLICY, Source.WORSE, Source.POLICY]
    for seed in range(8):
        made = references(config, improver=model(50)).of(Rows(), ids, sources, seed)
        passes = passes_of(ids, (0, 3), seed)
        expected = [[110], [111], None, [110]]
        assert made.references[2] == [7]
        for g in (0, 1, 3):
            assert made.references[g] == [*expected[g], *[50] * passes[g]]
        # Each pass has random numbers of its own.
        assert len({seed for _, _, seed in LOG}) == len(LOG) == 1 + max(passes)


@given(ids=st.lists(st.integers(0, 10**6), min_size=1, max_size=9), seed=st.integers(0, 2**62))
def test_passes_depend_on_seed_and_example_alone(ids, seed):
    drawn = passes_of(ids, (1, 4), seed)
    assert all(1 <= count <= 4 for count in drawn)
    assert drawn[::-1] == passes_of(ids[::-1], (1, 4), seed)


def test_passes_are_uniform():
    counts = np.bincount(passes_of(range(3000), (1, 3), 5), minlength=4)
    # Six standard deviations of a binomial with p = 1/3.
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 1000) < 6 * np.sqrt(3000 * 2 / 9))


def test_greedy_is_the_limit_at_temperature_0(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Sampling, "draw", lambda self, model, prompts, n, strategy, seed: seen.append(strategy) or _Nothing()
    )
    Sampling((7, 8, 9), 5, RolloutConfig()).answers(model(1), Prompts([0], [[1]], None), 0.0, 1)
    assert seen == [Greedy()]


class _Nothing:
    def answer(self, g, n):
        return [g, n]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sources": (1, 1, 0), "passes": (1, 2)},
            "rl.passes = (1, 2): is about references of the policy, and none are drawn (sources = (1, 1, 0)); give the "
            "policy a weight, or leave it out",
        ),
        (
            {"sources": (1, 1, 0), "reference_temperature": 0.0},
            "rl.reference_temperature = 0.0: is about references of the policy, and none are drawn (sources = (1, 1, "
            "0)); give the policy a weight, or leave it out",
        ),
        (
            {"sources": (0, 0, 1), "passes": (2, 1)},
            "rl.passes = (2, 1): must be least,most, from 0 up; order them so",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        RlConfig(**fields)
    assert str(caught.value) == message
