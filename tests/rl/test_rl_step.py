"""The step of an RL stage: sampling, scoring, packing, a KL exactly 0 at the start, the update, refused steps."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sampler_double import Elsewhere

from pit.config import ClipConfig
from pit.data.curriculum import Draws, read_history
from pit.losses.total import Total
from pit.model.params import copy
from pit.recipes.demo import tiny
from pit.rl.clipped import Clipped
from pit.rl.controllers import Controllers, Moments
from pit.rl.curriculum import make_draws
from pit.rl.metrics import metrics
from pit.rl.readings import PolicyAndAnchor
from pit.rl.records import Answers, by_slot
from pit.rl.rloo import Rloo, advantages
from pit.rollout.score import Scorer
from pit.run.folder import Run
from pit.run.session import Session
from pit.run.stage import Services
from pit.seeds import Seed
from pit.stages import rl, sft
from pit.stages.prepare import prepare
from pit.stages.reinforced import make_step
from pit.train.catalogue import FUNCTION, METRICS, SCALED
from pit.train.guard import DivergedError
from pit.train.update import REFUSED, Update
from pit.types import Source

pytestmark = pytest.mark.usefixtures("fresh_stages")

STAGE = rl.IMPROVER_0
CONTROL = Controllers(beta=0.1)
SEED = Seed((0, "test"))
DRAWS = Draws(0, np.arange(4), np.array([Source.BETTER, Source.WORSE] * 2, np.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, synthetic_rows=150),
        rl_improver_0=dataclasses.replace(config.rl_improver_0, gap="centred", no_eos_penalty=0.25),
    )
    run = Run(tmp_path_factory.mktemp("run"), config)
    prepare(run)
    return run


@pytest.fixture(scope="module")
def models(run):
    return STAGE.models(run)


@pytest.fixture(scope="module")
def initial(models):
    return models["start"].params


@pytest.fixture(scope="module")
def step(run, models):
    return make_step(Session(run, STAGE), models)


@pytest.fixture(scope="module")
def scored(step, initial):
    return step.collect(initial, step.fold, DRAWS, CONTROL, SEED)[0]


def measure(step, params, scored, control=CONTROL):
    return step.measure(params, scored.rollout, scored.trees, scored.scores, control)


def with_advantages(scored, advantage):
    """Microbatches of the trees with given advantages."""
    trees = scored.trees
    return [
        {**arrays, "advantage": by_slot(advantage, batch)}
        for batch, arrays in zip(trees.batches, trees.arrays, strict=True)
    ]


def test_more_prompts_than_a_step_has_are_sampled_as_many_at_a_time(step, initial):
    sizes = []

    class Counted(Elsewhere):
        def samples(self, model, ids, *columns, **chosen):
            sizes.append([len(ids), *map(len, columns)])
            return super().samples(model, ids, *columns, **chosen)

    sampler = Counted(step.sampler.closings, step.sampler.capacity, (3, 9))
    prompts = step.prompts(step.fold, DRAWS, SEED)
    at_once = dataclasses.replace(step, sampler=sampler)
    in_blocks = dataclasses.replace(at_once, config=dataclasses.replace(step.config, prompts=3))
    one, other = (each.sample(initial, prompts, SEED, 2).samples for each in (at_once, in_blocks))
    assert sizes == [[4, 4, 4], [3, 3, 3], [1, 1, 1]]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_references_come_from_the_drawn_source(step, scored):
    for g, source in enumerate([1, 2, 1, 2]):
        np.testing.assert_array_equal(scored.rollout.prompts.references[g], step.fold.row(g)[source])


def test_the_reward_scores_the_packed_samples_as_it_scores_them_alone(step, scored):
    prompts, outputs = scored.rollout.prompts, scored.rollout.outputs
    alone = step.reward(Answers(prompts.inputs, prompts.references, outputs))
    np.testing.assert_array_equal(scored.scores, alone)
    raw = step.reward.scorer.gap(prompts.inputs, prompts.references, outputs, "raw", scored.trees.batches)
    packed_again = step.reward.scorer.gap(prompts.inputs, prompts.references, outputs, "raw")
    np.testing.assert_array_equal(raw, packed_again)


def test_kl_to_equal_weights_is_exactly_0_and_rewards_are_the_scores(step, initial, scored):
    measured, samples = measure(step, copy(initial), scored), scored.rollout.samples
    assert np.all(measured.kl_nats == 0)
    assert np.all(measured.penalty_nats == 0)
    np.testing.assert_array_equal(
        measured.reward, scored.scores - np.where(samples.finished, np.float32(0), np.float32(0.25))
    )
    sampled = scored.rollout.sampled
    assert sampled.sum() == samples.length.sum()
    assert 0 < measured.logp_gap_nats[sampled].max() < 1e-4
    assert np.all(measured.logp_gap_nats[~sampled] == 0)


def test_kl_to_other_weights_is_the_difference_of_the_sampled_log_probs(step, initial, scored):
    other = {name: value * jnp.float32(1.05) for name, value in initial.items()}
    measured = measure(step, other, scored)
    assert np.any(measured.kl_nats != 0)
    # At decode the samples were drawn from the anchor's weights; -entropy is the log-prob of a sample.
    expected = -measured.entropy_nats - scored.rollout.samples.logp.sum(axis=2)
    np.testing.assert_allclose(measured.kl_nats, expected, atol=1e-3)
    assert np.all(measure(step, initial, scored).kl_nats == 0)


def test_the_loss_is_minus_advantage_times_the_sampled_log_probs(step, initial, scored):
    advantage = np.arange(8, dtype=np.float32).reshape(4, 2) - np.float32(3)
    loss = jax.jit(step.algorithm.loss)
    total = sum(np.array(loss(initial, arrays)[0]) for arrays in with_advantages(scored, advantage))
    expected = -np.sum(advantage * scored.rollout.samples.logp.sum(axis=2))
    np.testing.assert_allclose(total, [expected, 8], rtol=1e-4)


def test_a_step_makes_the_samples_with_advantage_likelier(step, initial, scored):
    update = Update(step.algorithm.loss, optax.sgd(0.02))
    advantage = np.array([[1, -1]] * 4, np.float32)
    state, _ = update(update.start(copy(initial)), with_advantages(scored, advantage))
    # KL here is the sum of log p_new - log p_old of each sample.
    moved = measure(step, state.params, scored).kl_nats
    assert np.sum(moved * advantage) > 0


def test_a_whole_step_updates_once_with_the_rows_of_its_trees(step, initial, scored):
    """Draws to update: one minibatch, the fold's row in each tree slot, the random numbers those of the step."""
    update, calls = Update(step.algorithm.loss, optax.sgd(0.02)), []

    def recorded(state, arrays, examples):
        calls.append(examples)
        return update(state, arrays)

    draws = DRAWS._replace(step=3, ids=np.array([5, 7, 2, 9]))
    state, totals, result, control = step(update.start(copy(initial)), draws, CONTROL, recorded)
    assert int(state.step) == 1
    assert np.isfinite(float(totals["loss"].sum))
    assert control == CONTROL
    (examples,) = calls
    rows = np.concatenate(examples)
    assert sorted(rows[rows >= 0].tolist()) == [2, 5, 7, 9]
    again, _ = step.collect(initial, step.fold, draws, CONTROL, step.seed.of("step", 3))
    np.testing.assert_array_equal(again.rollout.samples.token, result.rollout.samples.token)
    other, _ = step.collect(initial, step.fold, draws, CONTROL, step.seed.of("step", 4))
    assert np.any(other.rollout.samples.token != result.rollout.samples.token)


