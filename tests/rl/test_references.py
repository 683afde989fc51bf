"""References of an RL step: data, policy, improver; at the temperature of use, and the same wherever they are asked."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from pit.config import CurriculumConfig, FieldError, ImproverRlConfig, Passes, RewrittenRlConfig, SourceWeights
from pit.data.store import Fold
from pit.data.tokens import Tokens, joined
from pit.model.model import Model
from pit.rl.references import References, own_of, passes_of
from pit.rollout.sample import Sampler, Samples
from pit.rollout.strategy import Greedy
from pit.seeds import Seed
from pit.types import Closings, Source

ROWS = [([1, 10], [2], [3, 3]), ([1, 11], [4], [5]), ([1, 12], [6], [7])]
SEED = Seed((0, "references"))


class Rows(Fold):
    """Three rows: input, better, worse."""

    def __init__(self):
        pass

    def row(self, i):
        return tuple(np.array(part, np.int32) for part in ROWS[i])


def model(number):
    """A model that is known by its number."""
    return Model(nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))[0], {"number": jnp.int32(number)})


class Spoken(Sampler):
    """The policy answers [100 + last of x], an improver appends its number to the reference."""

    def answers(self, model, ids, inputs, references=None, *, strategy, seed):
        number = int(model.params["number"])
        LOG.append((number, strategy, seed))
        if references is None:
            return Tokens.of([[100 + x[-1]] for x in inputs])
        return joined(references, number)


LOG = []


def calls():
    return list(LOG)


def references(config, rewriter=None):
    LOG.clear()
    passes = config.passes if isinstance(config, RewrittenRlConfig) else None
    writer = model(1) if config.policy_references else None
    return References(config, Spoken(Closings.roles(7, 8, 9), 5), writer, rewriter, passes)


def made(config, ids, sources, seed=SEED, rewriter=None):
    return references(config, rewriter)(Rows(), np.array(ids), np.array(sources, np.uint8), seed)


def test_each_source_gives_its_reference_and_the_policy_is_asked_at_the_temperature_of_use():
    config = ImproverRlConfig(sources=SourceWeights(1, 1, 1), reference_temperature=0.25)
    prompts = made(config, [0, 1, 2], [Source.WORSE, Source.BETTER, Source.POLICY])
    assert prompts.ids.tolist() == [0, 1, 2]
    assert prompts.inputs.rows() == [[1, 10], [1, 11], [1, 12]]
    assert prompts.references.rows() == [[3, 3], [4], [112]]
    assert calls() == [(1, 0.25, SEED.of("writer").number)]
    made(ImproverRlConfig(sources=SourceWeights(worse=1)), [0], [Source.WORSE])
    assert calls() == []
    made(ImproverRlConfig(sources=SourceWeights(policy=1), temperature=0.7), [0], [Source.POLICY])
    assert calls() == [(1, 0.7, SEED.of("writer").number)]


def test_only_references_of_the_policy_are_rewritten_as_often_as_was_drawn():
    config = RewrittenRlConfig(sources=SourceWeights(worse=1, policy=1), passes=Passes(0, 3))
    ids, sources = [0, 1, 2, 0], [Source.POLICY, Source.POLICY, Source.WORSE, Source.POLICY]
    for number in range(8):
        seed = SEED.of(number)
        rewritten = made(config, ids, sources, seed, rewriter=model(50)).references.rows()
        passes = passes_of(ids, Passes(0, 3), seed.of("passes"))
        expected = [[110], [111], None, [110]]
        assert rewritten[2] == [7]
        for g in (0, 1, 3):
            assert rewritten[g] == [*expected[g], *[50] * passes[g]]
        # Each pass has random numbers of its own.
        assert len({seed for _, _, seed in LOG}) == len(LOG) == 1 + max(passes)


@given(ids=st.lists(st.integers(0, 10**6), min_size=1, max_size=9), root=st.integers(0, 2**62))
def test_passes_depend_on_seed_and_example_alone(ids, root):
    seed = Seed((root,))
    passes = passes_of(ids, Passes(1, 4), seed)
    assert all(1 <= count <= 4 for count in passes)
    assert passes[::-1] == passes_of(ids[::-1], Passes(1, 4), seed)


def test_passes_are_uniform():
    counts = np.bincount(passes_of(range(3000), Passes(1, 3), Seed((5,))), minlength=4)
    # Six standard deviations of a binomial with p = 1/3.
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 1000) < 6 * np.sqrt(3000 * 2 / 9))


def test_greedy_is_the_limit_at_temperature_0(monkeypatch):
    strategies = []
    samples = Samples(
        np.full((1, 1, 2), 6, np.int32),
        np.full((1, 1), 2, np.int32),
        np.zeros((1, 1), bool),
        np.zeros((1, 1, 2), np.float32),
        np.zeros((1, 1, 2), np.float32),
        1.0,
    )
    monkeypatch.setattr(Sampler, "samples", lambda *_, strategy, **__: strategies.append(strategy) or samples)
    answers = Sampler(Closings.roles(7, 8, 9), 5).answers(model(1), [0], [[1]], strategy=0.0, seed=1)
    assert strategies == [Greedy()]
    assert answers.rows() == [[6, 6]]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"sources": SourceWeights(1, 1), "passes": Passes(1, 2)}, "passes"),
        ({"sources": SourceWeights(1, 1), "reference_temperature": 0.0}, "reference_temperature"),
    ],
)
def test_settings_of_references_that_are_never_drawn_are_refused(fields, path):
    with pytest.raises(FieldError, match="none are drawn") as caught:
        RewrittenRlConfig(**fields)
    assert (caught.value.path, caught.value.value) == (path, fields[path])


def test_own_answers_have_their_share_by_seed_and_example_alone():
    chosen = own_of(range(4000), 0.25, Seed((5,)))
    # Six standard deviations of a binomial.
    assert abs(chosen.sum() - 1000) < 6 * np.sqrt(4000 * 0.25 * 0.75)
    np.testing.assert_array_equal(own_of([7, 3], 0.25, Seed((5,))), chosen[[7, 3]])


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"sources": SourceWeights(policy=1, own=1)}, "passes"),
        ({"sources": SourceWeights(worse=1), "drafts": 2}, "drafts"),
        ({"reference_temperature": 0.0, "drafts": 2}, "drafts"),
        ({"passes": Passes(1, 1, 0.0), "gap": "raw"}, "gap"),
        ({"passes": Passes(1, 1, 0.0), "gap": "difference"}, "gap"),
        ({"against": "peer", "gap": "symmetric", "curriculum": CurriculumConfig(strategy="gap_band")}, "against"),
        (
            {
                "sources": SourceWeights(policy=1),
                "passes": Passes(1, 1),
                "curriculum": CurriculumConfig(strategy="staged", sources_after=SourceWeights(policy=1, own=1)),
            },
            "sources",
        ),
    ],
)
def test_references_that_contradict_each_other_are_refused(fields, path):
    with pytest.raises(FieldError) as caught:
        RewrittenRlConfig(**fields)
    assert caught.value.path == path


def test_rl_0_has_no_own_answers_and_passes_without_any_have_no_threshold():
    with pytest.raises(FieldError, match="must have own = 0"):
        ImproverRlConfig(sources=SourceWeights(policy=1, own=1))
    with pytest.raises(FieldError, match="has no effect without passes"):
        Passes(0, 0, 0.5)
