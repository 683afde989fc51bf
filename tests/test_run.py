"""The command line end to end: the smallest run, its report, stages killed and resumed, and what bad input says."""

import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from compiling import users_environment

from pit.cli import main
from pit.config import override, read_config
from pit.recipes.demo import tiny
from pit.stages import reward, rl, rl_iterated, sft
from pit.train.catalogue import METRICS

SETTINGS = [
    "sft_policy.steps=60",
    "sft_improver.steps=60",
    "reward_quality.steps=20",
    "reward_gap.steps=60",
    "reward_judge.steps=20",
    "sft_policy.checkpoint_every=10",
    "sft_improver.checkpoint_every=10",
    "reward_gap.checkpoint_every=10",
    "rl_policy.steps=3",
    "rl_improver_0.steps=6",
    "rl_improver_0.checkpoint_every=1",
    "rl_improver_0.gap=centred",
    "rl_improver_0.curriculum.strategy=learnability",
    "rl_improver_0.curriculum.examples=8",
    "rl_improver_0.curriculum.difficulty=edit",
    "rl_improver_0.curriculum.lag=2",
    "rl_improver_0.curriculum.prefetch=1",
    "rl_improver_0.kl.estimator=k3",
    "rl_improver_0.kl.place=loss",
    "rl_improver_0.kl.target=0.01",
    "rl_improver_0.running_scale=true",
    "rl_improver_1.steps=3",
    "rl_improver_1.gap=difference",
    "rl_improver_1.kl.estimator=full",
]
"""Enough steps, often enough saved, that a stage can be killed in its middle.

RL,0 with a curriculum that learns, an adaptive coefficient and a running scale; RL,1 with the ablation's reward.
"""


