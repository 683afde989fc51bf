"""Trackers: every line once, also over a resume; one that fails, stalls or is not there never stops a stage."""

import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import threading
import types
from importlib.machinery import ModuleSpec

import pytest

from pit.config import FREE, TRACKERS, FieldError, digest, override
from pit.recipes.demo import tiny
from pit.train.log import PROGRESS_VARIABLE, StageLog
from pit.train.trackers import REMOTE, STATE, Feed, Identity, TrackerError, Trackers, read_state

FACTS = Identity("mine", "rl-policy", "", {"seed": 3})


class Package(types.ModuleType):
    """A stand-in for wandb and trackio: it keeps what it is told; `fails` names calls that raise."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.runs, self.lines, self.finished, self.fails = [], [], 0, set()

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        self._may("init")
        self.runs.append(options)
        return self

    def log(self, values, step):
        self._may(f"log {step}")
        self.lines.append((step, values))

    def finish(self):
        self._may("finish")
        self.finished += 1

    def _may(self, what):
        if what in self.fails:
            raise ConnectionError(f"no network\x1b[2J for {what}")


@pytest.fixture(params=["wandb", "trackio"])
def package(request, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, request.param, Package(request.param))
    return sys.modules[request.param]


def opened(folder, package, **options):
    return StageLog(folder, "rl-policy", trackers=("tensorboard", package.__name__), facts=FACTS, **options)


def notes(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not line.startswith("{")]


def test_every_line_reaches_the_tracker_with_run_stage_and_config(tmp_path, package):
    with opened(tmp_path, package) as log:
        for step in (2, 4):
            log.write(step, {"loss": float(step)})
            log.write(step, {"eval/loss": 0.5})
    assert package.lines == [(2, {"loss": 2.0}), (2, {"eval/loss": 0.5}), (4, {"loss": 4.0}), (4, {"eval/loss": 0.5})]
    (options,) = package.runs
    assert (options["project"], options["group"], options["config"]) == ("pit", "mine", {"seed": 3})
    assert options["resume"] == "allow"
    assert "mine/rl-policy" in options["name"]
    assert options.get("job_type") == ("rl-policy" if package.__name__ == "wandb" else None)
    assert package.finished == 1
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_stage_resumes_its_run_and_sends_no_line_twice(tmp_path, package, capsys):
    with opened(tmp_path, package) as log:
        for step in range(1, 7):
            log.write(step, {"loss": float(step)})
    with opened(tmp_path, package, resumed_step=4) as log:
        for step in range(5, 9):
            log.write(step, {"loss": float(step)})
    assert [step for step, _ in package.lines] == list(range(1, 9))
    first, second = package.runs
    assert first["name"] == second["name"]
    assert first.get("id") == second.get("id")
    assert read_state(tmp_path)[package.__name__]["lines"] == 8
    assert notes(capsys) == []


def test_a_stage_that_begins_again_in_a_new_folder_is_another_run(tmp_path, package):
    for name in ("a", "b"):
        with opened(tmp_path / name, package) as log:
            log.write(1, {"loss": 1.0})
    first, second = package.runs
    assert (first.get("id"), first["name"]) != (second.get("id"), second["name"])


def test_what_a_tracker_missed_is_sent_when_the_stage_resumes(tmp_path, package, capsys):
    package.fails = {"init"}
    with opened(tmp_path, package) as log:
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 2.0})
    (line,) = notes(capsys)
    assert line == (
        f"{package.__name__}: is left out from here on (ConnectionError: no network\\x1b[2J for init); metrics.jsonl "
        "has all metrics"
    )
    package.fails = set()
    with opened(tmp_path, package, resumed_step=2) as log:
        log.write(3, {"loss": 3.0})
    assert package.lines == [(step, {"loss": float(step)}) for step in (1, 2, 3)]


def test_a_tracker_that_fails_on_the_way_says_one_line_and_stops_nothing(tmp_path, package, capsys):
    package.fails = {"log 2", "finish"}
    with opened(tmp_path, package) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
    assert [step for step, _ in package.lines] == [1]
    assert len(notes(capsys)) == 1
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    package.fails = set()
    with opened(tmp_path, package, resumed_step=3):
        pass
    assert [step for step, _ in package.lines] == [1, 2, 3]


def test_a_tracker_that_hangs_is_left_at_the_end(tmp_path):
    hangs, said = threading.Event(), []

    class Hanging:
        def log(self, step, values):
            hangs.wait(30)

        def close(self):
            pass

    feed = Feed("wandb", lambda identity, folder: Hanging(), tmp_path, FACTS, said.append)
    for number in range(1000):
        feed.put(number, number, {"loss": 1.0})
    feed.close(wait_s=0.05)
    hangs.set()
    assert said == ["wandb: did not end within 0.05 s and is left; metrics.jsonl has all metrics"]


def test_without_a_login_nobody_is_asked_for_a_key(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")
    monkeypatch.setitem(sys.modules, "wandb", Package("wandb"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with opened(tmp_path / "stage", sys.modules["wandb"]) as log:
        log.write(1, {"loss": 1.0})
    assert sys.modules["wandb"].runs == []
    (line,) = notes(capsys)
    assert "(PermissionError: not logged in; run `wandb login`, or set WANDB_MODE=offline)" in line


@pytest.mark.parametrize("content", ["", "[1]", '{"wandb": {"id": 3, "lines": 1}}', '{"wandb": {"id": "x"}}'])
def test_a_damaged_state_begins_another_run(tmp_path, package, content):
    (tmp_path / STATE).write_text(content)
    with opened(tmp_path, package) as log:
        log.write(1, {"loss": 1.0})
    assert package.lines == [(1, {"loss": 1.0})]


def test_a_tracker_that_is_not_installed_is_one_error_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrackerError) as caught:
        Trackers(["trackio"], tmp_path, FACTS)
    assert str(caught.value) == (
        "trackers = 'trackio': its package is not installed; `pip install trackio`, or leave it out: "
        "--tracker tensorboard"
    )


def test_none_tracks_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")
    with StageLog(tmp_path, "x", trackers=(), facts=FACTS) as log:
        log.write(1, {"loss": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_trackers_are_free_settings_and_no_part_of_a_digest():
    assert override(tiny(), ["trackers=none"]).tracker_names == ()
    config = override(tiny(), ["trackers=wandb, tensorboard"])
    assert config.tracker_names == ("wandb", "tensorboard")
    assert "trackers" in FREE
    assert digest(tiny()) == digest(override(config, ["trackers=tensorboard"]))
    for wrong in ("mlflow", "wandb,wandb", "none,wandb", ""):
        with pytest.raises(
            FieldError, match=rf"^trackers = '{wrong}': must be none, or different ones of tensorboard, "
        ):
            override(tiny(), [f"trackers={wrong}"])


def missing(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


REAL = """
import sys
from pathlib import Path
from pit.train.trackers import Identity, Trackers
folder, begin, last = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
said = []
facts = Identity("mine", "rl-policy", "", {"seed": 3, "rl": {"steps": 4}})
kept = [(step, {"loss": 1.0 * step}) for step in range(1, begin)]
trackers = Trackers([sys.argv[1]], folder, facts, kept=kept, note=said.append)
for step in range(begin, last + 1):
    trackers.log(step, {"loss": 1.0 * step})
