"""Which files of a folder are read, in which encodings, and what is said about the others."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from pit.data.errors import DataError
from pit.data.readers import find_files, read_preferences
from pit.data.readers.sources import split_of
from pit.types import Preference

LAMP = {"prompt": "Describe a lamp.", "chosen": "Red and tall.", "rejected": "A lamp."}
BOAT = {"prompt": "Describe a boat.", "chosen": "It floats.", "rejected": "No."}
CAR = {"prompt": "Describe a car.", "chosen": "It drives.", "rejected": "Who knows."}


def put(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **options: Any) -> tuple[list[Preference], Any]:
    rows, report = read_preferences(path, **options)
    return list(rows), report


def prompts(path: Path, **options: Any) -> list[str]:
    return [row.prompt[0].content for row in read(path, **options)[0]]


def test_hidden_files_and_folders_are_not_data(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", LAMP)
    put(tmp_path / ".rows.jsonl", BOAT)
    put(tmp_path / ".ipynb_checkpoints" / "rows-checkpoint.jsonl", LAMP)
    put(tmp_path / "sub" / ".cache.json", BOAT)
    found, report = read(tmp_path)
    assert len(found) == 1
    assert report.passed_over == {}
    # Whoever names a hidden file or folder means it.
    assert len(read(tmp_path / ".rows.jsonl")[0]) == 1
    assert len(read(tmp_path / ".ipynb_checkpoints")[0]) == 1


def test_folders_and_files_are_named_as_splits(tmp_path: Path) -> None:
    put(tmp_path / "data" / "train" / "rows.jsonl", LAMP)  # a name deeper than a direct subfolder
    for folder, row in (("train", LAMP), ("test", BOAT)):
        put(tmp_path / "by-folder" / folder / "part.jsonl", row)
    for name, row in (("hh_train.jsonl", LAMP), ("hh_Test.jsonl", BOAT), ("hh-dev-0.jsonl", CAR)):
        put(tmp_path / "by-file" / name, row)
    assert prompts(tmp_path / "by-folder") == ["Describe a lamp."]
    assert prompts(tmp_path / "by-folder", split="test") == ["Describe a boat."]
    assert prompts(tmp_path / "by-file") == ["Describe a lamp."]
    assert prompts(tmp_path / "by-file", split="test") == ["Describe a boat."]
    assert prompts(tmp_path / "by-file", split="validation") == ["Describe a car."]
    # The innermost name counts, and the name of the folder that was asked for does not.
    put(tmp_path / "test" / "train.jsonl", CAR)
    assert prompts(tmp_path / "test") == ["Describe a car."]
    with pytest.raises(DataError, match=r"by-folder: no file for split 'validation'; choose one of \['test"):
        read(tmp_path / "by-folder", split="validation")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("train_prefs", "train"),
        ("TRAIN", "train"),
        ("valid1", "validation"),
        ("my.eval.jsonl", "test"),
        ("holdout.jsonl", "test"),
        ("my_held_out-0.jsonl", "test"),
        ("hold-out", "test"),
        ("Held Out", "test"),
        ("testing", "test"),
        ("tests", "test"),
        ("evals", "test"),
        ("evaluations.json", "test"),
        ("development", "validation"),
        ("protesting", None),
        ("threshold-outputs", None),
        ("withhold_out", None),
        ("contest", None),
        ("latest-devices", None),
        ("trained", None),
    ],
)
def test_words_tell_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_mixture_of_named_and_unnamed_files_is_said_or_refused(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", LAMP)
    put(tmp_path / "extra.jsonl", BOAT)
    put(tmp_path / "a" / "b" / "deep.jsonl", CAR)
    found, report = read(tmp_path)
    assert len(found) == 1
    assert report.passed_over == {
        "a/b/deep.jsonl": "deeper than a direct subfolder",
        "extra.jsonl": "its name tells no split, and train.jsonl tells 'train'",
    }
    assert report.notes()[1] == "passed over extra.jsonl: its name tells no split, and train.jsonl tells 'train'"
    (tmp_path / "train.jsonl").rename(tmp_path / "test.jsonl")
    with pytest.raises(DataError, match=r"no file for split 'train'; .*; extra.jsonl does not name its split, rename"):
        read(tmp_path)


def test_rows_of_another_split_are_counted_by_its_name(tmp_path: Path) -> None:
    path = put(
        tmp_path / "rows.jsonl",
        {**LAMP, "split": "train_prefs"},
        {**BOAT, "split": "Train"},
        {**CAR, "split": "test_prefs"},
        {**CAR, "split": "gold"},
    )
    found, report = read(path)
    assert len(found) == 2
    assert report.other_splits == {"test_prefs": 1, "gold": 1}
    assert report.losses() == ["of another split 2: column 'split' says 'test_prefs' 1, 'gold' 1"]
    assert prompts(path, split="test") == ["Describe a car."]


def test_a_file_is_read_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    real = put(tmp_path / "elsewhere" / "rows.jsonl", LAMP)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "linked").symlink_to(real.parent)
    (folder / "again.jsonl").symlink_to(real)
    (folder / "hard.jsonl").hardlink_to(real)
    found, report = read(folder)
    assert len(found) == 1
    assert report.passed_over == {
        "hard.jsonl": "the same file as again.jsonl",
        "linked/rows.jsonl": "the same file as again.jsonl",
    }


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", LAMP)
    (tmp_path / "more.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"more.jsonl: links to gone.jsonl, which is not there; restore it or remove"):
        read(tmp_path)


def test_one_set_in_two_encodings_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", LAMP)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    with pytest.raises(DataError, match=r"rows.jsonl and rows.jsonl.gz look like one set in two encodings; keep one"):
        read(tmp_path)


def save_to_disk(folder: Path, rows: list[dict[str, Any]], name: str = "data-00000-of-00001.arrow") -> None:
    """Write a folder as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": None}, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}, indent=2))


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "one", [LAMP, BOAT])
    put(tmp_path / "one" / "cache-1234.arrow")
    found, report = read(tmp_path / "one")
    assert len(found) == 2
    assert report.files == {"data-00000-of-00001.arrow": "trl"}
    assert report.passed_over == {"cache-1234.arrow": "not listed in state.json"}
    for split, rows in (("train", [LAMP]), ("test", [BOAT, CAR])):
        save_to_disk(tmp_path / "many" / split, rows)
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(read(tmp_path / "many")[0]) == 1
    assert len(read(tmp_path / "many", split="test")[0]) == 2
    (tmp_path / "one" / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state.json: not the state of a saved data set \(TypeE.*\); save it"):
        read(tmp_path / "one")


def test_arrow_files_of_either_kind(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**LAMP, "prompt": f"Question {i}?"} for i in range(2500)])
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    found = prompts(tmp_path)
    assert found == [f"Question {i}?" for i in range(2500)]
    (tmp_path / "rows.arrow").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"rows.arrow: not a readable Arrow file after row 0"):
        read(tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_json_arrays(tmp_path: Path, indent: int | None, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    content = ("\ufeff \n" + json.dumps([LAMP, 3, BOAT], indent=indent) + "\n").encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found, report = read(path)
    assert [row.prompt[0].content for row in found] == ["Describe a lamp.", "Describe a boat."]
    assert report.places == {"not an object": [f"rows{suffix}:2"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"prompt": "a"}', r"not a JSON array after item 1 \(it ends too early\)"),
        ('[{"prompt": "a"} {"prompt": "b"}]', r"after item 1 \(expected a comma at character 17\)"),
        ('[{"prompt": ]', r"after item 1 \(Expecting value"),
        ('[{"prompt": "a"}] {}', r"after item 1 \(more text after the array, at character 17\)"),
        ("[" * 100_000, "not a JSON array after item 1"),
        ("[]", "no rows in"),
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read(path)


def test_doubled_keys_are_no_choice_of_ours(tmp_path: Path) -> None:
    good, twice = json.dumps(LAMP), '{"prompt": "Why?", "chosen": "a", "chosen": "b", "rejected": "c"}'
    nested = '{"prompt": [{"role": "user", "role": "user", "content": "x"}], "chosen": "a", "rejected": "c"}'
    (tmp_path / "lines.jsonl").write_text(f"{good}\n{twice}\n{nested}\n")
    (tmp_path / "array.json").write_text(f"[{good}, {twice}, {nested}]")
    found, report = read(tmp_path)
    assert len(found) == 2
    assert report.places == {"doubled key": [f"{name}:{i}" for name in ("array.json", "lines.jsonl") for i in (2, 3)]}
    assert report.details == {"doubled key": "the key 'chosen' occurs twice in one object; keep one of them"}


def test_doubled_columns_are_no_choice_of_ours(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    table = pa.Table.from_arrays(columns, names=["prompt", "chosen", "chosen"])
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "more.csv").write_text("prompt,chosen,chosen\na,b,c\n")
    for name in ("rows.parquet", "more.csv"):
        with pytest.raises(DataError, match=rf"{name}: more than one column is named 'chosen'; keep one of them"):
            read(tmp_path / name)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfprompt,chosen,rejected,hard\r\n"Why, then?","It ""is"".\nSo.",No.,2\r\n\r\n'
        b"How?,Well.,,1\r\nHow?,a,b\r\nHow?,\xff,b,1\r\nWho?,I.,You.,x\r\n"
    )
    found, report = read(path, difficulty_column="hard")
    assert [(row.prompt[0].content, row.better, row.worse, row.difficulty) for row in found] == [
        ("Why, then?", 'It "is".\nSo.', "No.", 2.0)
    ]
    assert report.dropped == {"missing column": 1, "wrong number of fields": 1, "bad UTF-8": 1, "wrong type": 1}
    assert report.details["wrong number of fields"] == "3 fields under 4 columns; quote fields that hold commas"
    assert report.places["bad UTF-8"] == ["rows.csv:4"]
    (tmp_path / "more.csv.gz").write_bytes(gzip.compress(b'prompt,chosen,rejected\nq,"a" b,c\n'))
    with pytest.raises(DataError, match=r"more.csv.gz: not valid CSV after row 0 \(.*\); write the file again"):
        read(tmp_path / "more.csv.gz")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "completion": "a", "label": True}, "single answers with a label .* needs two answers to one"),
        ({"instruction": "q", "completions": [{"response": "a"}]}, "write rows with prompt, responses .* and scores"),
        ({"messages": [], "id": 1}, "conversations without a preference; write rows with prompt, chosen and rejected"),
        ({"a": 1, "b": 2}, r"columns \['a', 'b'\]; convert it to 'hh' .* or move the file out of the folder"),
    ],
)
@pytest.mark.parametrize("write", [put, lambda path, row: write_parquet(path, row)])
def test_sets_without_pairs_are_refused_with_what_they_need(
    tmp_path: Path, row: dict[str, Any], words: str, write: Callable[[Path, Any], Path]
) -> None:
    put(tmp_path / "good.jsonl", LAMP)
    write(tmp_path / ("other.jsonl" if write is put else "other.parquet"), row)
    with pytest.raises(DataError, match=rf"other.(jsonl|parquet): unknown format, its first 1 rows .*{words}"):
        read(tmp_path)