def clipped_step(step, **clip):
    """The same step by the clipped algorithm."""
    config = dataclasses.replace(step.config, algorithm="clipped", clip=ClipConfig(**clip))
    algorithm = Clipped(step.graphdef, config, step.sampler.capacity)
    return dataclasses.replace(step, config=config, algorithm=algorithm)


def stepped(step, initial, learning_rate, loss=None):
    """The state after a step, what it reports, and the microbatches of its updates."""
    update, calls = Update(loss or step.algorithm.loss, optax.sgd(learning_rate)), []

    def recorded(state, arrays, examples):
        calls.append((arrays, examples))
        return update(state, arrays)

    state, totals, scored, _ = step(update.start(copy(initial)), DRAWS, CONTROL, recorded)
    return state, totals, scored, calls


def test_one_clipped_update_is_that_of_rloo(step, initial):
    """Equal gradients in exact arithmetic; here to 1e-6 of the largest, as the two losses are two programs."""
    rloo, _, scored, _ = stepped(step, initial, 0.5)
    for level in ("token", "sequence"):
        one = clipped_step(step, epochs=1, minibatches=1, ratio=level)
        state, totals, again, ((arrays, _),) = stepped(one, initial, 0.5)
        np.testing.assert_array_equal(again.rollout.samples.token, scored.rollout.samples.token)
        for name, value in rloo.params.items():
            moved, expected = (np.asarray(x - initial[name]) for x in (state.params[name], value))
            np.testing.assert_allclose(moved, expected, atol=1e-6 * np.abs(expected).max(), err_msg=name)
        assert float(totals["policy/clipfrac_avg"].sum) == 0
        assert abs(float(totals["policy/approxkl_avg"].sum)) < 1e-6
        batch = shapes_by_name(scored.trees.arrays[0])
        made = one.algorithm.shapes(batch, shapes_by_name(scored.measures.anchored[0]))
        assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
            name: (x.shape, x.dtype) for name, x in arrays[0].items()
        }


