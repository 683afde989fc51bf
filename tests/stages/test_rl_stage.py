"""The RL stage's own path from prompts to rewards: sampling, scoring, packing, a KL exactly 0 at the start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.model.params import copy
from pit.recipes.demo import tiny
from pit.stages.context import STAGES, Run
from pit.stages.prepare import prepare
from pit.stages.rl import RlStage, advantages, policy_gradient
from pit.train.log import PROGRESS_VARIABLE
from pit.train.update import Update
from pit.types import Source


class FreshRun(Run):
    """A run whose finished stages are fresh weights: one policy, one reward model."""

    def trained(self, name):
        kind = STAGES[name].model
        first = next(stage for stage, spec in STAGES.items() if spec.model == kind)
        made = self.__dict__.setdefault("_made", {})
        if kind not in made:
            made[kind] = self.model(first)
        return made[kind]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    config = tiny()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, synthetic_rows=150),
        rl_first=dataclasses.replace(config.rl_first, gap="centred", no_eos_penalty=0.25),
    )
    run = FreshRun(tmp_path_factory.mktemp("run"), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROGRESS_VARIABLE, "json")
        prepare(run)
    return RlStage(run, "rl-first")


@pytest.fixture(scope="module")
def rollouts(stage):
    prompts = stage.prompts(stage.fold, [0, 1, 2, 3], [Source.BETTER, Source.WORSE] * 2, seed=0)
    return stage.rollouts(stage.initial, prompts, seed=0)


def test_references_come_from_the_drawn_source(stage, rollouts):
    for g, source in enumerate([1, 2, 1, 2]):
        assert rollouts.prompts.references[g] == stage.fold.row(g)[source].tolist()


def test_kl_to_equal_weights_is_exactly_0_and_rewards_are_the_scores(stage, rollouts):
    measured = stage.measure(copy(stage.initial), rollouts, stage.batches(rollouts))
    assert np.all(measured.kl_nats == 0)
    np.testing.assert_array_equal(
        measured.reward, rollouts.scores - np.where(rollouts.samples.finished, np.float32(0), np.float32(0.25))
    )
    assert measured.logp_gap_nats.size == rollouts.samples.length.sum()
    assert measured.logp_gap_nats.max() < 1e-4


def test_kl_to_other_weights_is_the_sum_over_the_sampled_tokens(stage, rollouts):
    other = {name: value * jnp.float32(1.05) for name, value in stage.initial.items()}
    batches = stage.batches(rollouts)
    measured = stage.measure(other, rollouts, batches)
    assert np.any(measured.kl_nats != 0)
    back = stage.measure(stage.initial, rollouts, batches)
    assert np.all(back.kl_nats == 0)


def test_the_loss_is_minus_advantage_times_the_sampled_log_probs(stage, rollouts):
    advantage = np.arange(8, dtype=np.float32).reshape(4, 2) - np.float32(3)
    loss = jax.jit(policy_gradient(stage.graphdef, stage.config, stage.capacity))
    total = np.zeros(2)
    for batch, arrays in stage.batches(rollouts):
        slots = np.zeros((len(batch.example_id), 2), np.float32)
        present = batch.example_id >= 0
        slots[present] = advantage[batch.example_id[present]]
        total += np.array(loss(stage.initial, {**arrays, "advantage": slots})[0])
    expected = -np.sum(advantage * rollouts.samples.logp.sum(axis=2))
    np.testing.assert_allclose(total, [expected, 8], rtol=1e-4)


def test_a_step_makes_the_samples_with_advantage_likelier(stage, rollouts):
    import optax

    update = Update(policy_gradient(stage.graphdef, stage.config, stage.capacity), optax.sgd(0.02))
    batches = stage.batches(rollouts)
    advantage = np.array([[1, -1]] * 4, np.float32)
    ready = []
    for batch, arrays in batches:
        slots = np.zeros((len(batch.example_id), 2), np.float32)
        slots[batch.example_id >= 0] = advantage[batch.example_id[batch.example_id >= 0]]
        ready.append({**arrays, "advantage": slots})
    state, _ = update(update.start(copy(stage.initial)), ready)
    # KL here is the sum of log p_new - log p_old of each sample.
    moved = stage.measure(state.params, rollouts, batches).kl_nats
    assert np.sum(moved * advantage) > 0


def test_the_curriculum_draws_every_example_once_an_epoch_from_the_asked_sources(stage):
    loader, count, examples = stage.draws(), stage.config.prompts, len(stage.fold)
    steps = [next(loader) for _ in range(2 * examples)]
    ids = np.concatenate([draws.ids for draws in steps])
    assert len(ids) == 2 * examples * count
    for epoch in range(2 * count):
        assert sorted(ids[epoch * examples :][:examples].tolist()) == list(range(examples))
    assert set(np.concatenate([draws.sources for draws in steps]).tolist()) == {Source.WORSE, Source.BETTER}


@given(reward=hnp.arrays(np.float32, (3, 4), elements=st.floats(-9, 9, width=32)))
def test_normalised_advantages_have_unit_deviation_or_are_0(reward):
    plain, unit = advantages(reward, normalise=False), advantages(reward, normalise=True)
    if plain.std() == 0:
        assert np.all(unit == 0)
    else:
        assert unit.std() == pytest.approx(1, abs=1e-3)
        np.testing.assert_array_equal(np.sign(unit), np.sign(plain))
