"""The store returns the rows that were put in, or raises; it never returns anything else."""

import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from effort import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from store_cases import (
    TEMPLATE,
    TOKENIZER,
    contents,
    copy_of,
    random_batch,
    record_batch,
    rewrite,
    rows_of,
    rows_of_task,
    small_shards,
    write_file,
    write_store,
)

from pit.atomic import PlaceError
from pit.data import store as s
from pit.data.errors import DataError
from pit.data.folds import Folds, fold_of
from pit.data.store import shard, write
from pit.data.synthetic import generate
from pit.types import COLUMNS, FOLDS, Message, Preference

preferences = st.builds(
    Preference,
    st.lists(
        st.builds(Message, st.sampled_from(["user", "assistant"]), st.text(max_size=9)), min_size=1, max_size=3
    ).map(tuple),
    st.text(max_size=9),
    st.text(max_size=9),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with small_shards():
        return s.build(rows_of_task(60), tmp_path_factory.mktemp("store") / "s", TEMPLATE)


@settings(max_examples=examples(40))
@given(
    rows=st.lists(preferences, min_size=1, max_size=12),
    batch_rows=st.integers(1, 4),
    shard_rows=st.integers(1, 12),
    workers=st.integers(1, 3),
)
def test_rows_come_back_in_order(tmp_path_factory, rows, batch_rows, shard_rows, workers):
    tokens = [list(TEMPLATE.encode_preferences([row])[0][:3]) for row in rows]
    usable = [bool(prompt and better and worse) and better != worse for prompt, better, worse in tokens]
    assume(any(usable))
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        for module in (write, shard):
            patch.setattr(module, "BATCH_ROWS", batch_rows)
        patch.setattr(write, "SHARD_ROWS", shard_rows)
        patch.setattr(write, "_TOKENISE_ROWS", 5)
        store = s.build(rows, folder / "s", TEMPLATE, workers=workers)
    store.verify()
    for name in FOLDS:
        of_fold = [good and fold_of(row.prompt) == name for row, good in zip(rows, usable, strict=True)]
        expected = list(itertools.compress(tokens, of_fold))
        fold = store.fold(name)
        assert len(fold) == len(expected)
        assert rows_of(fold) == expected
        assert fold.lengths().tolist() == [[len(c) for c in row] for row in expected]
        assert fold.lengths().dtype == np.int32
        files = [store.path / file["file"] for file in store.manifest["folds"][name]["files"]]
        arrow = [row for file in files for row in pa.ipc.open_file(pa.memory_map(str(file))).read_all().to_pylist()]
        assert [[row[column] for column in COLUMNS] for row in arrow] == expected
    assert list(folder.iterdir()) == [folder / "s"]


@given(sizes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), max_size=3), tokens=st.integers(0, 4))
def test_a_store_written_by_its_description_is_read(tmp_path_factory, sizes, tokens):
    files = [[random_batch(rows, tokens, 10 * i + rows) for rows in file] for i, file in enumerate(sizes)]
    folder = write_store(tmp_path_factory.mktemp("store") / "s", files)
    store = s.Store.open(folder)
    store.verify()
    expected = [list(row.values()) for file in files for batch in file for row in batch.to_pylist()]
    assert contents(store)["sft"] == expected


def test_rows_are_views_of_the_map_that_keep_it(built):
    fold = s.Store.open(built.path).fold("sft")
    row, lengths = fold.row(3), fold.lengths()[3]
    maps = [pa.py_buffer(mapped.map) for mapped in fold._mapped]
    for column in row:
        assert column.dtype == np.int32
        assert any(
            m.address <= column.ctypes.data and column.ctypes.data + column.nbytes <= m.address + m.size for m in maps
        )
        assert not column.flags.owndata
        assert not column.flags.writeable
    del fold, maps
    assert [len(column) for column in row] == lengths.tolist()
    assert [column.tolist() for column in row] == rows_of(built.fold("sft"))[3]


def test_the_same_rows_make_the_same_bytes(built, tmp_path):
    with small_shards():
        for workers in (1, 3):
            again = s.build(rows_of_task(60), tmp_path / f"again-{workers}", TEMPLATE, workers=workers)
            assert again.hash == built.hash
            assert sorted(p.name for p in again.path.iterdir()) == sorted(p.name for p in built.path.iterdir())
            for path in built.path.iterdir():
                assert (again.path / path.name).read_bytes() == path.read_bytes()
        assert s.build(generate(60, 1), tmp_path / "other", TEMPLATE).hash != built.hash
        assert s.build(rows_of_task(60), tmp_path / "key", TEMPLATE, folds=Folds(key="other")).hash != built.hash


