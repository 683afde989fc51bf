"""`pit run` by four processes, a device each: a whole run equal to that of one process, whose commands work on it.

The run itself is one of the fast tests. `test_many_hosts.py` has more steps, every mesh, and kills.
"""

import json
import subprocess
import sys
from pathlib import Path

import compiling
import numpy as np
import pytest
from many import environment, finished, require_close

from pit.run.folder import Run
from pit.stages.graph import stages_of

PROGRAM = Path(__file__).parent / "run_together.py"

SETTINGS = [
    "mesh.data=4",
    "data.synthetic_rows=200",
    *(f"{name}.steps=1" for name in ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge")),
    *(f"{name}.steps=1" for name in ("rl_policy", "rl_improver_0", "rl_improver_1")),
    "evaluate.prompts=8",
    "evaluate.sensitivity_prompts=4",
]

# Programs that run for milliseconds need not be fast.
QUICK_COMPILER = {
    "XLA_FLAGS": compiling.with_devices(f"{compiling.QUICK} --xla_backend_optimization_level=0", 1),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def command(folder: Path) -> list[object]:
    return [PROGRAM, "run", "tiny", "--out", folder, *(word for setting in SETTINGS for word in ("--set", setting))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that four processes have made."""
    folder = tmp_path_factory.mktemp("four") / "run"
    outputs = finished(command(folder), 4, **QUICK_COMPILER)
    # The first process alone reports.
    assert "report.html" in " ".join(outputs[0].split())
    assert not [output for output in outputs[1:] if "report.html" in output]
    return Run.open(folder)


def test_four_processes_leave_what_a_run_leaves(run: Run) -> None:
    assert (run.folder / "report.html").exists()
    assert json.loads((run.folder / "results.json").read_text())["device"] == "4 x cpu"
    for stage in stages_of(run.config):
        record = stage.record(run)
        assert record is not None
        assert record["devices"] == "4 x cpu"


@pytest.mark.slow
def test_they_draw_and_measure_what_one_process_does(run: Run, tmp_path: Path) -> None:
    flags = compiling.with_devices(QUICK_COMPILER["XLA_FLAGS"], 4)
    finished(command(tmp_path / "run"), 1, devices=4, **{**QUICK_COMPILER, "XLA_FLAGS": flags})
    for stage in stages_of(run.config):
        require_close(run.folder, tmp_path / "run", stage.name)


def alone(*words: object) -> None:
    """Run a command in one process that has the four devices of the mesh."""
    subprocess.run([sys.executable, "-m", "pit", *map(str, words)], env=environment(4), check=True)


@pytest.mark.slow
def test_one_process_improves_answers_by_their_models(run: Run, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Describe this red lamp: price and size."}\n')
    alone("improve", "--run", run.folder, "--input", prompts, "--output", out, "--iterations", 1)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert len(line["answers"]) == 2
    assert np.isfinite(line["steps"][0]["gap"])


@pytest.mark.slow
def test_one_process_exports_their_models(run: Run, tmp_path: Path) -> None:
    alone("export", "--run", run.folder, "rl-improver-1", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()
