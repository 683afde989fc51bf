"""Every kind of stage, killed by SIGKILL and SIGTERM at random points, again and again, ends as if it had not been.

Real processes of one run that has everything: two models fine-tuned, three reward models, both of them refreshed, the
policy and three stages of the improver, with a curriculum that learns, a hand-over of sources, an adaptive coefficient,
a running scale and references that improvers rewrote.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run import environment, metrics, pit, require_equal, without_stage

from pit.stages import reward, rl_iterated
from pit.stages.graph import STAGES

LAST = rl_iterated.IMPROVER_2.name

SETTINGS = [
    "sft_policy.steps=23",
    "sft_improver.steps=23",
    "sft_policy.checkpoint_every=4",
    "sft_improver.checkpoint_every=4",
    "reward_quality.steps=9",
    "reward_quality.checkpoint_every=2",
    "reward_gap.steps=9",
    "reward_gap.checkpoint_every=2",
    "reward_judge.steps=4",
    "rl_policy.steps=6",
    "rl_policy.kl.target=0.02",
    "rl_policy.running_scale=true",
    "rl_improver_0.steps=8",
    "rl_improver_0.checkpoint_every=3",
    "rl_improver_0.gap=centred",
    "rl_improver_0.curriculum.strategy=learnability",
    "rl_improver_0.curriculum.examples=8",
    "rl_improver_0.curriculum.difficulty=edit",
    "rl_improver_0.curriculum.lag=3",
    "rl_improver_0.curriculum.prefetch=2",
    "rl_improver_0.kl.target=0.01",
    "rl_improver_0.running_scale=true",
    "rl_improver_1.steps=8",
    "rl_improver_1.gap=symmetric",
    "rl_improver_1.sources.worse=1",
    "rl_improver_1.sources.better=1",
    "rl_improver_1.sources.policy=0",
    "rl_improver_1.curriculum.strategy=staged",
    "rl_improver_1.curriculum.sources_after.policy=1",
    "rl_improver_1.curriculum.handover_step=2",
    "rl_improver_1.curriculum.handover_steps=4",
    "rl_improver_1.reference_temperature=0.5",
    "references=own",
    "rl_improver_2.steps=5",
    "rl_improver_2.passes.least=0",
    "rl_improver_2.passes.most=2",
    "refresh.prompts=12",
    "refresh.steps=9",
    "board.every=2",
]

LONG_S = 3000.0
"""No process here takes as long, however busy the machine."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LONG_S)]

NAMES = tuple(stage.name for stage in STAGES if stage is not reward.JUDGE)

KILLS = 3
"""Of each stage; the one after them runs to its end."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    pit("run", "tiny", "--out", folder, *settings(), timeout_s=LONG_S)
    return folder


def settings() -> list[str]:
    return [word for setting in SETTINGS for word in ("--set", setting)]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(command: list[str], log: Path, number: signal.Signals, dice: random.Random) -> int:
    """Start a stage and send it a signal a random while after a random step; its exit status."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after, deadline = lines(log) + dice.choice([0, 0, 1, 2]), time.monotonic() + LONG_S
    while lines(log) <= after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(dice.uniform(0, 0.4))
    if process.poll() is None:
        process.send_signal(number)
    return process.wait(timeout=LONG_S)


@pytest.mark.parametrize("stage", NAMES)
def test_a_stage_that_is_killed_again_and_again_ends_in_the_same_bits(stage: str, whole: Path, tmp_path: Path) -> None:
    copy, dice = without_stage(whole, stage, tmp_path), random.Random(f"7 {stage}")
    command = [sys.executable, "-m", "pit", stage, "--run", str(copy)]
    folder, statuses = copy / "stages" / stage, []
    for attempt in range(KILLS):
        number = signal.SIGKILL if attempt % 2 == 0 else signal.SIGTERM
        statuses.append(killed(command, folder / "metrics.jsonl", number, dice))
        if (folder / "done.json").exists():
            break
    assert -signal.SIGKILL in statuses, "the stage ended before it was killed"
    pit(*command[3:], timeout_s=LONG_S)
    require_equal(copy, whole, stage)


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_results(whole: Path, tmp_path: Path) -> None:
    """With its stages left behind at work: `kill -9` of `pit run` reaches no other process."""
    folder, dice, missing = tmp_path / "run", random.Random(11), ("refresh", rl_iterated.IMPROVER_1.name, LAST)
    ignored = ("refresh-*", *missing, "results.json", "report.html", "tensorboard", "data")
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(*ignored))
    command = [sys.executable, "-m", "pit", "run", "tiny", "--out", str(folder), *settings()]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(15, 60))
        process.send_signal(number)
        process.wait(timeout=LONG_S)
    pit(*command[3:], timeout_s=LONG_S)
    assert (folder / "refresh" / "pairs.jsonl").read_bytes() == (whole / "refresh" / "pairs.jsonl").read_bytes()
    for stage in (path.name for path in (whole / "stages").iterdir()):
        require_equal(folder, whole, stage)
    one, two = (json.loads((run / "results.json").read_text()) for run in (folder, whole))
    timed = ("seconds", "compile_seconds", "peak_memory_bytes")
    for results in (one, two):
        results["stages"] = [{k: v for k, v in cost.items() if k not in timed} for cost in results["stages"]]
    assert one == two


def test_a_limit_that_stops_saves_says_how_to_resume_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    copy = without_stage(whole, LAST, tmp_path)
    stop = ("--set", "board.truncated.limit=-1", "--set", "board.truncated.action=stop")
    told = []
    for _ in range(2):
        stopped = pit(LAST, "--run", copy, *stop, check=False)
        assert stopped.returncode == 1
        told.append(" ".join(stopped.stderr.split()))
        assert len(metrics(copy, LAST)) == 1
    resume = f"pit {LAST} --run {copy} --set board.truncated.action=warn"
    # The second time it stops before a step.
    for text in told:
        assert f"{LAST}: completions/clipped_ratio = " in text
        assert " at step 1: answers do not end (board.truncated.limit = -1.0); the checkpoint of that step" in text
        assert text.endswith(f"resume regardless with: {resume}")
    assert not (copy / "stages" / LAST / "done.json").exists()
    resumed = pit(*resume.split()[1:], "--set", "board.truncated.limit=-1")
    assert resumed.stdout.count("board.truncated.limit") == 0
    # The board itself remembers other limits; all else is as it was.
    assert metrics(copy, LAST) == metrics(whole, LAST)


def test_what_is_trained_cannot_be_changed_under_way(whole: Path) -> None:
    refused = pit(LAST, "--run", whole, "--set", "rl_improver_2.steps=9", check=False)
    assert refused.returncode == 1
    assert "--set: rl_improver_2 of a run cannot be changed, only workers, board, evaluate" in " ".join(
        refused.stderr.split()
    )
