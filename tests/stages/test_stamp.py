"""The stamp vouches for what was read and made, and a trained stage never loses its data."""

import json
import os
import shutil

import pytest
from prepare_cases import hash_of, put, rows, run_on, state_of, train

from pit.data.errors import DataError
from pit.data.tokenizer import Tokenizer
from pit.run.folder import Run
from pit.stages import prepare as stage
from pit.stages import stamp as stamps
from pit.stages.prepare import prepare


@pytest.mark.parametrize("version", ["RULES", "VERSION"])
def test_a_finished_one_is_kept_unless_the_rules_change(tmp_path, monkeypatch, version):
    run = run_on(put(tmp_path / "d.jsonl", rows("Why")))
    assert prepare(run) is not None
    assert prepare(run) is None
    monkeypatch.setattr(stamps, version, getattr(stamps, version) + 1)
    assert prepare(run) is not None


def test_the_stamp_vouches_for_the_files_that_are_read(tmp_path):
    real = put(tmp_path / "elsewhere" / "train.jsonl", rows("old"))
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(real.parent)
    run = run_on(data)
    prepare(run)
    before = hash_of(run)
    # Files that no reader opens, and times, mean nothing.
    put(data / ".hidden.jsonl", rows("no"))
    put(data / "test.jsonl", rows("no"))
    put(data / "notes.txt", [])
    os.utime(real, (1, 1))
    assert prepare(run) is None
    # Bytes do, behind a link and with the times and the size of before.
    times = real.stat()
    put(real, rows("new"))
    os.utime(real, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepare(run) is not None
    assert hash_of(run) != before


def test_the_stamp_vouches_for_the_bytes_of_the_tokenizer(tmp_path):
    data, path = put(tmp_path / "d.jsonl", rows("Why")), tmp_path / "t.json"
    Tokenizer.train_bpe(["good bad why"] * 5, 300).save(path)
    run = run_on(data, f"tokenizer.path={path}")
    prepare(run)
    assert prepare(run) is None
    Tokenizer.train_bpe(["other words"] * 5, 300).save(path)
    assert prepare(run) is not None
    assert Run(run.folder, run.config).tokenizer.hash == Tokenizer.load(path).hash
    train(run)
    path.unlink()
    with pytest.raises(DataError, match=r"t.json: no such tokenizer file; set tokenizer.path to a tokenizer.json"):
        prepare(run)
    Tokenizer.train_bpe(["good bad why"] * 5, 300).save(path)
    with pytest.raises(DataError, match=r"tokenizer.path = .*t.json: the file is not the one that .* was trained with"):
        prepare(run)


@pytest.mark.parametrize("killed_at", ["build", "write_file"])
def test_a_stamp_never_outlives_its_store(tmp_path, monkeypatch, killed_at):
    data = put(tmp_path / "d.jsonl", rows("A"))
    run = run_on(data)
    prepare(run)
    before = hash_of(run)
    put(data, rows("B", 70))

    def die(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, killed_at, die)
        with pytest.raises(KeyboardInterrupt):
            prepare(run)
    put(data, rows("A"))
    assert prepare(run) is not None
    assert hash_of(run) == before


def other_store(run):
    other = run_on(put(run.folder.parent / "other.jsonl", rows("B")), out="other")
    prepare(other)
    shutil.rmtree(run.folder / "store")
    shutil.copytree(other.folder / "store", run.folder / "store")


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "lose",
    [
        lambda run: shutil.rmtree(run.folder / "store"),
        lambda run: (run.folder / "store" / "manifest.json").unlink(),
        lambda run: (run.folder / "tokenizer.json").unlink(),
        lambda run: (run.folder / "tokenizer.json").write_text("{}"),
        other_store,
    ],
)
def test_what_is_lost_is_made_again_from_the_same_data(tmp_path, lose, trained):
    run = run_on(put(tmp_path / "d.jsonl", rows("A")))
    prepare(run)
    before = state_of(run.folder)
    if trained:
        train(run)
    lose(run)
    assert prepare(run) is not None
    assert {name: content for name, content in state_of(run.folder).items() if "stages" not in name} == before
    assert prepare(run) is None


def trained_run(tmp_path):
    run = run_on(put(tmp_path / "d" / "train-a.jsonl", rows("A")).parent)
    prepare(run)
    train(run)
    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: put(data / "train-a.jsonl", rows("A", 61)), "train-a.jsonl changed"),
        (lambda data: put(data / "train-b.jsonl", rows("B")), "train-b.jsonl is new"),
        (
            lambda data: (data / "train-a.jsonl").rename(data / "train-c.jsonl"),
            "train-a.jsonl is gone, train-c.jsonl is new",
        ),
    ],
)
def test_nothing_is_replaced_under_a_trained_stage(tmp_path, change, words):
    run = trained_run(tmp_path)
    before = state_of(run.folder)
    change(tmp_path / "d")
    with pytest.raises(DataError) as caught:
        prepare(run)
    assert str(caught.value) == (
        f"{tmp_path / 'd'}: the preferences are not those that {run.folder} was trained on ({words}); put them back, "
        "or train on them in another folder: --out OTHER"
    )
    assert state_of(run.folder) == before


def test_checkpoints_of_a_stage_count_as_trained(tmp_path):
    run = run_on(put(tmp_path / "d.jsonl", rows("A")))
    prepare(run)
    (run.stage_folder("sft-policy") / "checkpoints").mkdir(parents=True)
    put(tmp_path / "d.jsonl", rows("B"))
    assert prepare(run) is not None
    (run.stage_folder("sft-policy") / "checkpoints" / "10").mkdir()
    put(tmp_path / "d.jsonl", rows("C"))
    with pytest.raises(DataError, match=r"d.jsonl: the preferences are not those"):
        prepare(run)


def test_a_trained_run_without_a_stamp_or_of_other_rules_is_left_alone(tmp_path, monkeypatch):
    run = trained_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stamps, "RULES", stamps.RULES + 1)
        with pytest.raises(DataError, match=r"its stages were trained on data prepared by other rules"):
            prepare(run)
    for content in ("{", "[]", '{"fingerprint": "of an older version"}'):
        (run.folder / "prepared.json").write_text(content)
        with pytest.raises(DataError, match=r"prepared.json: is missing or of another version of pit.*\(sft-policy\)"):
            prepare(run)


@pytest.mark.parametrize(("lost", "field"), [("tokenizer.json", "template"), ("store", "store")])
def test_what_is_made_again_differently_is_an_error(tmp_path, lost, field):
    run = trained_run(tmp_path)
    stamp = json.loads((run.folder / "prepared.json").read_text())
    (run.folder / "prepared.json").write_text(json.dumps({**stamp, field: "of another version"}))
    with pytest.raises(DataError, match=rf"{lost}: made again from the same data, it is not the one"):
        prepare(run)


def test_stages_name_the_command_that_makes_what_is_lost(tmp_path):
    run = run_on(put(tmp_path / "d.jsonl", rows("Why")))
    prepare(run)
    (run.folder / "tokenizer.json").rename(tmp_path / "t.json")
    with pytest.raises(
        DataError, match=r"tokenizer.json: no such tokenizer file; .* the data make it again: `pit data prepare"
    ):
        Run(run.folder, run.config).fold("sft")
    (tmp_path / "t.json").rename(run.folder / "tokenizer.json")
    shutil.rmtree(run.folder / "store")
    with pytest.raises(DataError, match=r"store: no token store here .* make one with `pit data prepare`"):
        Run(run.folder, run.config).fold("sft")
