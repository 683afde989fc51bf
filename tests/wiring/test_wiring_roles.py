"""Joints between stages: folds, trees, roles, hashes, order and the gate, as a recording run sees them.

A little over 400 lines, because the inputs of all stages are written down by hand in one table.
"""

import itertools

import numpy as np
import pytest
from world import NUMBER, STAGES, World, config, named, run_of, worked

from pit.config import override
from pit.evaluate import sensitivity
from pit.evaluate.gates import GATE
from pit.pipeline import EVALUATE, needs_of
from pit.run.stage import ANCHORED
from pit.stages import refresh
from pit.stages.graph import improver_of, jobs_of, stages_of

FOLDS = {
    "sft-policy": "sft",
    "sft-improver": "sft",
    "reward-quality": "reward",
    "reward-gap": "reward",
    "reward-judge": "judge",
    "rl-policy": "rl",
    "rl-improver-0": "rl",
    "refresh-quality": "reward",
    "refresh-gap": "reward",
    "rl-improver-1": "rl",
    "rl-improver-2": "rl",
    "rl-policy-again": "rl",
    "dpo-policy": "reward",
    "srpo-improver": "reward",
}
"""The fold that each stage may learn from; the eval fold is measured on, and learned from by none."""

OFFLINE = ("dpo-policy", "srpo-improver")

PAPER = ("sft-policy", "sft-improver", "reward-quality", "reward-gap", "reward-judge", "rl-policy", "rl-improver-0")

INPUTS = {
    (): {
        "sft-policy": {},
        "sft-improver": {},
        "reward-quality": {},
        "reward-gap": {},
        "reward-judge": {},
        "rl-policy": {"start": "sft-policy", "anchor": "sft-policy", "reward": "reward-quality"},
        "rl-improver-0": {"start": "sft-improver", "anchor": "sft-improver", "reward": "reward-gap"},
        "rl-improver-1": {
            "start": "rl-improver-0",
            "anchor": "sft-improver",
            "reward": "reward-gap",
            "writer": "rl-policy",
        },
    },
    ("reward_gap.init=policy", "reward_quality.init=policy", "sft_improver.init=policy"): {
        "sft-improver": {"start": "sft-policy"},
        "reward-quality": {"start": "sft-policy"},
        "reward-gap": {"start": "sft-policy"},
        "reward-judge": {},
    },
    ("rlhf=again",): {
        "rl-policy": {"start": "sft-policy", "anchor": "sft-policy", "reward": "reward-quality"},
        "rl-policy-again": {"start": "rl-policy", "anchor": "sft-policy", "reward": "reward-quality"},
    },
    ("rlhf=again", "rl_policy.anchor=init", "refresh.prompts=8"): {
        "rl-policy": {"start": "sft-policy", "anchor": "sft-policy", "reward": "reward-quality"},
        "rl-policy-again": {"start": "rl-policy", "anchor": "rl-policy", "reward": "refresh-quality"},
    },
    ("offline=both",): {
        "dpo-policy": {"start": "sft-policy", "anchor": "sft-policy"},
        "srpo-improver": {"start": "sft-improver", "anchor": "sft-improver"},
        "rl-policy": {"start": "sft-policy", "anchor": "sft-policy", "reward": "reward-quality"},
    },
    ("reward_gap.init=base", "reward_judge.init=policy"): {"reward-gap": {}, "reward-judge": {"start": "sft-policy"}},
    (
        "references=own",
        "refresh.prompts=8",
        "reward_gap.init=quality",
        "rl_improver_1.anchor=init",
        "rl_improver_2.anchor=init",
        "rl_improver_2.passes.least=1",
    ): {
        "reward-gap": {"start": "reward-quality"},
        "refresh-quality": {"start": "reward-quality", "writer": "rl-policy", "rewriter": "rl-improver-0"},
        "refresh-gap": {"start": "reward-gap", "writer": "rl-policy", "rewriter": "rl-improver-0"},
        "rl-improver-0": {"start": "sft-improver", "anchor": "sft-improver", "reward": "reward-gap"},
        "rl-improver-1": {
            "start": "rl-improver-0",
            "anchor": "rl-improver-0",
            "reward": "refresh-gap",
            "writer": "rl-policy",
        },
        "rl-improver-2": {
            "start": "rl-improver-1",
            "anchor": "rl-improver-1",
            "reward": "refresh-gap",
            "writer": "rl-policy",
            "rewriter": "rl-improver-1",
        },
    },
    ("references=own", "refresh.prompts=8", "rl_improver_0.gap=difference", "rl_improver_1.gap=difference"): {
        "rl-improver-0": {"start": "sft-improver", "anchor": "sft-improver", "reward": "reward-quality"},
        "rl-improver-1": {
            "start": "rl-improver-0",
            "anchor": "sft-improver",
            "reward": "refresh-quality",
            "writer": "rl-policy",
        },
        "rl-improver-2": {
            "start": "rl-improver-1",
            "anchor": "sft-improver",
            "reward": "refresh-gap",
            "writer": "rl-policy",
            "rewriter": "rl-improver-1",
        },
    },
    (
        "references=own",
        "rl_improver_0.sources.policy=1",
        "rl_improver_1.passes.most=2",
        "rl_improver_2.passes.least=0",
        "rl_improver_2.passes.most=0",
    ): {
        "rl-improver-0": {
            "start": "sft-improver",
            "anchor": "sft-improver",
            "reward": "reward-gap",
            "writer": "rl-policy",
        },
        "rl-improver-1": {
            "start": "rl-improver-0",
            "anchor": "sft-improver",
            "reward": "reward-gap",
            "writer": "rl-policy",
            "rewriter": "rl-improver-0",
        },
        "rl-improver-2": {
            "start": "rl-improver-1",
            "anchor": "sft-improver",
            "reward": "reward-gap",
            "writer": "rl-policy",
        },
    },
}
"""By settings and stage: the stages of its inputs, by role, written down by hand."""