def shapes_by_name(arrays):
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in arrays.items()}


def test_clipped_updates_take_every_tree_once_an_epoch_against_the_rollouts_log_probs(step, initial):
    many = clipped_step(step, epochs=2, minibatches=2, kl_limit=None)
    state, totals, scored, calls = stepped(many, initial, 2.0)
    assert int(state.step) == 1
    assert scored.values["policy/updates"] == len(calls) == float(totals["refused"].weight) == 4
    assert float(totals["policy/approxkl_avg"].sum) > 0
    assert float(totals["policy/clipfrac_avg"].sum) > 0
    rows = [np.concatenate(examples) for _, examples in calls]
    assert all(np.count_nonzero(of_update >= 0) == 2 for of_update in rows)
    for epoch in (rows[:2], rows[2:]):
        assert sorted(row for of_update in epoch for row in of_update.tolist() if row >= 0) == [0, 1, 2, 3]
    before = many.models.read({**many.frozen, **initial}, scored.trees, 4).logp
    for (arrays,), (examples,) in calls:
        slots = examples >= 0
        np.testing.assert_array_equal(np.asarray(arrays["rollout_logp"])[slots], before[examples[slots]])


def test_no_clipped_update_follows_one_beyond_the_limit(step, initial):
    """The first update measures a KL of 0, the second what the first did."""
    loss = clipped_step(step).algorithm.loss
    for limit, updates in ((1e-9, 2), (1e9, 6)):
        bounded = clipped_step(step, epochs=3, minibatches=2, kl_limit=limit)
        _, _, scored, calls = stepped(bounded, initial, 2.0, loss)
        assert scored.values["policy/updates"] == len(calls) == updates


def test_no_clipped_update_follows_a_refused_one(step):
    algorithm, weight = clipped_step(step, kl_limit=None).algorithm, jnp.float32(1.0)
    assert [algorithm.proceeds({REFUSED: Total(jnp.float32(refused), weight)}) for refused in (0, 1)] == [True, False]


def test_the_curriculum_draws_every_example_once_an_epoch_from_the_asked_sources(step):
    count, examples = step.config.prompts, len(step.fold)
    loader = make_draws(STAGE.section, step.config, examples, seed=SEED, config_hash="", data_hash="", difficulty=None)
    steps = [next(loader) for _ in range(2 * examples)]
    loader.close()
    ids = np.concatenate([draws.ids for draws in steps])
    assert len(ids) == 2 * examples * count
    for epoch in range(2 * count):
        assert sorted(ids[epoch * examples :][:examples].tolist()) == list(range(examples))
    assert set(np.concatenate([draws.sources for draws in steps]).tolist()) == {Source.WORSE, Source.BETTER}


