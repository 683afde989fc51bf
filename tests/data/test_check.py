"""Reports about data, on a set whose figures are known by construction."""

import io
import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from store_cases import TEMPLATE, TOKENIZER, rows_of_task

from pit.cli.data import data_check
from pit.data.check import check, check_store, draw_tree, wilson_interval
from pit.data.errors import DataError
from pit.data.store import Store, StoreError, build
from pit.data.template import RoleTemplate
from pit.data.tokenizer import Tokenizer
from pit.types import FOLDS, Message, Preference

# Every fourth row has the longer worse answer, every tenth (from row 3) two of equal length.
ROWS = [
    {
        "prompt": f"question {i % 90}",
        "chosen": "b" * (i + 1),
        "rejected": "w" * (i + 2 if i % 4 == 0 else i + 1 if i % 10 == 3 else i),
    }
    for i in range(100)
]


def make(path: Path) -> Path:
    lines = [json.dumps(row) for row in ROWS]
    (path / "rows.jsonl").write_text("\n".join([*lines, "{", json.dumps({**ROWS[0], "chosen": " "})]) + "\n")
    return path / "rows.jsonl"


def output_of(report_console: Console) -> str:
    file = report_console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_figures_known_by_construction(tmp_path: Path) -> None:
    report = check(make(tmp_path), template=RoleTemplate(Tokenizer.train_bpe([], 300)))
    assert (report.rows, report.kept, report.repeated_prompts, report.turns) == (102, 100, 10, 1)
    assert report.dropped == {"bad JSON": 1, "empty answer": 1}
    assert report.places == {"bad JSON": ["rows.jsonl:101"], "empty answer": ["rows.jsonl:102"]}
    assert report.characters["better"] == (10, 50, 90, 99, 100)
    assert report.tokens is not None
    # Bytes, a prefix space, and for the prompt its role token.
    assert report.tokens["better"] == (11, 51, 91, 100, 101)
    assert report.tokens["prompt"][-1] == len("question 89") + 2
    assert report.longer_is_better == pytest.approx(65 / 90)
    assert report.longer_is_better_interval == wilson_interval(65, 90)
    assert sum(report.folds.values()) == 100
    assert list(report.folds) == list(FOLDS)
    assert report.example == Preference((Message("user", "question 0"),), "b", "ww")


def test_what_is_checked_as_text_is_checked_as_tokens(tmp_path: Path) -> None:
    long = "b" * 40
    rows = [
        {"prompt": "fits", "chosen": "a", "rejected": "b"},
        {"prompt": "p" * 40, "chosen": long, "rejected": "b"},
        {"prompt": "alike", "chosen": f"{long}x", "rejected": f"{long}y"},
        {"prompt": "case", "chosen": "Same", "rejected": "same"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    report = check(path, template=RoleTemplate(lower_case(), (16, 16, 16)))
    assert report.cut == {"prompt": 1, "better": 2, "worse": 1}
    assert report.unusable == {"answers equal in the window": 1, "answers with equal tokens": 1}
    assert report.notes == ("note: pairs that repeat an earlier one, prompt and both answers: 1",)
    assert (report.rows, report.kept, report.pairs) == (5, 5, 5)
    console = Console(file=io.StringIO(), width=160)
    report.render(console)
    text = output_of(console)
    for words in ("unusable as tokens: answers with equal tokens", "cut: better", "note: pairs that repeat"):
        assert words in text
    plain = check(path)
    assert (plain.cut, plain.unusable, plain.tokens) == (None, None, None)


def test_a_prompt_of_no_token_is_counted_and_named(tmp_path: Path) -> None:
    dropped = {"prompt": "\u200b\u200b", "chosen": "a", "rejected": "b"}
    rows = [dropped, {**dropped, "system": "Be brief."}, {**dropped, "prompt": "a\u200b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = json.loads(Tokenizer.train_bpe([], 300).to_json())
    normalizer = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    tokenizer = Tokenizer.from_json(json.dumps({**content, "normalizer": normalizer}))
    assert check(tmp_path, template=RoleTemplate(tokenizer)).unusable == {"prompt without tokens": 2}
    assert check(tmp_path).unusable is None


def lower_case() -> Tokenizer:
    """Return a tokenizer that drops the case of letters."""
    content = json.loads(Tokenizer.train_bpe([], 300).to_json())
    return Tokenizer.from_json(json.dumps({**content, "normalizer": {"type": "Lowercase"}}))


def test_the_command_counts_tokens_by_a_tokenizer(tmp_path: Path) -> None:
    lower_case().save(tmp_path / "t.json")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "Same", "rejected": "same"}))
    arguments = [str(tmp_path / "rows.jsonl"), "--tokenizer", str(tmp_path / "t.json"), "--json"]
    content = json.loads(CliRunner().invoke(data_check, arguments).output)
    assert content["unusable"] == {"answers with equal tokens": 1}
    assert content["cut"] == {"prompt": 0, "better": 0, "worse": 0}


def test_json_holds_the_report_but_no_text(tmp_path: Path) -> None:
    report = check(make(tmp_path))
    content = json.loads(report.to_json())
    assert content["kept"] == 100
    assert content["tokens"] is None
    assert "example" not in content
    assert "question" not in report.to_json()


def test_a_set_of_equal_lengths_has_no_length_bias(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}))
    report = check(path)
    assert math.isnan(report.longer_is_better)
    assert json.loads(report.to_json())["longer_is_better"] is None