def pit(*words: object, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, on one device."""
    result = subprocess.run(
        [sys.executable, "-m", "pit", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout_s,
        check=False,
    )
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def environment() -> dict[str, str]:
    """A user's environment, in which every compilation is worth keeping."""
    return {**users_environment(), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smallest recipe."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    result = pit("run", "tiny", "--out", folder, *settings, timeout_s=550)
    assert "done  evaluate" in result.stdout
    return folder


def test_every_logged_metric_is_in_the_catalogue(run: Path) -> None:
    files = sorted((run / "stages").glob("*/metrics.jsonl"))
    logged = {name for file in files for line in file.read_text().splitlines() for name in json.loads(line)}
    assert len(files) > 6
    assert {name.removeprefix("eval/") for name in logged - {"step"}} <= {metric.name for metric in METRICS}


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_smallest_run_leaves_results_and_a_report(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    headline = results["delta"]["improved_over_policy/oracle"]
    assert headline["n"] == 16
    assert headline["low"] <= headline["value"] <= headline["high"]
    assert [point["iteration"] for point in results["quality"]["stop_rule"]] == [0, 1, 2]
    assert {stage["name"] for stage in results["stages"]} == {path.name for path in (run / "stages").iterdir()}
    page = _Page()
    page.feed((run / "report.html").read_text())
    assert {"html", "svg", "table"} <= page.tags
    assert f"{headline['value']:+.1f}" in page.text.replace("\N{MINUS SIGN}", "-") or headline["value"] == 0


def test_report_is_drawn_again_with_its_plot(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.html").read_bytes()
    main(["report", "--run", str(run), "--plot", str(tmp_path / "quality.png")])
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html"), str(tmp_path / "quality.png")]
    assert (run / "report.html").read_bytes() == before
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "stage", [pytest.param(sft.POLICY.name, marks=pytest.mark.slow), reward.GAP.name, rl.IMPROVER_0.name]
)
def test_killed_and_resumed_equals_uninterrupted(stage: str, run: Path, tmp_path: Path) -> None:
    copy = without_stage(run, stage, tmp_path)
    command = [sys.executable, "-m", "pit", stage, "--run", str(copy)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = wait_for_checkpoint(process, copy / "stages" / stage / "checkpoints")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (copy / "stages" / stage / "done.json").exists()
    pit(stage, "--run", copy)
    assert latest(copy, stage) > saved
    require_equal(copy, run, stage)


def test_interrupt_saves_and_says_how_to_resume(run: Path, tmp_path: Path) -> None:
    stage = sft.POLICY.name
    copy = without_stage(run, stage, tmp_path)
    command = [sys.executable, "-m", "pit", stage, "--run", str(copy)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(process, copy / "stages" / stage / "checkpoints")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"resume with:  pit {stage} --run {copy}" in errors
    assert not (copy / "stages" / stage / "done.json").exists()
    assert latest(copy, stage) > 0
    pit(stage, "--run", copy)
    require_equal(copy, run, stage)


@pytest.mark.parametrize(
    "sender",
    ["terminal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kill -INT, started deaf", "kill -TERM"))],
)
def test_interrupted_run_stops_its_stages_and_says_how_to_resume(sender: str, run: Path, tmp_path: Path) -> None:
    copy = without_stage(run, rl.IMPROVER_0.name, tmp_path)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "pit", "run", "tiny", "--out", str(copy), *settings]
    # A shell without job control starts what it runs in the background with SIGINT ignored.
    heard = signal.SIG_IGN if sender.endswith("deaf") else signal.default_int_handler
    before = signal.signal(signal.SIGINT, heard)
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    wait_for_checkpoint(process, copy / "stages" / rl.IMPROVER_0.name / "checkpoints")
    if sender == "kill -TERM":
        process.terminate()
    else:
        # A terminal's Ctrl-C reaches the whole process group.
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"resume with:  pit run tiny --out {copy}" in errors
    assert not (copy / "stages" / rl.IMPROVER_0.name / "done.json").exists()
    assert latest(copy, rl.IMPROVER_0.name) > 0
    if sender == "terminal":
        # The fast test leaves out the stages after it; the slow ones have them, and skip those before.
        pit(rl.IMPROVER_0.name, "--run", copy)
    else:
        assert pit(*command[3:]).stdout.count("finished before, skipped") == 7
    assert losses(copy, rl.IMPROVER_0.name) == losses(run, rl.IMPROVER_0.name)


def test_full_disk_is_one_clear_line_and_costs_nothing(run: Path, tmp_path: Path) -> None:
    copy = without_stage(run, sft.POLICY.name, tmp_path)
    stage = copy / "stages" / sft.POLICY.name
    stage.mkdir()
    # A disk of 96 KiB, seen by this one process: the log fits, a checkpoint does not.
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=96k tmpfs "$0" && exec "$@"']
    if subprocess.run([*small, stage, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small disk")
    command = [*small, stage, sys.executable, "-m", "pit", sft.POLICY.name, "--run", copy]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert result.returncode == 1, result.stderr[-3000:]
    # Threads of the checkpoint writer may complain before that line, none after it.
    assert result.stderr.rstrip().splitlines()[-1].startswith("pit: error: the disk is full")
    pit(sft.POLICY.name, "--run", copy)
    assert losses(copy, sft.POLICY.name) == losses(run, sft.POLICY.name)


def test_what_a_stage_drew_is_shown_and_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage, plot = rl.IMPROVER_0.name, tmp_path / "drawn.png"
    main(["data", "curriculum", "--run", str(run), "--stage", stage, "--plot", str(plot)])
    assert "24 draws of 8 examples: mean 3.0" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def without_stage(run: Path, stage: str, tmp_path: Path) -> Path:
    """A copy of the run in which one stage has not begun."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(stage, "tensorboard", "data"))
    return copy


def wait_for_checkpoint(process: subprocess.Popen[str] | subprocess.Popen[bytes], folder: Path) -> int:
    """Step of the first complete checkpoint that appears."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
        if steps:
            return min(steps)
        time.sleep(0.002)
    pytest.fail(f"no checkpoint in time; exit status {process.poll()}")


def latest(run: Path, stage: str) -> int:
    """Step of the newest checkpoint of a stage."""
    return max(int(p.name) for p in (run / "stages" / stage / "checkpoints").glob("*") if p.name.isdigit())


def require_equal(actual: Path, expected: Path, stage: str) -> None:
    """A stage of two runs ended alike: weights, optimizer, controllers, metrics, draws and what it cost in tokens."""
    assert latest(actual, stage) == latest(expected, stage)
    one, two = checkpoint(actual, stage), checkpoint(expected, stage)
    assert one.keys() == two.keys()
    for name in two:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert metrics(actual, stage) == metrics(expected, stage)
    draws, done = (
        [run / "stages" / stage / name for run in (actual, expected)] for name in ("draws.jsonl", "done.json")
    )
    if draws[1].exists() or draws[0].exists():
        assert draws[0].read_bytes() == draws[1].read_bytes()
    records = [json.loads(path.read_text()) for path in done]
    assert all(records[0][name] == records[1][name] for name in ("hash", "steps", "tokens"))


def metrics(run: Path, stage: str) -> list[dict[str, float]]:
    """Every logged line of a stage without what depends on the clock."""
    lines = (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    clock = ("perf/tokens_per_s", "perf/data_wait_s")
    return [{name: value for name, value in json.loads(line).items() if name not in clock} for line in lines]


def checkpoint(run: Path, stage: str) -> dict[str, np.ndarray]:
    """Weights, optimizer state and controllers of the newest checkpoint of a stage, by name."""
    folder = run / "stages" / stage / "checkpoints" / str(latest(run, stage))
    with ocp.StandardCheckpointer() as checkpointer:
        trees = {part: checkpointer.restore(folder.resolve() / part) for part in ("params", "opt")}
    leaves, _ = ocp.tree.to_flat_dict(trees, sep="."), None
    # What the log keeps for its next line has wall times among it; its lines are compared themselves.
    kept = {name: value for name, value in controllers_of(folder).items() if name != "log"}
    controllers = {f"controllers.{name}": value for name, value in kept.items()}
    return {name: np.asarray(value) for name, value in (leaves | controllers).items() if value is not None}


def controllers_of(folder: Path) -> dict[str, object]:
    """What a checkpoint keeps of the KL coefficient, the running scale and refused steps."""
    content: dict[str, object] = json.loads((folder / "controllers" / "metadata").read_text())
    return content


def losses(run: Path, stage: str) -> list[tuple[int, float]]:
    """(step, loss) of every logged step."""
    lines = (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines) if "loss" in row]


def test_improve_reads_and_writes_lines(run: Path, tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompt = "Describe this red small cheap old round lamp: price, colour and size. End fondly."
    source.write_text(json.dumps({"prompt": prompt}) + "\n")
    files = ["--run", str(run), "--input", str(source), "--output", str(sink)]
    main(["improve", *files, "--iterations", "2"])
    (row,) = map(json.loads, sink.read_text().splitlines())
    assert row["prompt"] == [{"role": "user", "content": prompt}]
    assert len(row["answers"]) == 3
    assert [set(step) for step in row["steps"]] == [{"candidate", "gap", "accepted"}] * 2
    for before, after, step in zip(row["answers"][:-1], row["answers"][1:], row["steps"], strict=True):
        assert after == (step["candidate"] if step["accepted"] else before)
        assert step["accepted"] == (step["gap"] > 0)
    main(["improve", *files, "--iterations", "1", "--accept-by", "likelihood"])
    (other,) = map(json.loads, sink.read_text().splitlines())
    assert other["answers"][0] == row["answers"][0]
    assert other["steps"][0]["candidate"] == row["steps"][0]["candidate"]
    assert other["steps"][0]["gap"] != row["steps"][0]["gap"]


def test_bad_input_is_one_clear_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: what is refused starts nothing that outlives the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    cases = {
        ("run", "nothing"): "recipe 'nothing': must be one of demo, ",
        ("run", "--config", tmp_path / "absent.yaml"): "absent.yaml: cannot be read",
        ("run", "hh"): "data.path = None: recipe hh needs preferences; give them with --data FOLDER",
        ("run", "hh", "--data", tmp_path / "absent"): "there is no such file or folder",
        ("run", "hh", "--data", empty, "--out", tmp_path / "a"): "empty",
        ("run", "tiny", "--set", "sft_policy.step=3"): (
            "sft_policy.step: is not a config field; did you mean sft_policy.steps?"
        ),
        ("run", "tiny", "--set", "rl_improver_0.samples=1"): "rl_improver_0.samples = 1: must be >= 2",
        ("run", "tiny", "--set", "reward_gap.packing.row_length=32"): "must hold the longest path of 80 tokens",
        (
            "run",
            "tiny",
            "--set",
            "rl_policy.algorithm=ppo",
            "--out",
            tmp_path / "b",
        ): "rl_policy.algorithm = 'ppo': must",
        ("run", "tiny", "--out", run): "is the folder of a run with other sft_policy, sft_improver, reward_quality",
        (
            "run",
            "tiny",
            "--out",
            run,
            *settings,
            "--set",
            "policy.width=32",
        ): "is the folder of a run with other policy",
        ("run", "tiny", "--out", "gs://bucket/x"): "--out = 'gs://bucket/x': must be a path of this machine",
        (sft.POLICY.name, "--run", "gs://bucket/x"): "--run = 'gs://bucket/x': must be a path of this machine",
        (sft.POLICY.name, "--run", empty): "holds no run (no config.json)",
        ("report", "--run", empty): "results.json",
        (rl_iterated.IMPROVER_2.name, "--run", run): "stage rl-improver-2: is not part of this run; start a run with",
        (rl.POLICY.name, "--run", run, "--set", "seed=3"): "--set: seed of a run cannot be changed",
    }
    for words, message in cases.items():
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        said = capsys.readouterr().err
        assert ended.value.code == 1, (words, said)
        assert message in " ".join(said.split()), (words, said)
        assert said.startswith("pit: error: ")
    assert not Path("gs:").exists()
    assert not (tmp_path / "a").exists() or not any((tmp_path / "a").glob("store*"))


def test_checkpoint_of_another_architecture_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = without_stage(run, "nothing", tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["reward_model"]["mlp"] = 48
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        main([reward.QUALITY.name, "--run", str(copy)])
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "mlp.down has shape [32, 16] there, but the config asks for [48, 16]" in said


def test_tokenizer_of_another_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = without_stage(run, sft.POLICY.name, tmp_path)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SystemExit) as ended:
        main([sft.POLICY.name, "--run", str(copy)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("pit: error: ")
    assert "tokenizer" in said


def test_the_config_of_a_run_is_a_file_that_starts_the_same_run(run: Path) -> None:
    """It skips every stage, so nothing is trained again."""
    done = run / "stages" / rl_iterated.IMPROVER_1.name / "done.json"
    before = done.read_bytes()
    assert read_config(run / "config.json", tiny()) == override(tiny(), SETTINGS)
    result = pit("run", "--config", run / "config.json", "--out", run)
    assert result.stdout.count("finished before, skipped") == len(list((run / "stages").iterdir()))
    assert done.read_bytes() == before
