"""Models that training begins with: fresh, or those that `init` names, in buffers of their own."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.config import override
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.model import Model
from pit.recipes import recipe
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages import reward, rl, sft
from pit.stages.supervised import initial_model

SMALL = dataclasses.replace(twins.LLAMA, layers=1)
REWARDS = [reward.QUALITY, reward.GAP, reward.JUDGE]


@functools.cache
def fresh(kind):
    """The fresh model of a kind."""
    return Model(twins.graph(kind, SMALL), twins.initial(kind, SMALL, seed=1 + (kind is RewardModel)))


@pytest.fixture
def begins(monkeypatch, tmp_path):
    """The model that a stage begins with under settings, and the model that it loads, if any."""

    def load(stage, run):
        model = fresh(stage.trains.module)
        return model.with_params({name: value + jnp.float32(1) for name, value in model.params.items()})

    monkeypatch.setattr(Stage, "fresh", lambda stage, run: fresh(stage.trains.module))
    monkeypatch.setattr(Stage, "load", load)
    return lambda stage, *settings: initial_model(stage, Run(tmp_path, override(recipe("tiny"), settings))).params


def moved(params, kind):
    """Names of the parameters that are not those of the fresh model of a kind."""
    return {name for name, value in fresh(kind).params.items() if np.any(params[name] != value)}


@pytest.mark.parametrize("stage", [sft.POLICY, sft.IMPROVER, *REWARDS], ids=lambda s: s.name)
def test_without_another_start_weights_are_fresh(begins, stage):
    assert moved(begins(stage), RewardModel if stage in REWARDS else Decoder) == set()
    assert stage.inputs(recipe("tiny")) == {}


def test_the_improver_starts_from_the_policy_where_the_config_says_so(begins):
    settings = ["sft_improver.init=policy"]
    assert moved(begins(sft.IMPROVER, *settings), Decoder) == set(fresh(Decoder).params)
    assert sft.IMPROVER.inputs(override(recipe("tiny"), settings)) == {"start": sft.POLICY}


@pytest.mark.parametrize("stage", REWARDS, ids=lambda s: s.name)
def test_a_reward_model_that_starts_from_the_policy_keeps_a_fresh_head(begins, stage):
    settings = [f"{stage.section}.init=policy"]
    params = begins(stage, *settings)
    assert params.keys() == fresh(RewardModel).params.keys()
    assert moved(params, RewardModel) == {f"decoder.{name}" for name in fresh(Decoder).params} != set(params)
    assert stage.inputs(override(recipe("tiny"), settings)) == {"start": sft.POLICY}


def test_the_gap_model_starts_from_r_p_whole(begins):
    assert moved(begins(reward.GAP, "reward_gap.init=quality"), RewardModel) == set(fresh(RewardModel).params)
    assert reward.GAP.inputs(override(recipe("tiny"), ["reward_gap.init=quality"])) == {"start": reward.QUALITY}


def test_a_stage_that_is_start_and_anchor_is_loaded_once_and_training_consumes_a_copy(begins, monkeypatch, tmp_path):
    loads, load = [], Stage.load
    monkeypatch.setattr(Stage, "load", lambda stage, run: loads.append(stage) or load(stage, run))
    models = rl.IMPROVER_0.models(Run(tmp_path, recipe("tiny")))
    assert loads == [sft.IMPROVER, reward.GAP]
    assert models.keys() == {"start", "anchor", "reward"}
    for name, value in models["start"].params.items():
        np.testing.assert_array_equal(value, models["anchor"].params[name])
        assert value is not models["anchor"].params[name]
