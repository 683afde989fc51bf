"""One, two and four processes through every stage, on every mesh of four devices; killed, and resumed by others."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from many import LONG_S, Together, finished, metrics, require_close

from pit.config import override
from pit.recipes.demo import tiny
from pit.run.folder import Run
from pit.stages import reward, rl, sft
from pit.stages.graph import stages_of
from pit.stages.prepare import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * LONG_S)]

PROGRAM = Path(__file__).parent / "stages_together.py"

SETTINGS = [
    "policy.kv_heads=2",
    "reward_model.kv_heads=2",
    "sft_policy.steps=14",
    "sft_policy.checkpoint_every=5",
    "references=own",
    "rl_improver_0.steps=6",
    "rl_improver_0.checkpoint_every=2",
    "rl_improver_0.gap=centred",
    "rl_improver_0.curriculum.strategy=learnability",
    "rl_improver_0.curriculum.examples=8",
    "rl_improver_0.curriculum.difficulty=margin",
    "rl_improver_0.curriculum.lag=2",
    "rl_improver_0.curriculum.prefetch=1",
    "rl_improver_0.kl.target=0.01",
    "rl_improver_0.running_scale=true",
    "rl_improver_1.gap=symmetric",
    "rl_improver_1.kl.estimator=full",
    "refresh.prompts=8",
    "refresh.steps=2",
]
DATA = "mesh.data=4"
MESHES = [
    "mesh.data=4",
    "mesh.fsdp=4",
    "mesh.data=2,mesh.fsdp=2",
    "mesh.data=2,mesh.tensor=2",
    "mesh.fsdp=2,mesh.tensor=2",
    "mesh.tensor=4,tokenizer.vocab_size=448,policy.heads=4,policy.kv_heads=4,reward_model.heads=4,"
    "reward_model.kv_heads=4",
]
"""Every shape of a mesh over four devices."""


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def record(folder: Path, stage: str) -> dict[str, object]:
    made = json.loads((folder / "stages" / stage / "done.json").read_text())
    return {name: made[name] for name in ("hash", "steps", "tokens")}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four processes, a device each."""
    folder = tmp_path_factory.mktemp("four") / "run"
    finished(["-m", "pit", "run", "tiny", "--out", folder, *words(DATA, *SETTINGS)], 4)
    return folder


def test_a_run_of_four_processes_leaves_what_a_run_leaves(four: Path) -> None:
    assert (four / "report.html").exists()
    assert json.loads((four / "results.json").read_text())["device"] == "4 x cpu"


@pytest.mark.parametrize("count", [1, 2])
def test_other_numbers_of_processes_draw_and_measure_the_same(count: int, four: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished(["-m", "pit", "run", "tiny", "--out", folder, *words(DATA, *SETTINGS)], count, devices=4 // count)
    for stage in stages_of(Run.open(four).config):
        require_close(folder, four, stage.name)
        assert record(folder, stage.name) == record(four, stage.name)


def test_the_same_number_of_processes_gives_the_same_bits(four: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(four, folder, ignore=shutil.ignore_patterns("stages"))
    finished(["-m", "pit", sft.POLICY.name, "--run", folder], 4)
    assert metrics(folder, sft.POLICY.name) == metrics(four, sft.POLICY.name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data are prepared, on a mesh of four rows."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    prepare(Run(folder, override(tiny(), [DATA, *SETTINGS])))
    return folder


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_is_that_of_one_process(mesh: str, tmp_path: Path) -> None:
    names = [sft.POLICY.name, reward.GAP.name, rl.IMPROVER_0.name]
    settings = [*SETTINGS, *mesh.split(","), "sft_policy.steps=3", "rl_improver_0.steps=4"]
    prepare(Run(tmp_path / "one", override(tiny(), settings)))
    shutil.copytree(tmp_path / "one", tmp_path / "four")
    finished([PROGRAM, tmp_path / "one", *names], 1, devices=4)
    finished([PROGRAM, tmp_path / "four", *names], 4)
    for name in names:
        require_close(tmp_path / "four", tmp_path / "one", name)


KILLS = 20

LONGER = ["sft_policy.steps=400", "sft_policy.checkpoint_every=3", "rl_improver_0.steps=60"]
"""More steps than are done between all the kills."""


@pytest.mark.parametrize("stage", [sft.POLICY.name, rl.IMPROVER_0.name])
def test_killed_twenty_times_and_resumed_by_other_numbers_they_do_the_same(stage: str, tmp_path: Path) -> None:
    folder, whole, dice = tmp_path / "run", tmp_path / "whole", random.Random(stage)
    prepare(Run(folder, override(tiny(), [DATA, *SETTINGS, *LONGER])))
    shutil.copytree(folder, whole)
    finished([PROGRAM, whole, stage], 1, devices=4)
    log, done = folder / "stages" / stage / "metrics.jsonl", folder / "stages" / stage / "done.json"
    kills = 0
    while kills < KILLS and not done.exists():
        count = dice.choice([2, 4])
        lines = (log.read_bytes().count(b"\n") if log.exists() else 0) + dice.choice([1, 2])
        with Together([PROGRAM, folder, stage], count, devices=4 // count, PIT_HEARTBEAT_S="10") as together:
            victim = dice.randrange(count)
            together.signal_after(log, lines, victim, signal.SIGKILL, later_s=dice.uniform(0, 0.3))
            statuses, outputs = together.wait(300)
        if done.exists():
            break
        kills += 1
        print(f"kill {kills}: process {victim} of {count}, statuses {statuses}")
        assert statuses[victim] == -signal.SIGKILL
        assert 0 not in statuses, outputs
    finished([PROGRAM, folder, stage], 1, devices=4)
    require_close(folder, whole, stage)
    assert record(folder, stage) == record(whole, stage)
    assert kills >= KILLS // 2, "most of the steps were done between the kills"


def test_stopped_they_end_together_and_one_process_resumes(prepared: Path, tmp_path: Path) -> None:
    folder, whole, stage = tmp_path / "run", tmp_path / "whole", rl.IMPROVER_0.name
    shutil.copytree(prepared, folder)
    shutil.copytree(prepared, whole)
    finished([PROGRAM, whole, stage], 1, devices=4)
    log = folder / "stages" / stage / "metrics.jsonl"
    with Together([PROGRAM, folder, stage], 4) as together:
        together.signal_after(log, 2, 3, signal.SIGTERM)
        statuses, outputs = together.wait(300)
    assert statuses == [130] * 4, outputs
    finished([PROGRAM, folder, stage], 1, devices=4)
    require_close(folder, whole, stage)
    assert record(folder, stage) == record(whole, stage)