def test_the_manifest_says_what_is_inside(built):
    manifest = json.loads((built.path / "manifest.json").read_text())
    assert manifest["rows"] == sum(entry["rows"] for entry in manifest["folds"].values())
    assert manifest["dropped"] == {"answers equal in the window": 60 - manifest["rows"]}
    assert manifest["tokens"] == sum(int(built.fold(name).lengths().sum()) for name in FOLDS)
    assert manifest["truncated"]["prompt"] > 0
    assert built.windows == (16, 12, 12)
    assert manifest["tokenizer"] == TOKENIZER.hash
    files = {file["file"] for entry in manifest["folds"].values() for file in entry["files"]}
    assert files | {"manifest.json"} == {path.name for path in built.path.iterdir()}
    assert all(b["rows"] <= 8 for e in manifest["folds"].values() for f in e["files"] for b in f["batches"])


def test_progress_counts_up(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_ROWS", 20)
    reports = []
    store = s.build(rows_of_task(60), tmp_path / "s", TEMPLATE, progress=reports.append, workers=2)
    assert all(a.rows <= b.rows and a.tokens <= b.tokens for a, b in itertools.pairwise(reports))
    assert reports[-1] == (60, store.manifest["tokens"])


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_files_are_refused(tmp_path, compression):
    batch = random_batch(20, 5, 0)
    folder = write_store(tmp_path / "s", [[batch]])
    entry = write_file(folder / "sft-00000.arrow", [batch], compression)
    rewrite(folder, folds={"sft": {"rows": 20, "files": [entry]}})
    fold = s.Store.open(folder).fold("sft")
    message = (
        f"{folder}/sft-00000.arrow: record batch 0, column 'prompt', buffer of offsets lies outside the memory map of "
        "its file: the file is damaged, or compressed; build the store again"
    )
    for read in (fold.lengths, lambda: fold.row(0)):
        with pytest.raises(s.StoreError, match=re.escape(message)):
            read()


@pytest.mark.parametrize(
    ("token", "column"), [(-1, "prompt"), (1000, "better"), (2**31 - 1, "worse"), (-(2**31), "worse")]
)
def test_a_token_outside_the_vocabulary_is_named(tmp_path, token, column):
    columns = {name: [[], [1, 2, 3], [], [4], [5, 6]] for name in COLUMNS}
    columns[column][3] = [4, token, token]
    good, bad = random_batch(6, 3, 0), record_batch(*columns.values())
    fold = s.Store.open(write_store(tmp_path / "s", [[good], [good, bad]])).fold("sft")
    assert rows_of_range(fold, 12) == 2 * [list(row.values()) for row in good.to_pylist()]
    message = (
        f"{tmp_path}/s/sft-00001.arrow: record batch 1, column '{column}', row 3: token {token} is outside the "
        "vocabulary 0..999; the store is damaged, build it again"
    )
    for index in (12, 16):
        with pytest.raises(s.StoreError, match=f"^{re.escape(message)}$"):
            fold.row(index)
    with pytest.raises(s.StoreError, match=re.escape(message)):
        fold.verify()


def rows_of_range(fold, stop):
    return [[column.tolist() for column in fold.row(i)] for i in range(stop)]


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3, 2, 4], "offset 2 is 2, outside [3, 4]"),
        ([0, 1, 5, 4], "offset 2 is 5, outside [1, 4]"),
        ([-1, 1, 2, 4], "offset 0 is -1, outside [0, 4]"),
        ([1, 1, 2, 4], "offsets run from 1 to 4, its values from 0 to 4"),
        ([0, 1, 2, 3], "offsets run from 0 to 3, its values from 0 to 4"),
        ([0, 1, 2, 2**62], f"offset 3 is {2**62}, outside [2, 4]"),
    ],
)
def test_wrong_offsets_are_named(tmp_path, offsets, message):
    batch = record_batch(*[[[1], [2], [3, 4]]] * 3)
    folder = write_store(tmp_path / "s", [[batch]])
    path = folder / "sft-00000.arrow"
    right, wrong = np.array([0, 1, 2, 4]).tobytes(), np.array(offsets).tobytes()
    assert path.read_bytes().count(right) == 3
    path.write_bytes(path.read_bytes().replace(right, wrong))
    fold = s.Store.open(folder).fold("sft")
    with pytest.raises(s.StoreError, match=re.escape(f"{path}: record batch 0, column 'prompt': {message}")):
        fold.lengths()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (pa.schema([(name, pa.list_(pa.int32())) for name in COLUMNS]), "not large lists of int32 named prompt"),
        (pa.schema([(name, pa.large_list(pa.int64())) for name in COLUMNS]), "not large lists of int32 named prompt"),
        (pa.schema([(name, pa.large_list(pa.int32())) for name in COLUMNS[::-1]]), "not large lists of int32 named"),
    ],
)
def test_other_columns_are_refused(tmp_path, schema, words):
    folder = write_store(tmp_path / "s", [[random_batch(2, 2, 0)]])
    path = folder / "sft-00000.arrow"
    batch = pa.RecordBatch.from_arrays([pa.array([[1], []], field.type) for field in schema], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    entry = {"file": path.name, "bytes": path.stat().st_size, "blake2b": "", "batches": [{"rows": 2, "crc32": 0}]}
    rewrite(folder, folds={"sft": {"rows": 2, "files": [entry]}})
    with pytest.raises(s.StoreError, match=words):
        s.Store.open(folder).fold("sft").lengths()


def test_nulls_are_refused(tmp_path):
    folder = write_store(tmp_path / "s", [[record_batch(*[[[1], [2]]] * 3)]])
    entry = write_file(folder / "sft-00000.arrow", [record_batch([[1], None], [[1], [2]], [[1], [2]])])
    rewrite(folder, folds={"sft": {"rows": 2, "files": [entry]}})
    with pytest.raises(s.StoreError, match=r"record batch 0, column 'prompt' has nulls \(1\); the store is damaged"):
        s.Store.open(folder).fold("sft").lengths()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 1}, "format version 1, but this program reads version 2"),
        ({"format": "other"}, "not the manifest of a token store"),
    ],
)
def test_other_formats_are_refused(built, tmp_path, changes, words):
    folder = copy_of(built, tmp_path / "s")
    rewrite(folder, **changes)
    with pytest.raises(s.StoreError, match=words):
        s.Store.open(folder)