EVERYTHING = ("references=own", "refresh.prompts=8", "reward_gap.init=quality", "board.gold=judge")


def names(stages):
    return tuple(stage.name for stage in stages)


def test_every_stage_names_its_inputs_by_role():
    for settings, expected in INPUTS.items():
        for name, roles in expected.items():
            inputs = named(name).inputs(config(*settings))
            assert {role: stage.name for role, stage in inputs.items()} == roles, (settings, name)


def test_stages_use_the_models_of_their_roles():
    """The models that training, sampling and scoring really met, under settings in which all roles differ."""
    for settings, expected in INPUTS.items():
        for name, roles in expected.items():
            if "reward" not in roles or (settings and name == "rl-improver-0" and "writer" not in roles):
                continue
            world, _ = worked(name, *settings, f"{named(name).section}.evaluate_every=0")
            assert world.starts == {name: roles["start"]}, (settings, name)
            assert {kl[1:] for kl in world.kls} == {(roles["start"], roles["anchor"])}, (settings, name)
            assert {scoring.model for scoring in world.scorings} == {roles["reward"]}, (settings, name)
            samples = named(name).settings(config(*settings)).samples
            models = {ask.model for ask in world.asks if ask.n == samples}
            assert models == {roles["start"]}, (settings, name)
            others = {ask.model for ask in world.asks if ask.n != samples}
            assert others == {roles[role] for role in ("writer", "rewriter") if role in roles}, (settings, name)


def test_supervised_stages_start_from_the_weights_that_their_config_names():
    for name, setting, start in (
        ("sft-policy", "seed=0", "fresh"),
        ("sft-improver", "sft_improver.init=policy", "sft-policy"),
        ("reward-gap", "reward_gap.init=quality", "reward-quality"),
        ("reward-gap", "reward_gap.init=policy", "sft-policy"),
    ):
        world, _ = worked(name, *([] if start == "fresh" else [setting]))
        assert world.starts == {name: start}


def expected_trees(name, row, closings):
    """Tokens of the tree of a row of the store, depth first: the layout of the paper's stages, written down by hand."""
    (x, better, worse), (i, r, o) = ([part.tolist() for part in row]), closings
    pair = [*x, i, *better, o, *worse, o]
    orders = [*x, i, *better, r, *better, o, *worse, o, *worse, r, *better, o, *worse, o]
    return {
        "sft-policy": [*x, i, *better, o],
        "sft-improver": [*x, i, *worse, r, *better, o],
        "reward-quality": pair,
        "reward-judge": pair,
        "reward-gap": orders,
        "dpo-policy": pair,
        "srpo-improver": orders,
    }[name]


def places_of(tokens, rows):
    """Return (row, first) where the tokens stand in the rows."""
    width = len(tokens)
    windows = np.lib.stride_tricks.sliding_window_view(rows, width, axis=1)
    return np.argwhere((windows == np.array(tokens)).all(axis=-1)).tolist()


