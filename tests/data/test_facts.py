"""Further columns of the data: read from every format of file, stored with their rows, verified."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import store_cases
from store_cases import TEMPLATE

from pit.config import FieldError, override
from pit.data.readers import read_preferences
from pit.data.store import Store, StoreError, build
from pit.recipes.demo import tiny
from pit.types import FOLDS, Message, Preference

ROWS = [
    {"prompt": f"describe {i}", "chosen": f"red lamp {i}", "rejected": f"size {i}", "solution": {"n": [i]}, "level": i}
    for i in range(90)
]


def read(path: Path, *columns: str) -> list[Preference]:
    return list(read_preferences(path, columns=columns)[0])


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_columns_keep_their_values(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        path.write_text(lines if kind == "jsonl" else json.dumps(ROWS))
    rows = read(path, "level", "solution", "absent")
    assert [json.loads(row.facts or "") for row in rows] == [
        {"level": row["level"], "solution": row["solution"], "absent": None} for row in ROWS
    ]
    assert [row.facts for row in read(path)] == [None] * len(ROWS)


def test_columns_of_csv_are_text_and_every_pair_of_a_row_has_them(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected", "level"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(ROWS[:2])
    assert [row.facts for row in read(path, "level")] == ['{"level": "0"}', '{"level": "1"}']
    scored = tmp_path / "scored.jsonl"
    scored.write_text(json.dumps({"prompt": "why", "responses": ["a", "b", "c"], "scores": [1, 2, 3], "level": 4}))
    assert [row.facts for row in read(scored, "level")] == ['{"level": 4}'] * 3


def preferences(facts: bool) -> list[Preference]:
    return [
        Preference((Message("user", f"describe {i}"),), f"red {i}", f"size {i}", facts=json.dumps({"n": i}))
        if facts
        else Preference((Message("user", f"describe {i}"),), f"red {i}", f"size {i}")
        for i in range(90)
    ]


def test_a_store_holds_the_facts_of_each_row_and_verifies_them(tmp_path: Path) -> None:
    with store_cases.small_shards():
        store = build(preferences(facts=True), tmp_path / "store", TEMPLATE)
    seen = []
    for name in FOLDS:
        fold = store.fold(name)
        for index, fact in enumerate(fold.facts(range(len(fold)))):
            text = TEMPLATE.decode_prompt(fold.row(index)[0])[0].content
            assert text == f"describe {fact['n']}"
            seen.append(fact["n"])
    assert sorted(seen) == list(range(90))
    assert store.fold("sft").facts([3, 0]) == [store.fold("sft").facts([i])[0] for i in (3, 0)]
    with pytest.raises(IndexError):
        store.fold("sft").facts([len(store.fold("sft"))])
    store.verify()
    path = sorted((tmp_path / "store").glob("rl-*.facts.jsonl"))[0]
    path.write_bytes(path.read_bytes().replace(b'"n": 1', b'"n": 2'))
    again = Store.open(tmp_path / "store")
    with pytest.raises(StoreError, match=r"facts.jsonl: has digest .*; the store is damaged, build it again"):
        again.fold("rl").facts([0])
    with pytest.raises(StoreError, match=r"facts.jsonl: has digest"):
        again.verify()


def test_facts_are_part_of_a_store_and_a_store_without_them_has_none(tmp_path: Path) -> None:
    plain = build(preferences(facts=False), tmp_path / "plain", TEMPLATE)
    stored = build(preferences(facts=True), tmp_path / "facts", TEMPLATE)
    assert plain.hash != stored.hash
    assert plain.fold("rl").hash != stored.fold("rl").hash
    assert plain.fold("rl").facts([0, 1]) == [{}, {}]
    assert list((tmp_path / "plain").glob("*.facts.jsonl")) == []


@pytest.mark.parametrize("columns", ["", "a,a", "row", "a,,b", "messages"])
def test_columns_are_different_names(columns: str) -> None:
    with pytest.raises(FieldError, match=r"^data.columns = '.*': must be different names, separated by commas, none"):
        override(tiny(), ["data.path=/d", f"data.columns={columns}"])
    with pytest.raises(FieldError, match=r"^data.columns = 'a': needs data of your own"):
        override(tiny(), ["data.columns=a"])
    assert override(tiny(), ["data.path=/d", "data.columns=a, b"]).data.named_columns == ("a", "b")