def test_another_tokenizer_is_refused(built):
    assert s.Store.open(built.path, TOKENIZER.hash).hash == built.hash
    with pytest.raises(s.StoreError, match=r"was tokenised with tokenizer .* but the one in use is abc"):
        s.Store.open(built.path, "abc")


def test_wrong_requests_are_named(built, tmp_path):
    with pytest.raises(s.StoreError, match="no token store here"):
        s.Store.open(tmp_path)
    with pytest.raises(s.StoreError, match=r"has no fold 'train'; the folds are \['sft'"):
        built.fold("train")
    fold = built.fold("eval")
    for index in (-1, len(fold)):
        with pytest.raises(IndexError, match=f"row {index} of fold 'eval': out of range"):
            fold.row(index)
    with pytest.raises(DataError, match=r"sum to 0.5"):
        s.build(generate(3, 0), tmp_path / "s", TEMPLATE, folds=Folds({"sft": 0.5}))
    with pytest.raises(PlaceError, match="already exists and is not an empty folder"):
        s.build(generate(3, 0), built.path, TEMPLATE)
    with pytest.raises(DataError, match="s: no preferences to store; give usable rows"):
        s.build([], tmp_path / "s", TEMPLATE)
    assert list(tmp_path.iterdir()) == []


def test_is_store_recognises_stores_only(built, tmp_path, monkeypatch):
    assert s.is_store(built.path)
    assert not s.is_store(tmp_path)
    assert not s.is_store(built.path / "manifest.json")
    monkeypatch.chdir(tmp_path)
    assert not s.is_store(Path("."))
    store = s.build(generate(3, 0), "here", TEMPLATE)
    monkeypatch.chdir("here")
    store.fold("sft").lengths()
    assert s.is_store(Path("."))
    assert len(s.Store.open(".").fold("sft")) <= 3


def test_many_threads_read_the_same_rows(built):
    """Threads race to read a batch first: none waits for another, and all read the same rows."""
    expected = rows_of(built.fold("sft"))
    for _ in range(5):
        fold = s.Store.open(built.path).fold("sft")
        with ThreadPoolExecutor(4) as pool:
            assert all(rows == expected for rows in pool.map(rows_of, [fold] * 8))


@pytest.mark.slow
def test_a_million_rows_open_in_a_tenth_of_a_second(tmp_path):
    """Warm: manifest, maps, offsets and lengths, in files and record batches of the sizes that `build` makes."""
    batches = [random_batch(s.BATCH_ROWS, 6, seed) for seed in range(3)]
    per_file = s.SHARD_ROWS // s.BATCH_ROWS
    count = -(-1_000_000 // s.SHARD_ROWS)
    folder = write_store(tmp_path / "s", [[batches[(i + j) % 3] for j in range(per_file)] for i in range(count)])
    best = 1.0
    for _ in range(5):
        begin = time.perf_counter()
        fold = s.Store.open(folder).fold("sft")
        lengths = fold.lengths()
        best = min(best, time.perf_counter() - begin)
        assert len(lengths) == len(fold) == count * s.SHARD_ROWS >= 1_000_000
    assert best < 0.1, f"{best:.3f} s"
