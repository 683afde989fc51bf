"""Every published format is read, every unusable row is counted by its reason, every damaged file is named."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.errors import DataError
from pit.data.readers import ReadReport, Reason, read_preferences, streams
from pit.types import Message, Preference

HH = {
    "chosen": "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: No.",
}
HH_ROW = Preference(
    (Message("user", "Hi there"), Message("assistant", "Hello."), Message("user", "Why?")), "Because.", "No."
)
SUMMARY: dict[str, Any] = {
    "info": {"id": "1", "title": "My dog", "post": "It barks.\nA lot.", "subreddit": "dogs"},
    "summaries": [{"text": " Dog silent.", "policy": "a"}, {"text": " Dog barks.", "policy": "b"}],
    "choice": 1,
    "split": "train",
}
SUMMARY_ROW = Preference((Message("user", "My dog\n\nIt barks.\nA lot."),), "Dog barks.", "Dog silent.")
TRL = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
TRL_ROW = Preference((Message("user", "Why?"),), "Because.", "No.")


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, GOOD, BAD = says("user", "Why?"), says("assistant", "Because."), says("assistant", "No.")


def put(path: Path, *rows: object) -> Path:
    """Write rows as JSON lines; bytes go in as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path, **options: Any) -> tuple[list[Preference], ReadReport]:
    rows, report = read_preferences(path, **options)
    kept = list(rows)
    assert report.rows == report.kept + report.dropped.total()
    assert report.kept == len(kept)
    return kept, report


