"""The smallest run with adapters in every stage, end to end: what it saves, shares, resumes and refuses."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_run import checkpoint, environment, latest, pit, require_equal, wait_for_checkpoint, without_stage

from pit.cli import main
from pit.run.folder import Run
from pit.stages import reward, rl, rl_iterated, sft

pytestmark = pytest.mark.slow

SECTIONS = ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge")
RL_SECTIONS = ("rl_policy", "rl_improver_0", "rl_improver_1")
SETTINGS = [
    *(f"{section}.adapter.rank=2" for section in (*SECTIONS, *RL_SECTIONS)),
    *(f"{section}.adapter.dropout=0.1" for section in SECTIONS),
    "sft_policy.steps=40",
    "sft_policy.checkpoint_every=5",
    "rl_improver_0.steps=6",
    "rl_improver_0.kl.estimator=full",
    "sft_improver.init=policy",
    "reward_gap.init=quality",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    result = pit("run", "tiny", "--out", folder, *[word for s in SETTINGS for word in ("--set", s)], timeout_s=550)
    assert "done  evaluate" in result.stdout
    return folder


def test_checkpoints_hold_adapters_and_heads_alone(run: Path) -> None:
    for stage in (sft.POLICY, reward.GAP, rl_iterated.IMPROVER_1):
        names = [name for name in checkpoint(run, stage.name) if name.startswith("params.")]
        heads = [name for name in names if name.endswith("score")]
        assert len(heads) == (stage is reward.GAP)
        assert all(".adapters." in name for name in names if name not in heads)
        assert len(names) - len(heads) == 14


def test_adapters_of_every_stage_differ_from_those_that_it_started_from(run: Path) -> None:
    for stage, start in ((sft.IMPROVER, sft.POLICY), (reward.GAP, reward.QUALITY), (rl.IMPROVER_0, sft.IMPROVER)):
        one, other = (checkpoint(run, each.name) for each in (stage, start))
        moved = [name for name in other if name.endswith(".b") and name.startswith("params.")]
        assert len(moved) == 7
        assert all(np.any(one[name] != other[name]) for name in moved), stage.name


def test_the_models_of_a_stage_hold_one_base(run: Path) -> None:
    opened = Run.open(run)
    before = {id(array) for array in jax.live_arrays()}
    models = rl_iterated.IMPROVER_1.models(opened)
    live = [array for array in jax.live_arrays() if id(array) not in before]
    trained = [value for model in models.values() for value in model.trained.values()]
    assert len(models) == 4
    assert sum(array.nbytes for array in live) == sum(
        value.nbytes for value in (*opened.base.params.values(), *trained)
    )
    table = opened.base.params["embedding"].shape
    assert sum(array.shape == table for array in live) == 1


@pytest.mark.parametrize("stage", [sft.POLICY.name, rl.IMPROVER_0.name])
def test_killed_and_resumed_equals_uninterrupted(stage: str, run: Path, tmp_path: Path) -> None:
    copy = without_stage(run, stage, tmp_path)
    command = [sys.executable, "-m", "pit", stage, "--run", str(copy)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = wait_for_checkpoint(process, copy / "stages" / stage / "checkpoints")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    pit(stage, "--run", copy)
    assert latest(copy, stage) > saved
    require_equal(copy, run, stage)


def test_a_checkpoint_of_another_base_is_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    before = Run.open(copy).base_digest
    config["base"]["dtype"] = "bfloat16"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        main([sft.POLICY.name, "--run", str(copy)])
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    after = Run.open(copy).base_digest
    assert f"base = '{before}': its adapters were trained on that base, but the run has base '{after}'" in said


def test_improve_answers_with_adapters(run: Path, tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "Describe this red lamp."}) + "\n")
    main(["improve", "--run", str(run), "--input", str(source), "--output", str(sink), "--iterations", "1"])
    (row,) = map(json.loads, sink.read_text().splitlines())
    assert len(row["answers"]) == 2
