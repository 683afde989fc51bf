"""Hosts that share no disk: two processes with a folder each, and a bucket for checkpoints and the run's files."""

import json
import shutil
from pathlib import Path

import gcs
import pytest
from many import finished
from test_four_processes import QUICK_COMPILER

from pit.run.copies import listing
from pit.run.folder import Run
from pit.stages.graph import stages_of

PROGRAM = Path(__file__).parent / "run_together.py"

SETTINGS = [
    "mesh.data=2",
    "data.synthetic_rows=200",
    *(f"{name}.steps=1" for name in ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge")),
    *(f"{name}.steps=1" for name in ("rl_policy", "rl_improver_0", "rl_improver_1")),
    "evaluate.prompts=8",
    "evaluate.sensitivity_prompts=4",
]

pytestmark = pytest.mark.slow


def test_a_run_needs_no_common_disk(tmp_path: Path) -> None:
    with gcs.serve("bucket") as (url, bucket):
        environment = {
            **QUICK_COMPILER,
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_CLOUD_PROJECT": "pit",
        }
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        out = tmp_path / "host-{process}" / "run"
        command = [PROGRAM, "run", "tiny", "--out", out, "--checkpoints", "gs://bucket/tiny", *settings]
        finished(command, 2, **environment)
        one, other = (tmp_path / f"host-{process}" / "run" for process in range(2))
        stages = stages_of(Run.open(one).config)
        assert listing(one) == listing(other)
        assert sum(name.endswith("done.json") for name in listing(other)) == len(stages)
        assert (one / "report.html").exists()
        assert not (other / "report.html").exists()
        assert {name.split("/")[1] for name in bucket.objects} == {"run", *(stage.name for stage in stages)}

        # A new machine in the place of either host: its folder is made again, and nothing is trained twice.
        records = {stage.name: json.loads((one / "stages" / stage.name / "done.json").read_text()) for stage in stages}
        shutil.rmtree(other)
        outputs = finished(command, 2, **environment)
        assert all(f"{stage.name}: finished before, skipped" in outputs[0] for stage in stages)
        assert listing(one) == listing(other)
        shutil.rmtree(one)
        finished(command, 2, **environment)
        for stage in stages:
            record = json.loads((one / "stages" / stage.name / "done.json").read_text())
            assert (record["hash"], record["tokens"]) == (records[stage.name]["hash"], records[stage.name]["tokens"])
        assert listing(one) == listing(other)
