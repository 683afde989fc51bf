"""Preparing a run: what is there is kept, a stopped build resumes, every loss is named."""

import json
from collections import Counter

import pytest
from click.testing import CliRunner
from prepare_cases import put, rows, run_on

from pit.cli.data import data_prepare
from pit.config import ConfigError, FieldError, override
from pit.data.errors import DataError
from pit.data.readers import read_preferences
from pit.data.store import write
from pit.data.tokenizer import Tokenizer
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages.prepare import prepare, require_folds, require_rows
from pit.types import FOLDS


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
    prepared = prepare(run)
    assert sorted(written) == sorted({0, 1, 2, 3} - kept)
    assert prepared.stored == run.store.manifest["rows"] == 400
    made = ["config.json", "data", "prepared.json", "store", "tokenizer.json"]
    assert sorted(path.name for path in run.folder.iterdir()) == made


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
        "note: pairs that repeat an earlier one, prompt and both answers: 1",
    ]


def test_cut_rows_are_counted_by_column(tmp_path):
    long = "word " * 100
    record = {"prompt": long, "chosen": f"a {long}", "rejected": "b"}
    prepared = prepare(run_on(put(tmp_path / "d.jsonl", [*rows("q"), record])))
    assert prepared.cut == {"prompt": 1, "better": 1, "worse": 0}
    assert "cut to their windows: prompts 1, better answers 1" in prepared.lines()


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


def test_groups_too_small_for_the_trees_of_a_stage_are_named_before_anything_trains(run):
    prepare(run)
    require_rows(run)

    def changed(rows):
        small = [f"rl_improver_0.packing.{name}" for name in (f"rows={rows}", "row_length=80")]
        return Run(run.folder, override(run.config, [*small, "rl_improver_0.gap=symmetric"]))

    # Two samples, each seen from either side: four leaves of 80 tokens.
    rule = r"a tree gap_scoring_2_raw_swapped whose texts fill the windows needs 4 rows of 80 tokens"
    with pytest.raises(
        FieldError, match=rf"^rl_improver_0.packing.rows = 3: {rule}; set rl_improver_0.packing.rows=4$"
    ):
        require_rows(changed(3))
    with pytest.raises(FieldError, match=r"rl_improver_0.packing.rows = 1: a tree rollout_2_reference .* needs 2 rows"):
        require_rows(changed(1))
    require_rows(changed(4))


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


def test_further_columns_reach_the_rows_of_a_fold_and_a_wrong_name_is_refused(tmp_path):
    data = put(tmp_path / "d.jsonl", [{**row, "answer": i} for i, row in enumerate(rows("Why"))])
    run = run_on(data, "data.columns=answer")
    prepare(run)
    fold = run.fold("rl")
    for index, fact in enumerate(fold.facts(range(len(fold)))):
        assert run.template.decode_prompt(fold.row(index)[0])[0].content == f"Why {fact['answer']}?"
    wrong = run_on(data, "data.columns=answers", out="wrong")
    with pytest.raises(DataError, match=r"^data.columns = 'answers': no row of .*d.jsonl has a column 'answers'"):
        prepare(wrong)
