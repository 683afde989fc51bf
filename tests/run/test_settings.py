"""Settings that may change while a run is on, hashes of stages, optional stages, and the order of jobs."""

import dataclasses
import shutil

import pytest

from pit.config import ConfigError, FieldError, Limit, override
from pit.evaluate.gates import GATE
from pit.pipeline import EVALUATE, JOBS, needs_of
from pit.plan.dry_run import tables
from pit.recipes import RECIPES
from pit.recipes.demo import tiny
from pit.rl.curriculum import source_weights
from pit.run.folder import Run
from pit.run.session import Session
from pit.run.stage import Services, Stage
from pit.stages import refresh, reward, rl, rl_iterated, sft
from pit.stages.change import adopt
from pit.stages.graph import GRAPH, STAGES, improver_of, jobs_of, stage_named, stages_of
from pit.stages.prepare import prepare
from pit.stages.refresh import make_pairs
from pit.train.log import PROGRESS_VARIABLE

PAPER = (
    sft.POLICY,
    sft.IMPROVER,
    reward.QUALITY,
    reward.GAP,
    reward.JUDGE,
    rl.POLICY,
    rl.IMPROVER_0,
    rl_iterated.IMPROVER_1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = dataclasses.replace(tiny(), data=dataclasses.replace(tiny().data, synthetic_rows=150))
    made = Run(tmp_path_factory.mktemp("run"), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROGRESS_VARIABLE, "json")
        made.save_config()
        prepare(made)
    return made


def with_settings(run, *settings):
    return Run(run.folder, override(run.config, settings))


def test_board_and_gates_may_change_and_what_is_trained_may_not(run):
    changed = run.with_settings(["board.truncated.action=stop", "evaluate.gate=off"])
    assert changed.config.board.truncated == Limit(0.5, "stop")
    assert [stage.hash(changed) for stage in STAGES] == [stage.hash(run) for stage in STAGES]
    changed.save_config()
    assert Run.open(run.folder).config == changed.config
    run.save_config()
    with pytest.raises(ConfigError, match=r"^--set: rl_improver_0 of a run cannot be changed, only workers, board, ev"):
        run.with_settings(["rl_improver_0.steps=9", "board.every=2"])


def test_a_hash_follows_what_a_stage_depends_on_and_nothing_else(run):
    def changed(*settings):
        other = with_settings(run, *settings)
        return {stage for stage in PAPER if stage.hash(other) != stage.hash(run)}

    assert changed("workers=1", "improve.iterations=7", "board.every=3") == set()
    assert changed("rl_improver_1.beta=2") == {rl_iterated.IMPROVER_1}
    # Through the roles of the stages after it: start, anchor and writer.
    assert changed("sft_policy.steps=9") == {sft.POLICY, rl.POLICY, rl_iterated.IMPROVER_1}
    assert changed("reward_gap.steps=9") == {reward.GAP, rl.IMPROVER_0, rl_iterated.IMPROVER_1}
    assert changed("seed=9") == set(PAPER)
    assert changed("rl_improver_1.gap=difference") == {rl_iterated.IMPROVER_1}


def test_settings_of_stages_that_have_not_begun_may_change_and_others_may_not(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    mine = Run.open(folder)
    for begun in (sft.POLICY, sft.IMPROVER, reward.GAP, rl.IMPROVER_0):
        mine.stage_folder(begun.name).mkdir(parents=True)
    before = {stage: stage.hash(mine) for stage in PAPER}
    assert adopt(mine) == []
    changed = with_settings(mine, "rl_improver_1.beta=2", "reward_quality.steps=7", "workers=1")
    assert adopt(changed) == [
        f"reward_quality.steps = 7 instead of {run.config.reward_quality.steps}: of a stage that has not begun",
        f"rl_improver_1.beta = 2.0 instead of {run.config.rl_improver_1.beta}: of a stage that has not begun",
    ]
    assert Run.open(folder).config == changed.config
    assert {stage for stage in PAPER if stage.hash(changed) != before[stage]} == {
        reward.QUALITY,
        rl.POLICY,
        rl_iterated.IMPROVER_1,
    }
    for setting, section, job in (
        ("sft_policy.steps=9", "sft_policy", "sft-policy"),
        # What has begun depends on stages that train its start, anchor, reward and references.
        ("rl_improver_0.beta=3", "rl_improver_0", "rl-improver-0"),
    ):
        with pytest.raises(ConfigError) as caught:
            adopt(with_settings(changed, setting))
        assert str(caught.value) == (
            f"{folder}: is the folder of a run with other {section}, on which {job} depends, and it has begun; choose "
            "another --out, or repeat the settings it was started with"
        )
    shutil.rmtree(mine.stage_folder(reward.GAP.name))
    with pytest.raises(ConfigError, match=r"other reward_gap, on which rl-improver-0 depends, and it has begun; "):
        adopt(with_settings(changed, "reward_gap.steps=9"))
    with pytest.raises(ConfigError, match=r"is the folder of a run with other seed, reward_judge; choose another"):
        adopt(with_settings(changed, "seed=4", "reward_judge.steps=9"))
    assert Run.open(folder).config == changed.config


def test_optional_stages_are_left_out_by_default_and_change_no_other_stage(run):
    for name, recipe in RECIPES.items():
        # Of the relay RL,1 takes back what RL,0 has given.
        assert stages_of(recipe()) == (PAPER[:-1] if name == "relay" else PAPER)
    less, more = (with_settings(run, f"references={how}") for how in ("data", "own"))
    assert (stages_of(less.config), stages_of(more.config)) == (PAPER[:-1], (*PAPER, rl_iterated.IMPROVER_2))
    improvers = [rl.IMPROVER_0, rl_iterated.IMPROVER_1, rl_iterated.IMPROVER_2]
    assert [improver_of(one.config) for one in (less, run, more)] == improvers
    assert [stage.hash(more) for stage in PAPER] == [stage.hash(run) for stage in PAPER]


def test_inputs_are_named_by_role(run):
    improver_1, improver_2 = rl_iterated.IMPROVER_1, rl_iterated.IMPROVER_2
    assert rl.POLICY.inputs(run.config) == {"start": sft.POLICY, "anchor": sft.POLICY, "reward": reward.QUALITY}
    assert rl.IMPROVER_0.inputs(run.config) == {"start": sft.IMPROVER, "anchor": sft.IMPROVER, "reward": reward.GAP}
    assert improver_1.inputs(run.config) == {
        "start": rl.IMPROVER_0,
        "anchor": sft.IMPROVER,
        "reward": reward.GAP,
        "writer": rl.POLICY,
    }
    everything = override(run.config, ["references=own", "refresh.prompts=4", "rl_improver_2.anchor=init"])
    assert improver_2.inputs(everything) == {
        "start": improver_1,
        "anchor": improver_1,
        "reward": refresh.GAP,
        "writer": rl.POLICY,
        "rewriter": improver_1,
    }
    difference = override(everything, ["rl_improver_1.gap=difference"])
    assert improver_1.inputs(difference)["reward"] == refresh.QUALITY
    assert "writer" not in improver_1.inputs(
        override(run.config, ["rl_improver_1.sources.policy=0", "rl_improver_1.sources.worse=1"])
    )


def test_a_stage_that_the_run_has_not_is_refused(run):
    for stage in PAPER:
        stage.require(run.config)
    shorter = with_settings(run, "references=data")
    for where, job, option in (
        (shorter, rl_iterated.IMPROVER_1, "references=policy"),
        (run, rl_iterated.IMPROVER_2, "references=own"),
        (run, refresh.GAP, "refresh.prompts=256"),
        (run, refresh.QUALITY, "refresh.prompts=256"),
        (run, refresh.PAIRS, "refresh.prompts=256"),
    ):
        with pytest.raises(ConfigError) as caught:
            job.require(where.config)
        assert str(caught.value) == f"stage {job.name}: is not part of this run; start a run with --set {option}"
        if isinstance(job, Stage):
            with pytest.raises(ConfigError, match="is not part of this run"):
                Session(where, job)
            with pytest.raises(ConfigError, match="is not part of this run"):
                job.work(where, Services())
    with pytest.raises(ConfigError, match=r"^stage refresh-pairs: is not part of this run"):
        make_pairs(run, lambda inputs, first, second: pytest.fail("no pair was asked for"))


def test_jobs_of_a_run_wait_for_what_they_read(run):
    needs = needs_of(
        override(run.config, ["references=own", "refresh.prompts=4", "board.gold=judge", "rlhf=again", "offline=both"])
    )
    assert set(needs[refresh.PAIRS]) == {rl.IMPROVER_0, rl.POLICY}
    assert {refresh.PAIRS, reward.GAP} <= set(needs[refresh.GAP])
    assert {refresh.GAP, reward.JUDGE, GATE} <= set(needs[rl_iterated.IMPROVER_1])
    assert set(needs[EVALUATE]) == {*GRAPH}
    plain = needs_of(run.config)
    assert set(plain) == {*PAPER, GATE, EVALUATE}
    assert reward.JUDGE not in plain[rl_iterated.IMPROVER_1]
    assert [GATE in plain[stage] for stage in PAPER] == [False] * 5 + [True] * 3
    ungated = needs_of(override(run.config, ["evaluate.gate=off"]))
    assert GATE not in {job for pair in ungated.items() for job in (pair[0], *pair[1])}
    for needed in (needs, plain, ungated):
        before = set()
        for job, others in needed.items():
            assert set(others) <= before, "jobs stand in an order in which they can be done"
            before.add(job)


def test_names_of_jobs_and_their_sections_are_distinct():
    assert len({job.name for job in JOBS}) == len(JOBS)
    for stage in STAGES:
        assert stage_named(stage.name) is stage
        assert stage.settings(tiny()) == getattr(tiny(), stage.section)
    assert stage_named("gate") is None
    assert jobs_of(override(tiny(), ["references=own", "refresh.prompts=1", "rlhf=again", "offline=both"])) == GRAPH


def test_the_plan_shows_the_stages_that_a_run_has(run):
    for config, expected in (
        (run.config, PAPER),
        (override(run.config, ["references=own"]), (*PAPER, rl_iterated.IMPROVER_2)),
    ):
        stages, _, _, rollouts, memory = tables(config, run.folder)
        for table in (stages, memory):
            assert list(table.columns[0].cells) == [stage.name for stage in expected]
        assert list(rollouts.columns[0].cells) == [stage.name for stage in expected if stage in expected[5:]]


def test_the_plan_of_a_stage_that_cannot_work_is_refused_under_its_path(run):
    with pytest.raises(FieldError) as caught:
        tables(override(run.config, ["rl_improver_1.algorithm=ppo"]), run.folder)
    assert caught.value.path == "rl_improver_1.algorithm"


def test_a_smooth_hand_over_moves_shares_in_a_straight_line():
    curriculum = [
        "rl_improver_1.sources.worse=1",
        "rl_improver_1.sources.better=1",
        "rl_improver_1.sources.policy=0",
        "rl_improver_1.curriculum.strategy=staged",
        "rl_improver_1.curriculum.sources_after.policy=1",
        "rl_improver_1.curriculum.handover_step=3",
        "rl_improver_1.curriculum.handover_steps=4",
    ]
    config = override(tiny(), curriculum).rl_improver_1
    assert source_weights(config) == [
        (0, (0, 1, 1, 0)),
        (3, (0, 3, 3, 2)),
        (4, (0, 1, 1, 2)),
        (5, (0, 1, 1, 6)),
        (6, (0, 0, 0, 1)),
    ]
    assert config.policy_references
    sharp = override(tiny(), [*curriculum, "rl_improver_1.curriculum.handover_steps=0"]).rl_improver_1
    assert source_weights(sharp) == [(0, (0, 1, 1, 0)), (3, (0, 0, 0, 1))]
    assert source_weights(tiny().rl_policy) == [(0, (1, 0, 0, 0))]
