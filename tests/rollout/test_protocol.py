"""The interface of samplers: PIT's own and a second one keep it; a whole RL step and improvement run on the second."""

import dataclasses

import numpy as np
import optax
import pytest
from sampler_double import LOGP, Elsewhere

from pit.config import ImproveConfig
from pit.data.curriculum import Draws
from pit.data.tokens import Tokens
from pit.improve import Models, improve
from pit.model.params import copy
from pit.recipes.demo import tiny
from pit.rl.controllers import Controllers
from pit.rl.step import StaleSamplesError
from pit.rollout.protocol import SamplerProtocol
from pit.rollout.score import ModelScorer
from pit.rollout.strategy import Temperature
from pit.run.folder import Run
from pit.run.session import Session
from pit.seeds import Seed
from pit.stages import rl
from pit.stages.prepare import prepare
from pit.stages.reinforced import make_step
from pit.train.update import Update
from pit.types import Source

pytestmark = pytest.mark.usefixtures("fresh_stages")

STAGE = rl.IMPROVER_0
DRAWS = Draws(4, np.arange(4), np.array([Source.BETTER, Source.WORSE] * 2, np.uint8))
CONTROL = Controllers(beta=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny()
    run = Run(
        tmp_path_factory.mktemp("run"),
        dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic_rows=150)),
    )
    prepare(run)
    return run


@pytest.fixture(scope="module")
def models(run):
    return STAGE.models(run)


def sampler_of(kind, run):
    if kind == "own":
        return run.sampler(run.config.rl_improver_0.rollout)
    return Elsewhere(run.template.closings, run.template.capacity, (200, 300))


@pytest.mark.parametrize("kind", ["own", "elsewhere"])
def test_a_sampler_keeps_the_interface(kind, run, models):
    sampler = sampler_of(kind, run)
    assert isinstance(sampler, SamplerProtocol)
    model, eos = dataclasses.replace(models["start"], version="x@3"), run.template.closings.eos
    x, better, _ = run.fold("rl").columns(range(3))
    for references in (better,) if kind == "own" else (None, better):
        drawn = sampler.samples(model, [5, 6, 7], x, references, n=2, strategy=Temperature(1.0), seed=9)
        assert drawn.version == "x@3"
        assert drawn.token.shape == drawn.logp.shape == drawn.drawn_logp.shape == (3, 2, sampler.capacity)
        beyond = np.arange(sampler.capacity) >= drawn.length[:, :, None]
        for values in (drawn.token, drawn.logp, drawn.drawn_logp):
            assert np.all(values[beyond] == 0)
        assert np.all(drawn.logp[~beyond] < 0)
        assert np.all((drawn.length >= 1) & (drawn.length <= sampler.capacity))
        last = np.take_along_axis(drawn.token, drawn.length[:, :, None] - 1, axis=2)[:, :, 0]
        np.testing.assert_array_equal(drawn.finished, last == eos)
        order = [2, 0, 1]
        moved = None if references is None else references.take(order)
        again = sampler.samples(model, [7, 5, 6], x.take(order), moved, n=2, strategy=Temperature(1.0), seed=9)
        np.testing.assert_array_equal(again.token, drawn.token[order])
        if kind == "own":
            continue  # tests/rollout/test_sample.py has its single answers
        one = sampler.answers(model, [5, 6, 7], x, references, strategy=Temperature(1.0), seed=9)
        assert one.rows() == [row.tolist() for row in drawn.answers()[0]]


def test_a_whole_rl_step_runs_on_a_second_sampler_and_names_the_weights_that_it_trains(run, models):
    sampler = sampler_of("elsewhere", run)
    step = dataclasses.replace(make_step(Session(run, STAGE), models), sampler=sampler)
    update = Update(step.algorithm.loss, optax.sgd(0.02))
    begun = update.start(copy(models["start"].params))
    state, totals, scored, _ = step(begun, DRAWS, CONTROL, lambda state, arrays, _: update(state, arrays))
    assert int(state.step) == 1
    assert np.isfinite(float(totals["loss"].sum))
    assert scored.rollout.samples.version == "rl-improver-0@4"
    assert sampler.handed == ["rl-improver-0@4"]
    sampled = scored.rollout.sampled
    gap = scored.measures.logp_gap_nats
    assert gap[sampled].max() > 0.1, "its log-probs are not those of the trainer, and that is measured"
    assert np.all(scored.rollout.samples.logp[sampled] == LOGP)


def test_samples_of_other_weights_are_refused(run, models):
    stale = Elsewhere(run.template.closings, run.template.capacity, (200, 300), stuck="rl-improver-0@3")
    step = dataclasses.replace(make_step(Session(run, STAGE), models), sampler=stale)
    with pytest.raises(StaleSamplesError) as caught:
        step.collect(models["start"].params, step.fold, DRAWS, CONTROL, Seed((1,)))
    assert str(caught.value) == (
        "samples.version = 'rl-improver-0@3': the step trains 'rl-improver-0@4', and its gradient is that of samples "
        "of these very weights; hand them to the sampler before it draws"
    )


def test_an_improvement_runs_on_a_second_sampler(run, models):
    sampler = sampler_of("elsewhere", run)
    policy = dataclasses.replace(models["start"], version="rl-policy@9")
    improver = dataclasses.replace(models["start"], version="rl-improver-0@9")
    scorer = ModelScorer(models["reward"], run.layout(run.config.reward_gap.packing))
    prompts = run.fold("eval").columns(range(3))[0]
    config = ImproveConfig(iterations=2, batch=4)
    of_run = Models(policy, improver, scorer, sampler)
    paths = list(improve(of_run, prompts, [1, 2, 3], config, seed=Seed((0,)), stop_rule=False))
    assert [path.prompt for path in paths] == prompts.rows()
    assert all(step.answer == step.candidate for path in paths for step in path.steps)
    gaps = scorer.gap(
        prompts, Tokens.of([p.first for p in paths]), [Tokens.of([p.steps[0].candidate for p in paths])], "centred"
    )
    np.testing.assert_allclose([path.steps[0].gap for path in paths], gaps[:, 0], atol=1e-5)
    assert sampler.handed == ["rl-policy@9", "rl-improver-0@9"]
