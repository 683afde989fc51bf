"""The RL stage's own path from prompts to rewards: sampling, scoring, packing, a KL exactly 0 at the start."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.data.curriculum import read_history
from pit.model.params import copy
from pit.recipes.demo import tiny
from pit.rollout.score import Scorer
from pit.stages.context import STAGES, Run
from pit.stages.controllers import Controllers, Moments
from pit.stages.policy_gradient import policy_gradient
from pit.stages.prepare import prepare
from pit.stages.rl import RlStage, advantages, run_rl
from pit.train.guard import Diverged
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


CONTROL = Controllers(beta=0.1)


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
    measured = stage.measure(copy(stage.initial), rollouts, stage.batches(rollouts), CONTROL)
    assert np.all(measured.kl_nats == 0)
    assert np.all(measured.penalty_nats == 0)
    np.testing.assert_array_equal(
        measured.reward, rollouts.scores - np.where(rollouts.samples.finished, np.float32(0), np.float32(0.25))
    )
    assert measured.logp_gap_nats.size == rollouts.samples.length.sum()
    assert measured.logp_gap_nats.max() < 1e-4


def test_kl_to_other_weights_is_the_sum_over_the_sampled_tokens(stage, rollouts):
    other = {name: value * jnp.float32(1.05) for name, value in stage.initial.items()}
    batches = stage.batches(rollouts)
    measured = stage.measure(other, rollouts, batches, CONTROL)
    assert np.any(measured.kl_nats != 0)
    back = stage.measure(stage.initial, rollouts, batches, CONTROL)
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
    moved = stage.measure(state.params, rollouts, batches, CONTROL).kl_nats
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
    (plain, one), (unit, scale) = (advantages(reward, normalise=choice) for choice in (False, True))
    assert one == 1
    np.testing.assert_allclose(unit, plain * np.float32(scale), rtol=1e-5)
    if plain.std() == 0:
        assert np.all(unit == 0)
    else:
        assert unit.std() == pytest.approx(1, abs=1e-3)
        np.testing.assert_array_equal(np.sign(unit), np.sign(plain))


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_a_kl_in_the_reward_is_charged_by_its_estimator_and_completed_in_the_loss(stage, rollouts, estimator):
    other = RlStage(stage.run, "rl-first")
    kl = dataclasses.replace(stage.config.kl, estimator=estimator)
    other.config = dataclasses.replace(stage.config, kl=kl, running_scale=True)
    other.reader = type(stage.reader)(stage.graphdef, other.config, stage.capacity)
    control = Controllers(beta=0.1, scores=Moments().merged(np.array([0.0, 4.0], np.float32)))
    moved = {name: value * jnp.float32(1.05) for name, value in stage.initial.items()}
    batches = other.batches(rollouts)
    at_start = other.measure(stage.initial, rollouts, batches, control)
    assert np.all(at_start.penalty_nats == 0)
    measured = other.measure(moved, rollouts, batches, control)
    assert np.any(measured.penalty_nats != measured.kl_nats)
    assert np.all(measured.penalty_nats > 0)
    cut_off = np.where(rollouts.samples.finished, np.float32(0), np.float32(0.25))
    expected = rollouts.scores / np.float32(2) - np.float32(0.1) * measured.penalty_nats - cut_off
    np.testing.assert_allclose(measured.reward, expected, rtol=1e-5, atol=1e-6)

    ready = other.ready(measured, batches, control)
    plain, _ = advantages(measured.reward, normalise=False)
    for (batch, _), arrays in zip(batches, ready, strict=True):
        there = batch.example_id >= 0
        coefficient = np.asarray(arrays["kl_coefficient"])
        np.testing.assert_allclose(coefficient[there], 0.1 / plain.std(), rtol=1e-5)
        assert np.all(coefficient[~there] == 0)
        total, _ = policy_gradient(stage.graphdef, other.config, stage.capacity)(moved, arrays)
        assert np.isfinite(float(total.sum))


def test_metrics_have_the_names_that_the_documentation_explains(stage, rollouts):
    names = set(
        stage.metrics(rollouts, stage.measure(stage.initial, rollouts, stage.batches(rollouts), CONTROL), CONTROL)
    )
    text = (Path(__file__).parents[2] / "docs" / "rl.md").read_text().split("\n## Metrics\n")[1]
    assert names == set(re.findall(r"^\| `((?:objective|rewards|completions|rollout)/[a-z_]+)` \|", text, re.M))


def test_the_difference_of_two_plain_scores_is_0_over_the_reference_itself(stage, rollouts):
    prompts = rollouts.prompts
    outputs = [prompts.references, rollouts.outputs[0]]
    difference = stage.scorer.difference(prompts.inputs, prompts.references, outputs)
    plain = stage.scorer.quality(prompts.inputs, [*outputs, prompts.references])
    assert np.all(difference[:, 0] == 0)
    np.testing.assert_allclose(difference[:, 1], plain[:, 1] - plain[:, 2], atol=1e-6)


@given(parts=st.lists(hnp.arrays(np.float32, st.integers(1, 6), elements=st.floats(-99, 99, width=32)), min_size=1))
def test_running_moments_are_those_of_everything_together(parts):
    moments = Moments()
    for part in parts:
        moments = moments.merged(part)
    everything = np.concatenate(parts).astype(np.float64)
    assert moments.count == len(everything)
    np.testing.assert_allclose(moments.mean, everything.mean(), atol=1e-9)
    if everything.std() > 1e-3:
        np.testing.assert_allclose(moments.deviation, everything.std(), rtol=1e-9)
    assert Controllers.of(json.loads(json.dumps(Controllers(0.1, moments).state()))) == Controllers(0.1, moments)


def test_steps_that_are_not_finite_are_refused_and_end_the_stage(stage, monkeypatch):
    """A reward model says NaN of one answer: weights stay, the tree is named, and the third step is the last."""
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")
    quality = Scorer.gap

    def spoiled(self, inputs, references, outputs, form):
        scores = quality(self, inputs, references, outputs, form)
        scores[2, 1] = np.nan
        return scores

    monkeypatch.setattr(Scorer, "gap", spoiled)
    rl_first = dataclasses.replace(stage.config, steps=5, normalise=False, running_scale=True, checkpoint_every=1)
    run = FreshRun(stage.run.folder, dataclasses.replace(stage.run.config, rl_first=rl_first))
    # As from a checkpoint, buffers of its own each time.
    monkeypatch.setattr(run, "trained", lambda name: (lambda made: (made[0], copy(made[1])))(stage.run.trained(name)))
    with pytest.raises(Diverged, match=r"^rl-first: loss or gradient of step 3 is not finite, the last of 3 in a row"):
        run_rl(run, "rl-first")
    folder = run.stage_folder("rl-first")
    assert not (folder / "done.json").exists()
    causes = [json.loads(path.read_text()) for path in sorted((folder / "refused").iterdir())]
    assert [(cause["stage"], cause["step"]) for cause in causes] == [("rl-first", step) for step in (1, 2, 3)]
    drawn = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["refused"], "loss" in line) for line in drawn] == [(1, 1.0, False), (2, 1.0, False)]
    visits = read_history(folder)
    assert [cause["examples"] for cause in causes[:2]] == [[int(visit.draws.ids[2])] for visit in visits]
    for cause in causes:
        assert any(np.isnan(value) for value in np.ravel(cause["of_tree"]["advantage"]))
    with run.checkpoints("rl-first", keep=2) as checkpoints:
        restored = checkpoints.restore_params(stage.initial)
    for name, value in restored.items():
        np.testing.assert_array_equal(value, stage.initial[name])