def test_supervised_stages_train_on_trees_of_their_fold():
    for name in ("sft-policy", "sft-improver", "reward-quality", "reward-judge", "reward-gap", *OFFLINE):
        world, run = worked(name, "offline=both")
        fold = run.store.fold(FOLDS[name])
        trees = 0
        for group in world.of(name):
            for arrays, examples in zip(group.arrays, group.examples, strict=True):
                for example in (i for i in examples if i >= 0):
                    tokens = expected_trees(name, fold.row(example), world.closings)
                    assert places_of(tokens, arrays["token"]), (name, example)
                    trees += 1
        assert trees > 8


def test_fine_tuning_learns_the_better_answer_alone():
    for name in ("sft-policy", "sft-improver"):
        world, run = worked(name)
        fold = run.store.fold("sft")
        for group in world.of(name):
            for arrays, examples in zip(group.arrays, group.examples, strict=True):
                weight = np.zeros_like(arrays["loss_weight"])
                for example in (i for i in examples if i >= 0):
                    tokens = expected_trees(name, fold.row(example), world.closings)
                    learned = len(fold.row(example)[1]) + 1
                    for row, first in places_of(tokens, arrays["token"]):
                        weight[row, first + len(tokens) - learned : first + len(tokens)] = 1
                np.testing.assert_array_equal(weight, arrays["loss_weight"])


def test_offline_rivals_learn_both_answers_of_a_pair_against_the_model_that_they_start_from():
    for name, start, outputs in (("dpo-policy", "sft-policy", 2), ("srpo-improver", "sft-improver", 4)):
        world, run = worked(name, "offline=both")
        assert world.starts == {name: start}
        assert {anchor for _, _, anchor in world.kls} == {start}
        fold, (_, _, eos) = run.store.fold("reward"), world.closings
        for group in (*world.of(name), *world.of(name, "held out")):
            for arrays in group.arrays:
                assert arrays[ANCHORED].shape == arrays["leaf"].shape[:2] == (len(arrays["leaf"]), outputs)
        for group in world.of(name):
            for arrays, examples in zip(group.arrays, group.examples, strict=True):
                learned = [sum(len(fold.row(i)[column]) + 1 for column in (1, 2)) for i in examples if i >= 0]
                assert arrays["loss_weight"].sum() == sum(learned) * outputs / 2
                assert (arrays["token"][arrays["loss_weight"] > 0] == eos).sum() == len(learned) * outputs


def test_held_out_measures_are_of_the_eval_fold_alone():
    for name in ("sft-policy", "sft-improver", "reward-quality", "reward-judge", *OFFLINE):
        world, run = worked(name, "offline=both")
        (held_out,) = world.of(name, "held out")
        fold = run.store.fold("eval")
        count = min(named(name).settings(run.config).evaluate_trees, len(fold))
        rows = [arrays["token"] for arrays in held_out.arrays]
        for example in range(count):
            tokens = expected_trees(name, fold.row(example), world.closings)
            assert any(places_of(tokens, row) for row in rows), (name, example)


def test_rl_stages_draw_prompts_of_the_rl_fold_and_measure_on_the_eval_fold():
    for name in ("rl-policy", "rl-improver-0", "rl-improver-1"):
        world, run = worked(name)
        samples = named(name).settings(run.config).samples
        asks = [ask for ask in world.asked(name) if ask.n == samples]
        *training, last = asks
        assert len(training) == named(name).settings(run.config).steps
        for ask, fold in [*((ask, "rl") for ask in training), (last, "eval")]:
            for example, prefix in zip(ask.ids, ask.prefixes, strict=True):
                prompt = run.store.fold(fold).row(example)[0].tolist()
                assert prefix[: len(prompt) + 1] == [*prompt, world.closings[0]], (name, fold)
        trained = [i for group in world.of(name) for slots in group.examples for i in slots if i >= 0]
        assert sorted(trained) == sorted(i for ask in training for i in ask.ids)


def test_references_come_from_the_sources_that_the_config_weighs():
    """Of the data the worse answer or the better one; of the policy what its writer answered in the same step."""
    for settings, source in (
        (("rl_improver_0.sources.better=0",), 2),
        (("rl_improver_0.sources.worse=0",), 1),
        (("rl_improver_0.sources.better=0", "rl_improver_0.sources.worse=0", "rl_improver_0.sources.policy=1"), None),
    ):
        world, run = worked("rl-improver-0", *settings)
        fold, (close_input, close_reference, _) = run.store.fold("rl"), world.closings
        asks = world.asked("rl-improver-0")[:-1] if source else world.asked("rl-improver-0")[:-2]
        writers = [ask for ask in asks if ask.n == 1]
        improvers = [ask for ask in asks if ask.n != 1]
        assert len(writers) == (0 if source else len(improvers))
        for step, ask in enumerate(improvers):
            for g, (example, prefix) in enumerate(zip(ask.ids, ask.prefixes, strict=True)):
                row = fold.row(example)
                reference = row[source].tolist() if source else answer(writers[step], g, world.closings[2])
                assert prefix == [*row[0].tolist(), close_input, *reference, close_reference]


