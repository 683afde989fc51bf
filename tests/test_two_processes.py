"""`pit run` by two processes, a device each: a whole run, on which the commands of one process then work.

`test_many_hosts.py` has four processes, every mesh, and kills; it is slow.
"""

import json
from pathlib import Path

import compiling
import numpy as np
import pytest
from many import finished

from pit.cli import main
from pit.run.folder import Run
from pit.stages.graph import stages_of
from pit.train.log import PROGRESS_VARIABLE

SETTINGS = [
    "mesh.data=2",
    "data.synthetic_rows=200",
    *(f"{name}.steps=1" for name in ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge")),
    *(f"{name}.steps=1" for name in ("rl_policy", "rl_improver_0", "rl_improver_1")),
    "evaluate.prompts=8",
    "evaluate.sensitivity_prompts=4",
]

pytestmark = pytest.mark.slow

# Programs that run for milliseconds need not be fast.
QUICK_COMPILER = compiling.with_devices(f"{compiling.QUICK} --xla_backend_optimization_level=0", 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that two processes have made."""
    folder = tmp_path_factory.mktemp("two") / "run"
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    outputs = finished(["-m", "pit", "run", "tiny", "--out", folder, *words], 2, XLA_FLAGS=QUICK_COMPILER)
    # The first process alone reports.
    assert "report.html" in " ".join(outputs[0].split())
    assert "report.html" not in outputs[1]
    return Run.open(folder)


def test_two_processes_leave_what_a_run_leaves(run: Run) -> None:
    assert (run.folder / "report.html").exists()
    assert json.loads((run.folder / "results.json").read_text())["device"] == "2 x cpu"
    for stage in stages_of(run.config):
        record = stage.record(run)
        assert record is not None
        assert record["devices"] == "2 x cpu"


def test_one_process_improves_answers_by_their_models(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Describe this red lamp: price and size."}\n')
    out = tmp_path / "out.jsonl"
    main(["improve", "--run", str(run.folder), "--input", str(prompts), "--output", str(out), "--iterations", "1"])
    (line,) = map(json.loads, out.read_text().splitlines())
    assert len(line["answers"]) == 2
    assert np.isfinite(line["steps"][0]["gap"])


def test_one_process_exports_their_models(run: Run, tmp_path: Path) -> None:
    main(["export", "--run", str(run.folder), "rl-improver-1", str(tmp_path / "model")])
    assert (tmp_path / "model" / "model.safetensors").exists()
