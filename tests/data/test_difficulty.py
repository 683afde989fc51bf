"""Difficulty from a column of the data, through the store, to the ranks of a curriculum."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from store_cases import TEMPLATE, rows_of_task, small_shards

from pit.config import CurriculumConfig, ImproverRlConfig, SourceWeights
from pit.data.curriculum import answer_similarity, ranks, tree_length
from pit.data.errors import DataError
from pit.data.readers import read_preferences
from pit.data.store import Store, StoreError, build
from pit.data.synthetic import generate
from pit.data.usable import flaw
from pit.rl.curriculum import difficulty_of
from pit.types import FOLDS

ROWS = [
    {"prompt": f"Why {i}?", "chosen": "Because.", "rejected": "No.", "hard": hard}
    for i, hard in enumerate([3, -1.5, "much", None, True, float("nan"), 0])
]
USABLE = [3.0, -1.5, 0.0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_becomes_the_difficulty_of_a_row(tmp_path, kind):
    path = tmp_path / f"train.{kind}"
    rows = ROWS
    if kind == "parquet":
        rows = [row for row in ROWS if isinstance(row["hard"], int | float | None) and row["hard"] is not True]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    preferences, report = read_preferences(path, difficulty_column="hard")
    assert [row.difficulty for row in preferences] == USABLE
    assert report.dropped.total() == len(rows) - 3
    plain, _ = read_preferences(path)
    assert {row.difficulty for row in plain} == {None}
    strict, _ = read_preferences(path, strict=True, difficulty_column="hard")
    with pytest.raises(DataError, match="'hard' is "):
        list(strict)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    usable = [row for row in rows_of_task(60) if flaw(TEMPLATE.encode_preferences([row])[0]) is None]
    rows = [row._replace(difficulty=float(i % 7)) for i, row in enumerate(usable)]
    with small_shards():
        return build(rows, tmp_path_factory.mktemp("store") / "s", TEMPLATE), rows


def test_the_store_keeps_the_difficulty_of_its_rows(store):
    built, rows = store
    built.verify()
    values = np.concatenate([built.fold(name).difficulty() for name in FOLDS])
    assert values.dtype == np.float64
    assert sorted(values.tolist()) == sorted(row.difficulty for row in rows)
    assert len(built.fold("rl").difficulty()) == len(built.fold("rl"))


def test_other_difficulty_is_another_fold(store, tmp_path):
    built, rows = store
    with small_shards():
        other = build([row._replace(difficulty=1.0) for row in rows], tmp_path / "s", TEMPLATE)
    assert other.fold("rl").hash != built.fold("rl").hash
    np.testing.assert_array_equal(other.fold("rl").lengths(), built.fold("rl").lengths())


def test_missing_difficulty_raises(store, tmp_path):
    _, rows = store
    plain = build(generate(20, 0), tmp_path / "plain", TEMPLATE)
    with pytest.raises(StoreError, match=r"fold 'rl' holds no difficulty; set data.difficulty_column"):
        plain.fold("rl").difficulty()
    gaps = [row if i % 2 else row._replace(difficulty=None) for i, row in enumerate(rows)]
    mixed = build(gaps, tmp_path / "mixed", TEMPLATE)
    with pytest.raises(StoreError, match=r"row 0 has no difficulty, but others do"):
        [mixed.fold(name).difficulty() for name in FOLDS]


def test_damage_and_absence_are_refused(store, tmp_path):
    _, rows = store
    built = build(rows, tmp_path / "s", TEMPLATE)
    path = next(built.path.glob("rl-*.difficulty.npy"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for check in (lambda: Store.open(built.path).fold("rl").difficulty(), lambda: Store.open(built.path).verify()):
        with pytest.raises(StoreError, match=rf"^{re.escape(str(path))}: has digest .* the store is damaged"):
            check()
    path.unlink()
    with pytest.raises(StoreError, match=r"difficulty\.npy: missing"):
        Store.open(built.path)


def test_curricula_rank_by_the_configured_measure(store):
    fold = store[0].fold("rl")

    def difficulty(kind, examples=None):
        curriculum = CurriculumConfig(strategy="gap_band", difficulty=kind, examples=examples)
        config = ImproverRlConfig(sources=SourceWeights(1), gap="centred", curriculum=curriculum)
        return difficulty_of(config, fold, lambda n: np.arange(n, dtype=np.float64))

    assert difficulty("none") is None
    np.testing.assert_array_equal(difficulty("column"), ranks(fold.difficulty()))
    np.testing.assert_array_equal(difficulty("length"), ranks(tree_length(fold)))
    np.testing.assert_array_equal(difficulty("edit"), ranks(answer_similarity(fold)))
    # A large margin is easy.
    np.testing.assert_array_equal(difficulty("margin", 3), np.array([1.0, 0.5, 0.0], np.float32))
    assert len(difficulty("length", 4)) == 4
