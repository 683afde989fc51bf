"""What may be changed of a run that is on, and that optional stages leave the others' hashes alone."""

import dataclasses

import numpy as np
import pytest

from pit.config import ConfigError, Limit, override
from pit.pipeline import nodes_of
from pit.plan import tables
from pit.recipes import RECIPES
from pit.recipes.demo import tiny
from pit.stages.context import STAGES, Run, improver_of, needs_of, require_stage, stages_of
from pit.stages.curriculum import source_weights
from pit.stages.prepare import prepare
from pit.stages.refresh import make_pairs, run_refresh
from pit.stages.rl import run_rl
from pit.train.log import PROGRESS_VARIABLE

PAPER = (
    "sft-policy",
    "sft-improver",
    "reward-quality",
    "reward-gap",
    "reward-judge",
    "rl-policy",
    "rl-first",
    "rl-second",
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


def test_board_and_gates_may_change_and_what_is_trained_may_not(run):
    changed = run.with_settings(["board.truncated.action=stop", "evaluate.gate=off"])
    assert changed.config.board.truncated == Limit(0.5, "stop")
    assert {name: changed.stage_hash(name) for name in STAGES} == {name: run.stage_hash(name) for name in STAGES}
    changed.save_config()
    assert Run.open(run.folder).config == changed.config
    run.save_config()
    with pytest.raises(ConfigError) as caught:
        run.with_settings(["rl_first.steps=9", "board.every=2"])
    assert str(caught.value) == (
        "--set: rl_first of a run cannot be changed, only workers, board, evaluate; start another run with the setting"
    )


def test_optional_stages_are_left_out_by_default_and_change_no_other_stage(run):
    for name, recipe in RECIPES.items():
        # Of the relay RL,1 takes back what RL,0 has given.
        assert stages_of(recipe()) == (PAPER[:-1] if name == "relay" else PAPER)
    less, more = (Run(run.folder, override(run.config, [f"references={how}"])) for how in ("data", "own"))
    assert (stages_of(less.config), stages_of(more.config)) == (PAPER[:-1], (*PAPER, "rl-third"))
    assert [improver_of(each.config) for each in (less, run, more)] == ["rl-first", "rl-second", "rl-third"]
    assert {name: more.stage_hash(name) for name in PAPER} == {name: run.stage_hash(name) for name in PAPER}
    assert needs_of("rl-third", more.config) == ("rl-second", "rl-policy", "reward-gap")


def test_a_stage_that_the_run_has_not_is_refused(run):
    for name in PAPER:
        require_stage(name, run.config)
    shorter = Run(run.folder, override(run.config, ["references=data"]))
    for where, body, name, option in (
        (shorter, run_rl, "rl-second", "references=policy"),
        (run, run_rl, "rl-third", "references=own"),
        (run, run_refresh, "refresh-gap", "refresh.prompts=N, N > 0"),
        (run, run_refresh, "refresh-quality", "refresh.prompts=N, N > 0"),
    ):
        with pytest.raises(ConfigError) as caught:
            body(where, name)
        assert str(caught.value) == (
            f"stage {name}: is optional and no part of this run; start a run with --set {option}"
        )
    with pytest.raises(ConfigError, match=r"^stage refresh-gap: is optional and no part of this run"):
        make_pairs(run, lambda xs, a, b: np.zeros(len(xs), np.int64))


def test_nodes_of_a_run_wait_for_what_they_read(run):
    everything = ["references=own", "refresh.prompts=4", "board.gold=judge"]
    nodes = {node.name: node for node in nodes_of(Run(run.folder, override(run.config, everything)))}
    assert nodes["refresh-pairs"].arguments[:2] == ["refresh", "pairs"]
    assert set(nodes["refresh-pairs"].needs) == {"rl-first", "rl-policy"}
    assert {"refresh-pairs", "reward-gap"} <= set(nodes["refresh-gap"].needs)
    assert {"refresh-gap", "reward-judge", "check"} <= set(nodes["rl-second"].needs)
    assert nodes["rl-third"].arguments[:2] == ["rl", "third"]
    plain = {node.name: node for node in nodes_of(run)}
    assert set(plain) == {*PAPER, "check", "evaluate"}
    assert "reward-judge" not in plain["rl-second"].needs
    ungated = nodes_of(Run(run.folder, override(run.config, ["evaluate.gate=off"])))
    assert "check" not in {name for node in ungated for name in (node.name, *node.needs)}


def test_the_plan_shows_the_stages_that_a_run_has(run):
    for config, names in ((run.config, PAPER), (override(run.config, ["references=own"]), (*PAPER, "rl-third"))):
        stages, _, _, rollouts, resident = tables(config, run.folder)
        assert tuple(stages.columns[0].cells) == names
        for table in (rollouts, resident):
            assert tuple(table.columns[0].cells) == tuple(name for name in names if name.startswith("rl-"))


def test_a_smooth_hand_over_moves_shares_in_a_straight_line():
    curriculum = [
        "rl_second.sources=1,1,0",
        "rl_second.curriculum.strategy=staged",
        "rl_second.curriculum.sources_after=0,0,1",
        "rl_second.curriculum.handover_step=3",
        "rl_second.curriculum.handover_steps=4",
    ]
    config = override(tiny(), curriculum).rl_second
    assert source_weights("rl-second", config) == [
        (0, (0, 1, 1, 0)),
        (3, (0, 3, 3, 2)),
        (4, (0, 1, 1, 2)),
        (5, (0, 1, 1, 6)),
        (6, (0, 0, 0, 1)),
    ]
    assert config.policy_references
    sharp = override(tiny(), [*curriculum, "rl_second.curriculum.handover_steps=0"]).rl_second
    assert source_weights("rl-second", sharp) == [(0, (0, 1, 1, 0)), (3, (0, 0, 0, 1))]
