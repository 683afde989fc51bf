"""Preparing a run: what is there and made of the same is kept, a stopped one goes on, all else is made again."""

import json

import pytest

from pit.data.store import write
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages import prepare as stage
from pit.stages.prepare import prepare


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_ROWS", 100)
    return Run(tmp_path / "run", recipe("tiny"))


def count_shards(monkeypatch, fails_at=None):
    """Indices of the shards that are written from now on, until the one that fails."""
    written, original = [], write._write_shard

    def counting(job, index, rows):
        if index == fails_at:
            raise RuntimeError("stopped here")
        written.append(index)
        return original(job, index, rows)

    monkeypatch.setattr(write, "_write_shard", counting)
    return written


def test_a_stopped_one_goes_on(run, monkeypatch):
    with monkeypatch.context() as patch:
        count_shards(patch, fails_at=2)
        with pytest.raises(RuntimeError, match="stopped here"):
            prepare(run)
    assert not (run.folder / "store").exists()
    kept = {int(path.stem[-5:]) for path in (run.folder / "store.partial").glob("shard-*.json")}
    assert kept >= {0, 1}
    written = count_shards(monkeypatch)
    report = prepare(run)
    assert sorted(written) == sorted({0, 1, 2, 3} - kept)
    assert report.kept == run.store.manifest["rows"] == 400
    assert sorted(path.name for path in run.folder.iterdir()) == ["data", "prepared.json", "store", "tokenizer.json"]


def test_a_finished_one_is_kept_unless_the_format_changes(run, monkeypatch):
    assert prepare(run) is not None
    stamp = json.loads((run.folder / "prepared.json").read_text())
    assert prepare(run) is None
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    assert prepare(run) is not None
    assert json.loads((run.folder / "prepared.json").read_text())["fingerprint"] != stamp["fingerprint"]