def write_parquet(path: Path, row: dict[str, Any]) -> Path:
    pa.parquet.write_table(pa.Table.from_pylist([row]), path)
    return path


def test_sets_with_pictures_are_refused(tmp_path: Path) -> None:
    assert len(read(put(tmp_path / "none.jsonl", {**LAMP, "images": []}))[0]) == 1
    lines = put(tmp_path / "some.jsonl", {**LAMP, "images": ["x.png"]})
    for path in (lines, write_parquet(tmp_path / "some.parquet", {**LAMP, "image": b"png"})):
        with pytest.raises(DataError, match=rf"{path.name}: has pictures .column 'images?'., .* give a set of texts"):
            read(path)


def test_the_files_are_those_that_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "train" / "a.jsonl", LAMP)
    put(tmp_path / "test" / "b.jsonl", BOAT)
    put(tmp_path / ".hidden.jsonl", BOAT)
    put(tmp_path / "notes.txt")
    opened = []
    original = Path.open

    def spy(self: Path, *args: Any, **more: Any) -> Any:
        opened.append(self)
        return original(self, *args, **more)

    monkeypatch.setattr(Path, "open", spy)
    read(tmp_path)
    assert set(opened) == set(find_files(tmp_path, "train").files) == {tmp_path / "train" / "a.jsonl"}
