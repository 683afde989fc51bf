"""Checkpoints in a bucket, by the real clients against a small storage server: `--checkpoints gs://...`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gcs
import pytest
import test_run

from pit.cli import main

ROOT = "gs://bucket/tiny"
SETTINGS = ["--set", "sft_policy.steps=12", "--set", "sft_policy.checkpoint_every=3", "--set", "sft_policy.keep=2"]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, gcs.Bucket]]:
    with gcs.serve("bucket") as served:
        yield served


@pytest.fixture
def bucket(server: tuple[str, gcs.Bucket]) -> gcs.Bucket:
    return server[1]


@pytest.fixture(scope="module")
def environment(server: tuple[str, gcs.Bucket], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's environment, in which Google's clients and tensorstore talk to that server."""
    return {
        **test_run.environment(),
        "STORAGE_EMULATOR_HOST": server[0],
        "TENSORSTORE_GCS_HTTP_URL": server[0],
        "GOOGLE_CLOUD_PROJECT": "pit",
    }


def pit(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def saved_steps(bucket: gcs.Bucket, stage: str) -> list[int]:
    """Steps of the complete checkpoints of a stage."""
    found = (re.fullmatch(rf"tiny/{stage}/(\d+)/commit_success.txt", name) for name in list(bucket.objects))
    return sorted(int(match[1]) for match in found if match)


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every logged step."""
    lines = (folder / "stages" / "sft-policy" / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines) if "loss" in row]


WEIGHTS_HASH = """
import hashlib, pathlib, sys
from pit.run.folder import Run
from pit.stages import sft
for folder in sys.argv[1:]:
    params = sft.POLICY.load(Run.open(pathlib.Path(folder))).params
    print(hashlib.sha256(b"".join(bytes(memoryview(params[name]).cast("B")) for name in sorted(params))).hexdigest())
"""


def weights_hashes(environment: dict[str, str], *folders: Path) -> list[str]:
    """Hash of the weights of each run as the stages after this one read them."""
    command = [sys.executable, "-c", WEIGHTS_HASH, *map(str, folders)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment, timeout=300, check=True
    ).stdout.split()


def prepare(folder: Path, *words: str) -> None:
    """Start a run folder in this process; the bucket is not asked yet."""
    main(["data", "prepare", "tiny", "--out", str(folder), *words])


ROUND_TRIP = """
import sys
import jax.numpy as jnp
import numpy as np
import optax
from pit.train.checkpoint import Checkpoints
from pit.train.update import TrainState
params = {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}
state = TrainState(jnp.int32(3), params, optax.adam(1e-3).init(params))
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    checkpoints.save(state, {}, {}, {"hash": "ab", "tokens": 7})
    checkpoints.wait()
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    restored = checkpoints.restore(state, "ab")
np.testing.assert_array_equal(restored.state.params["w"], params["w"])
print(int(restored.state.step), restored.meta["tokens"])
"""


def test_a_checkpoint_comes_back_from_the_bucket(bucket: gcs.Bucket, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", ROUND_TRIP, f"{ROOT}/round-trip"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["3", "7"]
    assert saved_steps(bucket, "round-trip") == [3]


@pytest.mark.slow
def test_a_run_resumes_after_its_machine_is_lost(
    bucket: gcs.Bucket, environment: dict[str, str], tmp_path: Path
) -> None:
    here, lost, found = tmp_path / "here", tmp_path / "lost", tmp_path / "found"
    prepare(here, *SETTINGS)
    done = pit(environment, "sft-policy", "--run", here)
    assert done.returncode == 0, done.stderr[-3000:]

    prepare(lost, *SETTINGS, "--checkpoints", ROOT)
    process = subprocess.Popen(
        [sys.executable, "-m", "pit", "sft-policy", "--run", str(lost)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not saved_steps(bucket, "sft-policy"):
        assert process.poll() is None, "the stage ended before a checkpoint came into the bucket"
        assert time.monotonic() < deadline, "no checkpoint came into the bucket in time"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (lost / "stages" / "sft-policy" / "checkpoints").exists()
    shutil.rmtree(lost)

    prepare(found, *SETTINGS, "--checkpoints", ROOT)
    resumed = pit(environment, "sft-policy", "--run", found)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert saved_steps(bucket, "sft-policy") == [9, 12]
    one, other = weights_hashes(environment, found, here)
    assert one == other
    again, whole = losses(found), losses(here)
    assert again == whole[-len(again) :]


def test_settings_of_another_root_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path)
    with pytest.raises(SystemExit) as ended:
        prepare(tmp_path, "--checkpoints", ROOT)
    assert ended.value.code == 1
    assert "is the folder of a run with other checkpoints" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("root", "missing", "message"),
    [
        ("gs://no-such-bucket/x", "", "gs://no-such-bucket/x/sft-policy: cannot be reached ("),
        pytest.param(
            ROOT,
            "gcsfs",
            "gs://bucket/tiny/sft-policy: cannot be reached (ImportError",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["no bucket", "no client"],
)
def test_a_bucket_that_cannot_be_used_is_one_clear_line(
    root: str, missing: str, message: str, environment: dict[str, str], tmp_path: Path
) -> None:
    if missing:
        (tmp_path / f"{missing}.py").write_text("raise ImportError('it is not installed')\n")
        environment = {**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"}
    run = tmp_path / "run"
    prepare(run, "--checkpoints", root)
    result = pit(environment, "sft-policy", "--run", run)
    assert result.returncode == 1
    assert result.stderr.startswith(f"pit: error: {message}"), result.stderr
    assert len(result.stderr.splitlines()) == 1