def test_the_report_can_be_read(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    check(make(tmp_path)).render(console)
    text = output_of(console)
    for words in (
        "dropped: bad JSON",
        "rows.jsonl:101",
        "72.2%",
        "10 rows repeat a prompt",
        "fold judge",
        "question 0",
    ):
        assert words in text
    console = Console(file=io.StringIO(), width=160)
    check(make(tmp_path)).render(console, example=False)
    assert "question 0" not in output_of(console)


def test_the_tree_is_drawn_with_its_orders() -> None:
    console = Console(file=io.StringIO(), width=100)
    row = Preference((Message("user", "[red]why[/red]\n" + "x" * 100),), "good", "bad")
    console.print(draw_tree(row))
    lines = [line.rstrip() for line in output_of(console).splitlines()]
    assert lines[0] == f"x [121 characters] user: [red]why[/red] {'x' * 38}…"
    assert lines[1:] == [
        "├── reference: better [4 characters] good",
        "│   ├── output: better [4 characters] good",
        "│   │     scored as r(better, better)",
        "│   └── output: worse [3 characters] bad",
        "│         scored as r(worse, better)",
        "└── reference: worse [3 characters] bad",
        "    ├── output: better [4 characters] good",
        "    │     scored as r(better, worse)",
        "    └── output: worse [3 characters] bad",
        "          scored as r(worse, worse)",
    ]


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_solves_its_equation(successes: int, others: int) -> None:
    trials = successes + others
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= high <= 1
    if trials == 0:
        assert (low, high) == (0, 1)
        return
    share = successes / trials
    # The ends are the shares p from which the observed one is 1.96 standard deviations away.
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / trials, abs=1e-9)


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        check(tmp_path / "absent")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return build(rows_of_task(60), tmp_path / "s", TEMPLATE)


@pytest.mark.parametrize("full", [False, True])
def test_the_report_of_a_store_gives_its_contents(store: Store, full: bool) -> None:
    report = check_store(store.path, full)
    assert list(report.folds) == list(FOLDS)
    assert {name: fold["rows"] for name, fold in report.folds.items()} == {
        name: len(store.fold(name)) for name in FOLDS
    }
    assert sum(fold["rows"] for fold in report.folds.values()) == store.manifest["rows"]
    assert sum(fold["tokens"] for fold in report.folds.values()) == store.manifest["tokens"]
    assert sum(fold["files"] for fold in report.folds.values()) == len(list(store.path.glob("*.arrow")))
    assert sum(fold["bytes"] for fold in report.folds.values()) == sum(
        path.stat().st_size for path in store.path.glob("*.arrow")
    )
    assert (report.windows, report.tokenizer, report.hash) == ((16, 12, 12), TOKENIZER.hash, store.hash)
    assert json.loads(report.to_json())["full"] is full
    console = Console(file=io.StringIO(), width=300)
    report.render(console)
    assert f"{store.manifest['tokens']:,}" in output_of(console)
    result = "every byte is as it was written" if full else "sizes and offsets fit; --full verifies every byte"
    assert result in output_of(console)


def flip_a_token(store: Store) -> None:
    """Damage the store so that only reading the tokens shows it: by another token of the vocabulary."""
    path = store.path / "sft-00000.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(store.fold("sft").row(0)[0].tobytes())] ^= 1
    path.write_bytes(content)


def test_the_command_checks_stores_and_full_finds_damage(store: Store) -> None:
    run = CliRunner()
    assert "every byte is as it was written" in run.invoke(data_check, [str(store.path), "--full"]).output
    assert json.loads(run.invoke(data_check, [str(store.path), "--json"]).output)["hash"] == store.hash
    for option in (
        ["--strict"],
        ["--format", "trl"],
        ["--split", "test"],
        ["--tokenizer", str(store.path / "manifest.json")],
    ):
        error = run.invoke(data_check, [str(store.path), *option]).exception
        assert isinstance(error, DataError)
        assert all(words in str(error) for words in (f"{store.path}: ", "token store", option[0]))
    flip_a_token(store)
    assert run.invoke(data_check, [str(store.path)]).exit_code == 0
    error = run.invoke(data_check, [str(store.path), "--full"]).exception
    assert isinstance(error, StoreError)
    assert re.search(r"sft-00000.arrow: record batch 0 is damaged: checksum 0x", str(error))


def test_the_command_refuses_full_on_raw_preferences_and_incomplete_stores(tmp_path: Path) -> None:
    run = CliRunner()
    path = make(tmp_path)
    for raw in (path, tmp_path):
        error = run.invoke(data_check, [str(raw), "--full"]).exception
        assert isinstance(error, DataError)
        assert str(error).startswith(f"{raw}: --full ")
    (tmp_path / "s.partial").mkdir()
    for incomplete in (tmp_path / "s", tmp_path / "s.partial"):
        error = run.invoke(data_check, [str(incomplete)]).exception
        assert isinstance(error, StoreError)
        assert "this store is incomplete" in str(error)