@pytest.mark.parametrize(
    ("record", "row", "format"),
    [
        (HH, HH_ROW, "hh"),
        (SUMMARY, SUMMARY_ROW, "summarize"),
        (
            {**SUMMARY, "info": {"article": "News.", "title": None}},
            SUMMARY_ROW._replace(prompt=(Message("user", "News."),)),
            "summarize",
        ),
        (TRL, TRL_ROW, "trl"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, TRL_ROW, "trl"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, TRL_ROW, "trl"),
        ({"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, TRL_ROW, "trl"),
        ({"chosen": "Why? Because.", "rejected": "Why? No."}, TRL_ROW, "trl"),
        # Both answers begin with the same letters: the cut goes back to the last whitespace.
        ({"chosen": "Why? Noon.", "rejected": "Why? No."}, TRL_ROW._replace(better="Noon."), "trl"),
        ({"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " Because.", "rejected": " No."}, TRL_ROW, "trl"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_each_format_is_detected_and_read(
    tmp_path: Path, record: dict[str, Any], row: Preference, format: str, suffix: str
) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist([record, record]), path)
    else:
        put(path, record, b"", record)
    for options in ({}, {"format": format}, {"strict": True}):
        found, report = read(path, **options)
        assert found == [row, row]
        assert report == ReadReport(files={path.name: format}, rows=2, kept=2, pairs=2)


DIRTY: list[tuple[object, Reason, str]] = [
    (b'{"chosen": ', Reason.JSON, "Expecting value"),
    (b"[" * 100_000, Reason.JSON, "recursion"),
    (b'{"prompt": "\xff"}', Reason.UTF8, "byte 12 of the line"),
    ({**TRL, "chosen": "\ud800"}, Reason.UTF8, "lone surrogate at character 0"),
    ([1], Reason.OBJECT, "the row is a list"),
    ({"prompt": "Why?", "chosen": "x"}, Reason.MISSING, "'rejected' is missing or null"),
    ({**TRL, "chosen": None}, Reason.MISSING, "'chosen' is missing or null"),
    ({**TRL, "chosen": 3}, Reason.TYPE, "'chosen' is int, not text or a list of messages"),
    ({**TRL, "prompt": 3}, Reason.TYPE, "'prompt' is int"),
    ({**TRL, "chosen": [GOOD]}, Reason.TYPE, "'rejected' is str"),
    ({**TRL, "prompt": [says("human", "Why?")]}, Reason.ROLE, "a message of role 'human'; only system, developer,"),
    ({"chosen": [USER, GOOD], "rejected": [says("user", "How?"), BAD]}, Reason.PROMPTS, "differ before their last"),
    ({"prompt": "How?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, Reason.PROMPTS, "do not begin with"),
    ({**TRL, "rejected": " Because.\n"}, Reason.EQUAL, "same text"),
    ({**TRL, "rejected": "  "}, Reason.EMPTY_ANSWER, "the rejected answer"),
    ({**TRL, "chosen": ""}, Reason.EMPTY_ANSWER, "the chosen answer"),
    ({"chosen": [USER], "rejected": [USER, BAD]}, Reason.NO_ANSWER, "does not end with an assistant message"),
    ({**TRL, "prompt": " "}, Reason.EMPTY_PROMPT, "no message of the prompt has text"),
    ({"chosen": "Yes.", "rejected": "No."}, Reason.NO_PROMPT, "share no first word"),
    ({"chosen": "Why? No.", "rejected": "Why? No."}, Reason.EQUAL, "same text"),
]
DIRTY_HH: list[tuple[object, Reason, str]] = [
    ({"chosen": HH["chosen"]}, Reason.MISSING, "'rejected' is missing or null"),
    ({**HH, "rejected": 1}, Reason.TYPE, "'rejected' is int, not text"),
    ({**HH, "rejected": "\n\nHuman: Hi"}, Reason.TRANSCRIPT, "'rejected' has no Assistant turn"),
    ({"chosen": "Hi\n\nAssistant: a", "rejected": "Hi\n\nAssistant: b"}, Reason.TRANSCRIPT, "does not begin with"),
    ({**HH, "rejected": "\n\nHuman: Ho\n\nAssistant: No."}, Reason.PROMPTS, "differ before their last Assistant"),
    ({**HH, "rejected": HH["chosen"] + " "}, Reason.EQUAL, "same text"),
    ({**HH, "rejected": HH["rejected"][: -len(" No.")]}, Reason.EMPTY_ANSWER, "the rejected answer"),
    (
        {"chosen": "\n\nHuman: \n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"},
        Reason.EMPTY_PROMPT,
        "no message",
    ),
]
DIRTY_SUMMARY: list[tuple[object, Reason, str]] = [
    ({**SUMMARY, "info": 3}, Reason.TYPE, "'info' is int"),
    ({**SUMMARY, "info": {"title": "x"}}, Reason.MISSING, "'article' is missing or null"),
    ({**SUMMARY, "info": {"title": 3, "post": "x"}}, Reason.TYPE, "'title' is int"),
    ({**SUMMARY, "summaries": [{"text": "one"}]}, Reason.TYPE, "not a list of two objects"),
    ({**SUMMARY, "summaries": [{"text": "one"}, {}]}, Reason.MISSING, "'text' is missing or null"),
    ({**SUMMARY, "choice": 2}, Reason.TYPE, "'choice' is 2, not 0 or 1"),
    ({**SUMMARY, "choice": True}, Reason.TYPE, "'choice' is True"),
    ({key: SUMMARY[key] for key in ("info", "summaries")}, Reason.MISSING, "'choice' is missing or null"),
]
CASES = [(clean, *case) for clean, cases in ((TRL, DIRTY), (HH, DIRTY_HH), (SUMMARY, DIRTY_SUMMARY)) for case in cases]


@pytest.mark.parametrize(("clean", "record", "reason", "words"), CASES)
def test_each_unusable_row_is_counted_with_its_place(
    tmp_path: Path, clean: object, record: object, reason: Reason, words: str
) -> None:
    path = put(tmp_path / "rows.jsonl", clean, record, clean)
    found, report = read(path)
    assert len(found) == 2
    assert report.dropped == {reason.value: 1}
    assert report.places == {reason.value: ["rows.jsonl:2"]}
    with pytest.raises(DataError) as caught:
        read(path, strict=True)
    assert str(caught.value).startswith(f"{path}:2: {reason.value}: ")
    assert words in str(caught.value)


def test_only_the_first_places_are_reported(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", TRL, *[b"{"] * 20)
    _, report = read(path)
    assert report.dropped == {"bad JSON": 20}
    assert report.places["bad JSON"] == [f"rows.jsonl:{number}" for number in range(2, 7)]


def test_a_published_hh_folder(tmp_path: Path) -> None:
    for name in ("helpful-base", "harmless-base"):
        put(tmp_path / name / "train.jsonl.gz", HH)
        put(tmp_path / name / "test.jsonl.gz", HH, HH)
    put(tmp_path / "red-team-attempts" / "red_team_attempts.jsonl.gz", {"transcript": "x"})
    found, report = read(tmp_path)
    assert found == [HH_ROW] * 2
    assert report.files == {"harmless-base/train.jsonl.gz": "hh", "helpful-base/train.jsonl.gz": "hh"}
    assert len(read(tmp_path, split="test")[0]) == 4
    assert len(read(tmp_path / "helpful-base", split="test")[0]) == 2
    with pytest.raises(DataError, match=r"no file for split 'validation'; choose one of \['test', 'train'\]"):
        read(tmp_path, split="validation")


def test_a_published_comparisons_folder_mixes_splits_by_row(tmp_path: Path) -> None:
    put(tmp_path / "comparisons" / "batch3.json", SUMMARY, {**SUMMARY, "split": "valid1"})
    put(tmp_path / "comparisons" / "batch4.json", {**SUMMARY, "split": "valid2"})
    found, report = read(tmp_path)
    assert (len(found), report.other_split) == (1, 2)
    found, report = read(tmp_path, split="validation")
    assert (len(found), report.other_split) == (2, 1)


def test_files_of_different_formats_lie_side_by_side(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", HH)
    put(tmp_path / "b.jsonl", b"\xef\xbb\xbf" + json.dumps(TRL).encode())
    put(tmp_path / "c.jsonl")
    found, report = read(tmp_path)
    assert found == [HH_ROW, TRL_ROW]
    assert report.files == {"a.jsonl": "hh", "b.jsonl": "trl"}


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", *[TRL] * 200, b"{")
    rows, report = read_preferences(path, strict=True)
    assert next(rows) == TRL_ROW
    assert report.rows == 1


def nothing(path: Path) -> Path:
    return path / "absent"


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (nothing, {}, "absent: no such file or folder"),
        (lambda path: path, {}, "no file in it or its subfolders ends in one of"),
        (lambda path: put(path / "rows.txt", TRL), {}, r"rows.txt: must end in one of"),
        (lambda path: put(path / "rows.jsonl"), {}, r"no rows in \['rows.jsonl'\]"),
        (lambda path: put(path / "rows.jsonl"), {"format": "hh"}, r"no rows in \['rows.jsonl'\]"),
        (
            lambda path: put(path / "rows.jsonl", {"text": "x"}),
            {},
            r"unknown format, its first 1 rows have the columns \['text'\]",
        ),
        (
            lambda path: put(path / "rows.jsonl", b"garbage"),
            {},
            "unknown format, none of its first 1 rows is a JSON object",
        ),
        (
            lambda path: put(path / "rows.jsonl", TRL),
            {"format": "csv"},
            r"format='csv' is unknown; use one of \['auto', 'hh'",
        ),
        (lambda path: put(path / "rows.jsonl", TRL), {"split": "all"}, r"split='all' is unknown; use one of \['train'"),
    ],
)
def test_unreadable_data_are_named(
    tmp_path: Path, make: Callable[[Path], Path], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_preferences(make(tmp_path), **options)


@given(st.data())
def test_a_damaged_gzip_never_passes_for_a_shorter_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = gzip.compress(b"".join(json.dumps({**TRL, "prompt": f"q{i}"}).encode() + b"\n" for i in range(30)))
    cut = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.jsonl.gz"
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"cut.jsonl.gz: the gzip stream is damaged or truncated after line \d+"):
        read(path)


def test_a_file_that_is_not_gzip_or_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(b"plain text\n")
    with pytest.raises(DataError, match=r"rows.jsonl.gz: the gzip stream is damaged"):
        read(tmp_path / "rows.jsonl.gz")
    (tmp_path / "rows.parquet").write_bytes(b"plain text\n")
    with pytest.raises(DataError, match=r"rows.parquet: not a readable Parquet file after row 0"):
        read(tmp_path / "rows.parquet")


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1000)
    path = put(tmp_path / "rows.jsonl", TRL, b"x" * 1001)
    with pytest.raises(DataError, match=r"rows.jsonl:2: a line of more than 1000 bytes"):
        read(path)


def test_bad_text_in_parquet_costs_its_row_alone(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff", b"fine"], pa.binary())
    chosen = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    table = pa.table({"prompt": ["a", "b", "c"], "chosen": chosen, "rejected": ["x", "y", "z"], "other": [1, 2, 3]})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    found, report = read(tmp_path / "rows.parquet")
    assert [row.better for row in found] == ["good", "fine"]
    assert report.places == {"bad UTF-8": ["rows.parquet:2"]}


def test_the_real_hh_rows() -> None:
    """Needs PIT_HH_DATA, a folder of HH-RLHF as published; asserts shapes and prints no text."""
    if "PIT_HH_DATA" not in os.environ:
        pytest.skip("PIT_HH_DATA is not set: name a folder of HH-RLHF as published")
    for split in ("train", "test"):
        found, report = read(Path(os.environ["PIT_HH_DATA"]), split=split)
        assert report.kept > 0.95 * report.rows > 0
        assert set(report.files.values()) == {"hh"}
        reasons = {"prompts differ", "equal answers", "empty answer", "empty prompt", "no answer at the end"}
        assert set(report.dropped) <= reasons
        well_formed = [row.prompt[0].role == "user" == row.prompt[-1].role for row in found]
        assert sum(well_formed) > 0.99 * len(found)
        assert not any("\n\nAssistant:" in text for row in found for text in (row.better, row.worse))


def test_transcripts_with_line_ends_of_windows_are_read_as_transcripts(tmp_path: Path) -> None:
    def text(answer: str) -> str:
        return f"\r\n\r\nHuman: Hi\r\n\r\nAssistant: Hello\r\n\r\nHuman: Why?\r\n\r\nAssistant: {answer}"

    (tmp_path / "a.jsonl").write_text(json.dumps({"chosen": text("one"), "rejected": text("two")}))
    (row,) = read_preferences(tmp_path / "a.jsonl")[0]
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    assert row == Preference(turns, "one", "two")


def test_a_damaged_arrow_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    columns = {name: [f"{name} {i}" for i in range(50)] for name in ("prompt", "chosen", "rejected")}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    whole = path.read_bytes()
    offsets = whole.index(b"prompt 0prompt 1") - 64
    path.write_bytes(whole[:offsets] + b"\xff\xff\xff\x7f" + whole[offsets + 4 :])
    with pytest.raises(DataError, match=r"a.arrow: not a readable Arrow file after row 0 \(.*\); write it again"):
        list(read_preferences(path)[0])
