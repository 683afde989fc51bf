"""Two processes, one device each, train as one process with two devices does; asked to stop, they stop together."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from many import Together, finished
from stages_together import work

from pit.config import RunConfig, override
from pit.recipes.demo import tiny
from pit.run.folder import Run
from pit.stages import reward, rl, sft
from pit.stages.prepare import prepare

pytestmark = [pytest.mark.usefixtures("fresh_stages"), pytest.mark.slow]

PROGRAM = Path(__file__).parent / "stages_together.py"
NAMES = [reward.QUALITY.name, rl.IMPROVER_0.name]

REWARD = """
import os
from pathlib import Path

def score(prompts, references, answers, rows):
    with (Path(__file__).parent / "calls").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return [float(len(answer) % 5) for answer in answers]
"""


def config(folder: Path) -> RunConfig:
    function = folder / "rewards.py"
    if not function.exists():
        function.write_text(REWARD)
    return override(
        tiny(),
        [
            "mesh.data=2",
            "sft_policy.steps=60",
            "sft_policy.checkpoint_every=0",
            "reward_quality.steps=2",
            f"rl_improver_0.reward.function={function}:score",
            "rl_improver_0.kl.target=0.01",
            "rl_improver_0.running_scale=true",
        ],
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data are prepared."""
    base = tmp_path_factory.mktemp("together")
    prepare(Run(base / "run", config(base)))
    return base / "run"


@pytest.fixture(scope="module")
def alone(prepared: Path, fresh_stages: None) -> Path:
    """The stages trained by this process, which has two devices."""
    folder = prepared.with_name("alone")
    shutil.copytree(prepared, folder)
    work(folder, [sft.POLICY.name, *NAMES])
    return folder


def metrics(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def require_close(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    """Raise unless the lines are the same up to the rounding of sums in another order."""
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for line, like in zip(one, other, strict=True):
        for name, value in line.items():
            np.testing.assert_allclose(value, like[name], rtol=2e-3, atol=2e-4, err_msg=f"{name} of {line['step']}")


def test_two_processes_train_a_reward_model_and_rl_as_one_does(prepared: Path, alone: Path) -> None:
    folder = prepared.with_name("both")
    shutil.copytree(prepared, folder)
    calls = prepared.parent / "calls"
    calls.unlink()
    finished([PROGRAM, folder, *NAMES], 2)
    for name in NAMES:
        require_close(metrics(folder, name), metrics(alone, name))
        record, like = (json.loads((f / "stages" / name / "done.json").read_text()) for f in (folder, alone))
        assert record["devices"] == like["devices"] == "2 x cpu"
        assert (record["hash"], record["tokens"]) == (like["hash"], like["tokens"])
    draws = [(f / "stages" / rl.IMPROVER_0.name / "draws.jsonl").read_text().splitlines() for f in (folder, alone)]
    assert [json.loads(line)["id"] for line in draws[0]] == [json.loads(line)["id"] for line in draws[1]]
    # The first process calls the user's function for both: once per step, and once for the held-out prompts.
    assert len(set(calls.read_text().split())) == 1
    assert len(calls.read_text().split()) == 3


def test_a_signal_to_one_process_saves_and_stops_both_and_one_process_resumes(prepared: Path, alone: Path) -> None:
    folder, stage = prepared.with_name("stopped"), sft.POLICY.name
    shutil.copytree(prepared, folder)
    log = folder / "stages" / stage / "metrics.jsonl"
    with Together(["-m", "pit", stage, "--run", folder], 2) as together:
        together.signal_after(log, 1, 1, signal.SIGTERM)
        statuses, outputs = together.wait()
    assert statuses == [130, 130], outputs
    saved = [path.name for path in (folder / "stages" / stage / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(saved) == 1
    for output in outputs:
        assert f"pit: stopped after step {int(saved[0])} of 60; resume with:" in " ".join(output.split())
    work(folder, [stage])
    require_close(metrics(folder, stage), metrics(alone, stage))