def answer(ask, g, eos):
    """Contents of the first sample of a prompt."""
    tokens = [int(t) for t in ask.tokens[g, 0] if t]
    return tokens[:-1] if tokens[-1] == eos else tokens


def test_rewritten_references_went_through_the_improver_of_the_stage_before():
    settings = ("references=own", "rl_improver_2.passes.least=1", "rl_improver_2.passes.most=1")
    world, run = worked("rl-improver-2", *settings)
    asks, eos = world.asked("rl-improver-2"), world.closings[2]
    for written, rewritten, improved in zip(asks[::3], asks[1::3], asks[2::3], strict=True):
        assert (written.model, rewritten.model, improved.model) == ("rl-policy", "rl-improver-1", "rl-improver-1")
        for g in range(len(written.ids)):
            head = [*written.prefixes[g]]
            first, second = answer(written, g, eos), answer(rewritten, g, eos)
            assert rewritten.prefixes[g] == [*head, *first, world.closings[1]]
            assert improved.prefixes[g] == [*head, *second, world.closings[1]]
    assert len(asks) == 3 * (named("rl-improver-2").settings(run.config).steps + 1)


def test_references_are_sampled_at_their_own_temperature():
    for given, expected in (("none", 0.75), ("0.5", 0.5)):
        settings = ("rl_improver_1.temperature=0.75", f"rl_improver_1.reference_temperature={given}")
        world, _ = worked("rl-improver-1", *settings)
        assert {ask.temperature for ask in world.asks if ask.n == 1} == {expected}
        assert {ask.temperature for ask in world.asks if ask.n != 1} == {0.75}


def closure(inputs):
    """Return the stages whose result depends on each stage, by hand-written inputs."""
    later = {name: {name} for name in inputs}
    for _ in inputs:
        for name, roles in inputs.items():
            for source in set(roles.values()):
                later[source] |= later[name]
    return later


def test_a_hash_changes_exactly_where_an_input_does():
    asked = ("references=own", "refresh.prompts=8", "reward_gap.init=quality")
    run = run_of(*asked)
    inputs = {name: dict(roles) for name, roles in INPUTS[()].items()}
    inputs["reward-gap"] = {"start": "reward-quality"}
    refreshed = {"writer": "rl-policy", "rewriter": "rl-improver-0"}
    inputs["refresh-quality"] = {"start": "reward-quality", **refreshed}
    inputs["refresh-gap"] = {"start": "reward-gap", **refreshed}
    inputs["rl-improver-1"] |= {"reward": "refresh-gap"}
    inputs["rl-improver-2"] = {**inputs["rl-improver-1"], "start": "rl-improver-1", "rewriter": "rl-improver-1"}
    inputs |= INPUTS["offline=both",]
    inputs["rl-policy-again"] = {"start": "rl-policy", "anchor": "sft-policy", "reward": "refresh-quality"}
    later = closure(inputs)
    before = {stage.name: stage.hash(run) for stage in STAGES}
    assert len(set(before.values())) == len(before)
    changes = {f"{stage.section}.optimizer.clip_norm=3": {stage.name} for stage in STAGES if stage.section != "refresh"}
    changes["rl_policy.optimizer.clip_norm=3"] = {"rl-policy", "rl-policy-again"}
    changes["refresh.optimizer.clip_norm=3"] = {"refresh-quality", "refresh-gap"}
    changes |= {"seed=1": set(NUMBER), "policy.layers=2": {"sft-policy", "sft-improver"}, "mesh.data=2": set(NUMBER)}
    changes["reward_model.layers=2"] = {"reward-quality", "reward-gap", "reward-judge"}
    changes |= {"evaluate.prompts=7": set(), "board.every=3": set(), "workers=1": set(), "improve.iterations=9": set()}
    for setting, first in changes.items():
        changed = run_of(*asked, setting)
        assert changed.config != run.config
        after = {stage.name: stage.hash(changed) for stage in STAGES}
        moved = {name for name in before if after[name] != before[name]}
        assert moved == set().union(*(later[name] for name in first), first), setting


