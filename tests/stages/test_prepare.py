"""Preparing a run: the stamp vouches for what was read, trained stages keep their data, every loss is named."""

import json
import os
import shutil
from collections import Counter

import pytest
from click.testing import CliRunner

from pit.cli.data import data_prepare
from pit.config import ConfigError, override
from pit.data.errors import DataError
from pit.data.readers import read_preferences
from pit.data.store import write
from pit.data.tokenizer import Tokenizer
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages import prepare as stage
from pit.stages import stamp as stamps
from pit.stages.prepare import prepare, require_folds
from pit.types import FOLDS


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_ROWS", 100)
    return Run(tmp_path / "run", recipe("tiny"))


def rows(word, n=60, **more):
    return [{"prompt": f"{word} {i}?", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(n)]


def put(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run_on(data, *settings, out="run"):
    """Return a run on a file or folder of data, in a folder next to it."""
    config = override(recipe("tiny"), [f"data.path={data}", "tokenizer.vocab_size=300", *settings])
    return Run(data.parent / out, config)


def hash_of(run):
    return Run(run.folder, run.config).store.hash


def train(run, name="sft-policy"):
    """Leave the record of a trained stage."""
    put(run.stage_folder(name) / "done.json", [{"hash": "h"}])


def state_of(folder):
    """Return every file of a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    prepared = prepare(run)
    assert sorted(written) == sorted({0, 1, 2, 3} - kept)
    assert prepared.stored == run.store.manifest["rows"] == 400
    made = ["config.json", "data", "prepared.json", "store", "tokenizer.json"]
    assert sorted(path.name for path in run.folder.iterdir()) == made


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


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3, "dropped 3: equal answers; both answers are the same"),
        (rows("q", 2, split="gold"), "of another split 2: column 'split' says 'gold' 2"),
    ],
)
def test_data_of_which_nothing_is_left_leave_no_folder(tmp_path, records, words):
    run = run_on(put(tmp_path / "d.jsonl", records))
    with pytest.raises(
        DataError, match=rf"d.jsonl: none of its {len(records)} rows can be used .train split.: {words}"
    ):
        prepare(run)
    assert not run.folder.exists()
    put(tmp_path / "d.jsonl", rows("q"))
    assert prepare(run_on(tmp_path / "d.jsonl", "seed=1")) is not None
    with pytest.raises(ConfigError, match="with other seed"):
        prepare(run)


def test_the_report_names_every_loss(tmp_path):
    same = "one two three four five " * 12
    records = [
        *rows("Why"),
        *[{"prompt": f"long {i}?", "chosen": f"{same} {i} good", "rejected": f"{same} {i} bad"} for i in range(5)],
        {"prompt": "twins?", "chosen": "yes", "rejected": "yes "},
        *rows("Why", 1),
    ]
    prepared = prepare(run_on(put(tmp_path / "d.jsonl", records)))
    folds = ", ".join(f"{name} {count}" for name, count in prepared.folds.items())
    assert sum(prepared.folds.values()) == prepared.stored == 61
    assert prepared.lines() == [
        "67 rows read, 61 pairs kept, 6 dropped",
        folds,
        "dropped 1: equal answers; both answers are the same text (d.jsonl:66)",
        "dropped 5: answers equal in the window; both answers are the same tokens once cut to the window; raise "
        "windows.output and windows.reference to train on what differs",
        "note: 1 pairs repeat an earlier pair, prompt and both answers",
    ]


def test_cut_rows_are_counted_by_column(tmp_path):
    long = "word " * 100
    record = {"prompt": long, "chosen": f"a {long}", "rejected": "b"}
    prepared = prepare(run_on(put(tmp_path / "d.jsonl", [*rows("q"), record])))
    assert prepared.cut == {"prompt": 1, "better": 1, "worse": 0}
    assert "cut to their windows: 1 prompts, 1 better answers" in prepared.lines()


def test_empty_folds_are_named_before_anything_trains(tmp_path):
    run = run_on(put(tmp_path / "d.jsonl", rows("q", 1)))
    prepared = prepare(run)
    (full,) = [name for name, count in prepared.folds.items() if count]
    empty = [name for name in FOLDS if name != full]
    assert f"note: fold {' and '.join(empty)} is empty; no stage that reads it can work" in prepared.lines()
    with pytest.raises(DataError, match=rf"fold '{empty[0]}' has no rows \(rows by fold: .*{full} 1.*; give more pref"):
        run.fold(empty[0])
    with pytest.raises(DataError, match="has no rows"):
        require_folds(run)
    assert len(run.fold(full)) == 1


def test_a_published_split_is_the_eval_fold(tmp_path):
    put(tmp_path / "d" / "train.jsonl", rows("Why", 300))
    put(tmp_path / "d" / "test.jsonl", [*rows("How", 20), *rows("Why", 5), {"prompt": "x"}])
    run = run_on(tmp_path / "d", "data.eval_split=test")
    prepared = prepare(run)
    assert prepared.folds["eval"] == 25
    assert prepared.unusable == {"prompt of the evaluation split": 5}
    assert prepared.lines()[0] == "300 rows read, 320 pairs kept, 5 dropped; 26 rows of the evaluation split"
    assert "evaluation split: dropped 1: missing column" in "\n".join(prepared.lines())
    texts = {name: {prompt_of(run, name, i) for i in range(len(run.fold(name)))} for name in FOLDS}
    tests = {f"How {i}?" for i in range(20)} | {f"Why {i}?" for i in range(5)}
    assert texts["eval"] == tests
    assert set().union(*(texts[name] for name in FOLDS if name != "eval")) == {f"Why {i}?" for i in range(5, 300)}
    shares = {name: prepared.folds[name] / 295 for name in FOLDS}
    assert all(abs(shares[name] - 0.28 / 0.94) < 0.12 for name in ("sft", "reward", "rl"))
    # The test split is among the files that the stamp vouches for.
    put(tmp_path / "d" / "test.jsonl", rows("How", 21))
    assert prepare(run) is not None
    with pytest.raises(ConfigError, match=r"data.eval_split = 'test': needs data of your own"):
        override(recipe("tiny"), ["data.eval_split=test"])


def test_a_split_that_nothing_tells_is_refused(tmp_path):
    data = put(tmp_path / "d.jsonl", rows("Why"))
    with pytest.raises(DataError, match=r"data.eval_split = 'test', but neither names of files nor a column 'split'"):
        prepare(run_on(data, "data.eval_split=test"))
    put(data, [*rows("Why", split="train"), *rows("How", 9, split="test")])
    assert prepare(run_on(data, "data.eval_split=test")).folds["eval"] == 9


def test_stages_name_the_command_that_makes_what_is_lost(tmp_path):
    run = run_on(put(tmp_path / "d.jsonl", rows("Why")))
    prepare(run)
    (run.folder / "tokenizer.json").rename(tmp_path / "t.json")
    with pytest.raises(DataError, match=r"tokenizer.json: missing; make it again with `pit data prepare`"):
        Run(run.folder, run.config).fold("sft")
    (tmp_path / "t.json").rename(run.folder / "tokenizer.json")
    shutil.rmtree(run.folder / "store")
    with pytest.raises(DataError, match=r"store: no token store here .* make one with `pit data prepare`"):
        Run(run.folder, run.config).fold("sft")


def prompt_of(run, fold, index):
    (message,) = run.template.decode_prompt(run.fold(fold).row(index)[0])
    return message.content


def test_conversations_that_open_alike_can_be_folded_by_their_whole_prompt(tmp_path):
    hi = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    records = [
        {**row, "prompt": [*hi, {"role": "user", "content": f"Question {i}"}]} for i, row in enumerate(rows("q", 300))
    ]
    data = put(tmp_path / "d.jsonl", records)
    prepared = prepare(run_on(data))
    assert len([count for count in prepared.folds.values() if count]) == 1
    assert prepared.notes == (
        "note: fold reward holds 100% of the pairs, its share is 28%: 300 of 300 conversations open with 'Hi'; set "
        "data.fold_by=prompt to fold by the whole prompt",
    )
    prepared = prepare(run_on(data, "data.fold_by=prompt", out="other"))
    assert all(prepared.folds.values())
    assert prepared.notes == ()


def test_tokenizer_texts_are_those_of_the_sft_fold(tmp_path, monkeypatch):
    run = run_on(put(tmp_path / "d.jsonl", rows("Why")))
    texts, original = Counter(), Tokenizer.train_bpe
    monkeypatch.setattr(Tokenizer, "train_bpe", lambda given, size: original(_noted(texts, given), size))
    prepare(run)
    stored = {prompt_of(run, "sft", i) for i in range(len(run.fold("sft")))}
    preferences, _ = read_preferences(run.config.data.path)
    expected = Counter(
        text for row in preferences if row.prompt[0].content in stored for text in (row.prompt[0].content, *row[1:3])
    )
    assert texts == expected


def _noted(texts, given):
    for text in given:
        texts[text] += 1
        yield text


def test_the_command_prints_the_report_and_keeps_what_may_change(tmp_path):
    data, out = put(tmp_path / "d.jsonl", [*rows("Why", 200), {"prompt": "x"}]), tmp_path / "run"
    arguments = ["tiny", "--data", str(data), "--out", str(out)]
    first = CliRunner().invoke(data_prepare, arguments)
    assert first.stdout.splitlines()[0] == f"{out / 'store'}: 201 rows read, 200 pairs kept, 1 dropped"
    assert first.stdout.splitlines()[2].startswith("  dropped 1: missing column; 'chosen' is missing or null;")
    again = CliRunner().invoke(data_prepare, [*arguments, "--set", "workers=1"])
    assert again.stdout == f"{out / 'store'}: up to date\n"
    assert json.loads((out / "config.json").read_text())["workers"] == 1
