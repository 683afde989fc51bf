"""Joints of adapters: what trains, what is frozen and shared, whose adapters a role has, and which inputs they drop."""

import dataclasses

import numpy as np
from test_wiring_resume import resumed
from world import BASE, config, named, run_of, trained_by, worked

from pit.model.adapters import DROPOUT
from pit.run.folder import Run

SECTIONS = ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge", "refresh")
RL_SECTIONS = ("rl_policy", "rl_improver_0", "rl_improver_1", "rl_improver_2")
ADAPTERS = tuple(f"{section}.adapter.rank=2" for section in (*SECTIONS, *RL_SECTIONS))
DROPPING = (*ADAPTERS, *(f"{section}.adapter.dropout=0.25" for section in SECTIONS))
POLICY, GAP, RL = "sft-policy", "reward-gap", "rl-improver-1"


def kept(params):
    """Names of the weights that are the base's."""
    return {name for name, value in params.items() if np.all(np.asarray(value) == BASE)}


def own(params):
    """Names of the adapters and of the head."""
    return {name for name in params if ".adapters." in name or name == "score"}


def test_adapters_and_heads_alone_train():
    for name in (POLICY, GAP, RL):
        world, _ = worked(name, *ADAPTERS)
        trained, frozen = world.updates[name]
        assert set(trained) == own(trained), name
        assert ("score" in trained) == (name == GAP)
        assert sum(".adapters." in weight for weight in trained) == 14
        assert kept(frozen) == set(frozen), name
        prefix = "decoder." if name == GAP else ""
        assert {prefix + weight for weight in run_of(*ADAPTERS).base.params} == set(frozen), name


def test_all_models_of_a_stage_share_one_base():
    settings = (*ADAPTERS, "references=own", "rl_improver_2.anchor=init")
    world, run = worked("rl-improver-2", *settings)
    with world.watched("models"):
        models = named("rl-improver-2").models(run)
    assert set(models) == {"start", "anchor", "reward", "writer", "rewriter"}
    for role, model in models.items():
        prefix = "decoder." if role == "reward" else ""
        for name, value in run.base.params.items():
            assert model.params[f"{prefix}{name}"] is value, (role, name)
        assert set(model.trained) == own(model.params), role
    assert all(models["start"].params[name] is not models["anchor"].params[name] for name in models["start"].trained)


def test_stages_use_the_adapters_of_their_roles():
    world, _ = worked(RL, *ADAPTERS, "rl_improver_1.evaluate_every=1")
    assert world.starts == {RL: "rl-improver-0"}
    assert {kl[1:] for kl in world.kls} == {("rl-improver-0", "sft-improver")}
    assert {scoring.model for scoring in world.scorings} == {"reward-gap"}
    assert {ask.model for ask in world.asks} == {"rl-improver-0", "rl-policy"}
    policy = {name for ask in world.asks for name in ask.weights if ".adapters." not in name}
    assert policy == set(run_of(*ADAPTERS).base.params)
    assert all(set(run_of(*ADAPTERS).base.params) < set(ask.weights) for ask in world.asks)


def test_adapters_start_from_those_that_the_config_names():
    for name, setting, start in (
        ("sft-policy", "seed=0", "fresh"),
        ("sft-improver", "seed=0", "fresh"),
        ("sft-improver", "sft_improver.init=policy", "sft-policy"),
        ("reward-gap", "reward_gap.init=quality", "reward-quality"),
        ("reward-gap", "reward_gap.init=policy", "sft-policy"),
    ):
        world, _ = worked(name, *ADAPTERS, "sft_policy.adapter.dropout=0.5", setting)
        assert world.starts == {name: start}, (name, setting)


def test_held_out_measures_see_the_base_and_the_adapters():
    for name in (POLICY, GAP):
        world, _ = worked(name, *ADAPTERS)
        trained, frozen = world.updates[name]
        assert world.measured[name].keys() == trained.keys() | frozen.keys()
        assert trained_by(world.measured[name]) == "fresh"


def test_results_depend_on_the_base_and_on_the_adapter():
    run = run_of(*ADAPTERS)
    changes = ("base.dtype=bfloat16", "sft_policy.adapter.alpha=4")
    for name in (POLICY, RL):
        hashes = {named(name).hash(run)}
        for change in changes:
            hashes.add(named(name).hash(moved(run, config(*ADAPTERS, change))))
        assert len(hashes) == 3, name
    plain = run_of()
    assert named(POLICY).hash(plain) == named(POLICY).hash(moved(plain, config("base.dtype=bfloat16")))


def moved(run, other):
    """The same data under another config."""
    changed = Run(run.folder, other)
    changed.__dict__.update(tokenizer=run.tokenizer, template=run.template, store=run.store, mesh=run.mesh)
    return changed


def test_checkpoints_name_the_base():
    run, plain = run_of(*ADAPTERS), run_of()
    for name in (POLICY, GAP, RL):
        with named(name).checkpoints(run, keep=1) as checkpoints:
            assert checkpoints._base == run.base_digest != "", name
        with named(name).checkpoints(plain, keep=1) as checkpoints:
            assert checkpoints._base == "", name


def keys(world, name):
    """Random keys of the microbatches of a stage, in order."""
    return [tuple(part[DROPOUT].tolist()) for group in world.of(name) for part in group.arrays]


def test_every_microbatch_drops_inputs_of_its_own():
    used = []
    for name in (POLICY, GAP):
        world, _ = worked(name, *DROPPING, f"{named(name).section}.packing.microbatches=2")
        assert len(keys(world, name)) == 2 * len(world.of(name)) > 4
        used += keys(world, name)
        assert not any(DROPOUT in part for group in world.of(name, "held out") for part in group.arrays)
    assert len(set(used)) == len(used)
    for settings in (ADAPTERS, ()):
        world, _ = worked(POLICY, *settings)
        assert not any(DROPOUT in part for group in world.of(POLICY) for part in group.arrays)
    # In reinforcement learning nothing is dropped, and no key is there.
    world, _ = worked(RL, *DROPPING)
    assert not any(DROPOUT in part for group in world.of(RL) for part in group.arrays)


def test_dropout_resumes_with_the_next_step():
    whole, _ = worked(POLICY, *DROPPING)
    world, _ = resumed(POLICY, 1, *DROPPING)
    assert keys(world, POLICY) == keys(whole, POLICY)[1:]


def test_the_adapter_of_a_stage_is_that_of_its_section():
    settings = config(*ADAPTERS, "reward_gap.adapter.rank=5", "reward_judge.adapter=none")
    assert named("reward-gap").adapter(settings).rank == 5
    assert named("reward-judge").adapter(settings) is None
    assert dataclasses.replace(named(RL).adapter(settings), rank=5) == named("reward-gap").adapter(settings)