def test_a_stage_waits_for_its_inputs_its_gate_and_its_gold():
    run = run_of(*EVERYTHING)
    needs = {job.name: set(names(before)) for job, before in needs_of(run.config).items()}
    for stage in stages_of(run.config):
        inputs = set(names(stage.inputs(run.config).values()))
        assert inputs <= needs[stage.name]
        rewarded = stage.name.startswith("rl-")
        assert ("gate" in needs[stage.name]) == rewarded
        assert ("reward-judge" in needs[stage.name]) == rewarded
        assert ("refresh-pairs" in needs[stage.name]) == stage.name.startswith("refresh-")
    assert needs["gate"] == {"reward-quality", "reward-gap"}
    assert needs["refresh-pairs"] == {"rl-policy", "rl-improver-0"}
    assert needs[EVALUATE.name] == set(names(jobs_of(run.config)))
    ungated = override(run.config, ["evaluate.gate=off", "board.gold=auto"])
    assert GATE not in needs_of(ungated)
    assert "reward-judge" not in names(needs_of(ungated)[named("rl-policy")])


def test_the_jobs_of_a_config_are_those_that_it_asks_for():
    for settings, more in (
        (("references=data",), ()),
        ((), ("rl-improver-1",)),
        (("references=own",), ("rl-improver-1", "rl-improver-2")),
        (("refresh.prompts=4",), ("refresh-pairs", "refresh-quality", "refresh-gap", "rl-improver-1")),
        (("offline=dpo",), ("rl-improver-1", "dpo-policy")),
        (("offline=srpo", "rlhf=again"), ("rl-improver-1", "rl-policy-again", "srpo-improver")),
    ):
        chosen = config(*settings)
        assert names(jobs_of(chosen)) == (*PAPER, *more)
        assert improver_of(chosen).name == [name for name in (*PAPER, *more) if name.startswith("rl-improver")][-1]


def test_every_job_needs_only_jobs_before_it():
    for settings in (*INPUTS, EVERYTHING):
        order = list(needs_of(config(*settings)))
        for job, before in needs_of(config(*settings)).items():
            assert all(order.index(other) < order.index(job) for other in before), (settings, job.name)


def test_refreshed_models_are_the_last_ones_only_where_the_run_refreshes_them():
    for settings, quality, gap in (
        ((), "reward-quality", "reward-gap"),
        (("refresh.prompts=4",), "refresh-quality", "refresh-gap"),
    ):
        last = refresh.last_quality(config(*settings)), refresh.last_gap(config(*settings))
        assert names(last) == (quality, gap)


def test_the_gate_asks_the_reward_models_of_the_data_about_the_eval_fold():
    """R_P is right where the sum of tokens says so, R_PIT where the better answer is the longer one."""
    run = run_of("refresh.prompts=4")
    world = World()
    world.score = lambda model, path: float(sum(path[-1])) if model == "reward-quality" else float(len(path[-1]))
    with world.watched("gate"):
        pairs = sensitivity.held_out_pairs(run)
        rows = {row.model: row.accuracy for row in sensitivity.compared(run, pairs)}
    fold = run.store.fold("eval")
    triples = [[part.tolist() for part in fold.row(i)] for i in range(run.config.evaluate.sensitivity_prompts)]
    assert [list(row) for row in zip(*pairs[sensitivity.HELD_OUT], strict=True)] == triples
    longer = np.mean([len(better) > len(worse) for _, better, worse in triples])
    assert rows["R_P"] == np.mean([sum(better) > sum(worse) for _, better, worse in triples])
    assert rows["R_PIT symmetric"] == longer
    signs = [np.sign(len(better) - len(worse)) for _, better, worse in triples]
    assert rows["R_PIT centred"] == pytest.approx(float(np.mean(signs) + 1) / 2)
    assert {scoring.model for scoring in world.scorings} == {"reward-quality", "reward-gap"}
    assert world.folds == {"gate": ["eval"]}


def test_every_stage_has_a_line_here():
    assert set(FOLDS) == set(NUMBER) == {stage.name for stage in STAGES}
    assert {name for expected in INPUTS.values() for name in expected} == set(FOLDS)
    for stage in STAGES:
        assert stage.fold == FOLDS[stage.name]
    assert len(set(itertools.chain(FOLDS.values(), ["eval"]))) == 5