trackers.close()
assert said == [], said
"""


def really(name, folder, begin, last, environment):
    words = [sys.executable, "-c", REAL, name, str(folder), str(begin), str(last)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@missing("wandb")
def test_weights_and_biases_itself_keeps_a_run_offline(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline"}
    really("wandb", tmp_path, 1, 3, environment)
    really("wandb", tmp_path, 3, 5, environment)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    ids = {path.name.rsplit("-", 1)[1] for path in runs}
    assert len(runs) >= 1
    assert ids == {read_state(tmp_path)["wandb"]["id"]}
    assert read_state(tmp_path)["wandb"]["lines"] == 5


@pytest.mark.slow
@missing("trackio")
def test_trackio_itself_keeps_every_step_once(tmp_path):
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    really("trackio", tmp_path, 1, 3, environment)
    really("trackio", tmp_path, 3, 5, environment)
    assert read_state(tmp_path)["trackio"]["lines"] == 5
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "pit.db")) as database:
        rows = database.execute("select run_name, step from metrics order by step").fetchall()
    assert [step for _, step in rows] == [1, 2, 3, 4, 5]
    assert len({name for name, _ in rows}) == 1


def test_the_makers_are_those_of_the_config():
    assert {*REMOTE} == {*TRACKERS} - {"tensorboard"}