@given(reward=hnp.arrays(np.float32, (3, 4), elements=st.floats(-9, 9, width=32)))
def test_normalised_advantages_have_unit_deviation_or_are_0(reward):
    (plain, one), (unit, scale) = (advantages(jnp.asarray(reward), normalise=choice) for choice in (False, True))
    assert one == 1
    np.testing.assert_allclose(unit, plain * np.float32(scale), rtol=1e-5)
    if plain.std() == 0:
        assert np.all(unit == 0)
    else:
        assert unit.std() == pytest.approx(1, abs=1e-3)
        np.testing.assert_array_equal(np.sign(unit), np.sign(plain))


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_a_kl_in_the_reward_is_charged_by_its_estimator_and_completed_in_the_loss(
    step, models, initial, scored, estimator
):
    kl = dataclasses.replace(step.config.kl, estimator=estimator)
    config = dataclasses.replace(step.config, kl=kl, running_scale=True)
    of = (step.graphdef, config)
    other = dataclasses.replace(
        step,
        config=config,
        models=PolicyAndAnchor(*of, models["anchor"].params, step.sampler.capacity),
        algorithm=Rloo(*of, step.sampler.capacity),
    )
    control = Controllers(beta=0.1, scores=Moments().merged(np.array([0.0, 4.0], np.float32)))
    moved = {name: value * jnp.float32(1.05) for name, value in initial.items()}
    assert np.all(measure(other, initial, scored, control).penalty_nats == 0)
    measured = measure(other, moved, scored, control)
    assert np.any(measured.penalty_nats != measured.kl_nats)
    assert np.all(measured.penalty_nats > 0)
    cut_off = np.where(scored.rollout.samples.finished, np.float32(0), np.float32(0.25))
    expected = scored.scores / np.float32(2) - np.float32(0.1) * measured.penalty_nats - cut_off
    np.testing.assert_allclose(measured.reward, expected, rtol=1e-5, atol=1e-6)

    (minibatch,) = other.algorithm.prepare(scored.trees, measured, control, SEED)
    plain, _ = advantages(jnp.asarray(measured.reward), normalise=False)
    unit, _ = advantages(jnp.asarray(measured.reward), normalise=True)
    for batch, arrays in zip(scored.trees.batches, minibatch.arrays, strict=True):
        there = batch.example_id >= 0
        coefficient = np.asarray(arrays["kl_coefficient"])
        np.testing.assert_allclose(coefficient[there], 0.1 / plain.std(), rtol=1e-5)
        assert np.all(coefficient[~there] == 0)
        np.testing.assert_allclose(arrays["advantage"], by_slot(np.asarray(unit), batch), rtol=1e-5)
        total, _ = other.algorithm.loss(moved, arrays)
        assert np.isfinite(float(total.sum))


def test_metrics_have_the_names_that_the_catalogue_explains(step, scored):
    names = set(metrics(step.config, scored.rollout, scored.scores, scored.measures, CONTROL))
    assert names == set(scored.values)
    groups = ("objective/", "rewards/", "completions/", "rollout/")
    explained = {m.name for m in METRICS if m.name.startswith(groups) and m.stages not in (FUNCTION, SCALED)}
    assert names == explained


def test_the_difference_of_two_plain_scores_is_0_over_the_reference_itself(step, scored):
    prompts, scorer = scored.rollout.prompts, step.reward.scorer
    outputs = [prompts.references, scored.rollout.outputs[0]]
    difference = scorer.difference(prompts.inputs, prompts.references, outputs)
    plain = scorer.quality(prompts.inputs, [*outputs, prompts.references])
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


def test_steps_that_are_not_finite_are_refused_and_end_the_stage(run, monkeypatch):
    """A reward model says NaN of one answer: weights stay, the tree is named, and the third step is the last."""
    gap = Scorer.gap

    def spoiled(self, inputs, references, outputs, form, packed=None):
        scores = gap(self, inputs, references, outputs, form, packed)
        scores[2, 1] = np.nan
        return scores

    monkeypatch.setattr(Scorer, "gap", spoiled)
    section = dataclasses.replace(
        run.config.rl_improver_0, steps=5, normalise=False, running_scale=True, checkpoint_every=1
    )
    run = Run(run.folder, dataclasses.replace(run.config, rl_improver_0=section))
    message = r"^rl-improver-0: loss or gradient of step 3 is not finite, the last of 3 in a row"
    with pytest.raises(DivergedError, match=message):
        STAGE.work(run, Services())
    folder = run.stage_folder(STAGE.name)
    assert not (folder / "done.json").exists()
    causes = [json.loads(path.read_text()) for path in sorted((folder / "refused").iterdir())]
    assert [(cause["stage"], cause["step"]) for cause in causes] == [(STAGE.name, step) for step in (1, 2, 3)]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["refused"], "loss" in line) for line in lines] == [(1, 1.0, False), (2, 1.0, False)]
    visits = read_history(folder)
    assert [cause["examples"] for cause in causes[:2]] == [[int(visit.draws.ids[2])] for visit in visits]
    for cause in causes:
        assert any(np.isnan(value) for value in np.ravel(cause["of_tree"]["advantage"]))
    begun = sft.IMPROVER.fresh(run).params
    with run.checkpoints(STAGE.name, keep=2) as checkpoints:
        restored = checkpoints.restore_params(begun, checkpoints.latest, STAGE.hash(run))
    for name, value in restored.items():
        np.testing.assert_array_equal(value, begun[name])
