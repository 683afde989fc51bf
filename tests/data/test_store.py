"""The store gives back what was put in, or an error; never something else."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit.data import store as s
from pit.data.atomic import new_folder, write_file
from pit.data.errors import DataError
from pit.data.folds import fold_of
from pit.data.synthetic import generate
from pit.data.template import Template
from pit.data.tokenizer import Tokenizer
from pit.types import COLUMNS, FOLDS, Message, Preference

TOKENIZER = Tokenizer.train_bpe(["describe this red lamp: price and size."], 330)
TEMPLATE = Template(TOKENIZER, (16, 12, 12))

preferences = st.builds(
    Preference,
    st.lists(
        st.builds(Message, st.sampled_from(["user", "assistant"]), st.text(max_size=9)), min_size=1, max_size=3
    ).map(tuple),
    st.text(max_size=9),
    st.text(max_size=9),
)


def contents(store: s.Store) -> dict[str, list[list[list[int]]]]:
    return {
        name: [[c.tolist() for c in store.fold(name).row(i)] for i in range(len(store.fold(name)))] for name in FOLDS
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> s.Store:
    return s.build(generate(60, 0), tmp_path_factory.mktemp("store") / "s", TEMPLATE)


@settings(deadline=None)
@given(rows=st.lists(preferences, min_size=1, max_size=12), batch_rows=st.integers(1, 4))
def test_rows_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Preference], batch_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s, "BATCH_ROWS", batch_rows)
        patch.setattr(s, "_TOKENISE_ROWS", 5)
        store = s.build(rows, tmp_path_factory.mktemp("store") / "s", TEMPLATE)
    store.verify()
    for name in FOLDS:
        expected = [TEMPLATE.encode_preferences([row])[0][:3] for row in rows if fold_of(row.prompt) == name]
        fold = store.fold(name)
        assert len(fold) == len(expected)
        assert [tuple(c.tolist() for c in fold.row(i)) for i in range(len(fold))] == expected
        assert fold.lengths().tolist() == [[len(c) for c in row] for row in expected]
        assert fold.lengths().dtype == np.int32
        for column, chunks in enumerate(fold.columns()):
            flat = [c.values[a:b].tolist() for c in chunks for a, b in zip(c.offsets, c.offsets[1:], strict=False)]
            assert flat == [row[column] for row in expected]


def test_columns_are_views_of_the_map(built: s.Store) -> None:
    before = pa.total_allocated_bytes()
    for chunks in built.fold("sft").columns():
        for chunk in chunks:
            assert chunk.values.dtype == np.int32
            assert chunk.offsets.dtype == np.int64
            assert not chunk.values.flags.owndata
            assert not chunk.values.flags.writeable
    assert pa.total_allocated_bytes() == before


def test_any_arrow_tool_opens_it(built: s.Store) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(built.path / "sft.arrow"))).read_all()
    assert table.column_names == list(COLUMNS)
    assert table.column("prompt").to_pylist() == [row[0] for row in contents(built)["sft"]]


def test_the_same_rows_make_the_same_bytes(built: s.Store, tmp_path: Path) -> None:
    again = s.build(generate(60, 0), tmp_path / "again", TEMPLATE)
    assert again.hash == built.hash
    assert s.build(generate(60, 1), tmp_path / "other", TEMPLATE).hash != built.hash
    for name in FOLDS:
        assert (again.path / f"{name}.arrow").read_bytes() == (built.path / f"{name}.arrow").read_bytes()


def test_the_manifest_says_what_is_inside(built: s.Store) -> None:
    manifest = json.loads((built.path / "manifest.json").read_text())
    assert manifest["rows"] == 60 == sum(entry["rows"] for entry in manifest["folds"].values())
    assert manifest["tokens"] == sum(int(built.fold(name).lengths().sum()) for name in FOLDS)
    assert manifest["truncated"]["prompt"] > 0
    assert built.windows == (16, 12, 12)
    assert manifest["tokenizer"] == TOKENIZER.hash


def test_progress_counts_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s, "_TOKENISE_ROWS", 25)
    told: list[s.Progress] = []
    store = s.build(generate(60, 0), tmp_path / "s", TEMPLATE, progress=told.append)
    assert [each.rows for each in told] == [25, 50, 60]
    assert told[-1].tokens == store.manifest["tokens"]


def damaged(built: s.Store, folder: Path, name: str, index: int, bit: int) -> Path:
    """A copy of the store with one bit of one file flipped."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(built.path, folder)
    content = bytearray((folder / name).read_bytes())
    content[index] ^= 1 << bit
    (folder / name).write_bytes(content)
    return folder


@given(data=st.data())
def test_any_flipped_bit_is_found(
    built: s.Store, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in built.path.iterdir())))
    size = (built.path / name).stat().st_size
    index, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    folder = damaged(built, tmp_path_factory.getbasetemp() / "flipped", name, index, bit)
    try:
        store = s.Store.open(folder)
    except s.StoreError:
        return
    # JSON may be written in several ways that say the same (its white space is no content).
    same = name == "manifest.json" and store.manifest == built.manifest
    if same:
        store.verify()
    else:
        with pytest.raises(s.StoreError, match=r"damaged"):
            store.verify()
    # Without verify too: what is read is right, or an error.
    try:
        assert contents(store) == contents(built)
    except s.StoreError:
        assert not same


@pytest.mark.parametrize("shrink", [True, False])
def test_a_file_of_another_size_is_found_at_once(built: s.Store, tmp_path: Path, shrink: bool) -> None:
    shutil.copytree(built.path, tmp_path / "s")
    path = tmp_path / "s" / "rl.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-1] if shrink else content + b"x")
    with pytest.raises(s.StoreError, match=r"rl.arrow: has \d+ bytes, its manifest says \d+; the store is damaged"):
        s.Store.open(tmp_path / "s")
    path.unlink()
    with pytest.raises(s.StoreError, match=r"rl.arrow: is missing"):
        s.Store.open(tmp_path / "s")


def rewrite(folder: Path, **changes: object) -> None:
    """Change the manifest and make its digest right again."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["hash"] = s._digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "format version 2, this program reads 1"),
        ({"format": "other"}, "not the manifest of a token store"),
    ],
)
def test_other_formats_are_refused(built: s.Store, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    shutil.copytree(built.path, tmp_path / "s")
    rewrite(tmp_path / "s", **changes)
    with pytest.raises(s.StoreError, match=words):
        s.Store.open(tmp_path / "s")


def test_tokens_outside_the_vocabulary_are_refused(built: s.Store, tmp_path: Path) -> None:
    shutil.copytree(built.path, tmp_path / "s")
    rewrite(tmp_path / "s", vocab_size=20)
    store = s.Store.open(tmp_path / "s")
    with pytest.raises(
        s.StoreError, match=r"record batch 0, column 'prompt': tokens \d+..\d+ leave the vocabulary 0..19"
    ):
        store.fold("sft").columns()


def test_another_tokenizer_is_refused(built: s.Store) -> None:
    assert s.Store.open(built.path, TOKENIZER.hash).hash == built.hash
    with pytest.raises(
        s.StoreError, match=r"was tokenised with tokenizer .* the one in use is abc; build the store again"
    ):
        s.Store.open(built.path, "abc")


def test_wrong_requests_are_named(built: s.Store, tmp_path: Path) -> None:
    with pytest.raises(s.StoreError, match="no token store here"):
        s.Store.open(tmp_path)
    with pytest.raises(s.StoreError, match=r"has no fold 'train'; the folds are \['sft'"):
        built.fold("train")
    fold = built.fold("eval")
    for index in (-1, len(fold)):
        with pytest.raises(IndexError, match=f"there is no row {index}"):
            fold.row(index)


def breaks(after: int) -> Iterator[Preference]:
    yield from generate(after, 0)
    raise RuntimeError("reader broke")


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="reader broke"):
        s.build(breaks(30), tmp_path / "s", TEMPLATE)
    with pytest.raises(DataError, match="there are no preferences to store"):
        s.build([], tmp_path / "s", TEMPLATE)
    with pytest.raises(DataError, match=r"sum to 0.5"):
        s.build(generate(3, 0), tmp_path / "s", TEMPLATE, fractions={"sft": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(built: s.Store) -> None:
    with pytest.raises(DataError, match="already exists and is not an empty folder"):
        s.build(generate(3, 0), built.path, TEMPLATE)
    built.verify()


def test_atomic_writes_leave_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]

    def interrupted() -> None:
        with new_folder(tmp_path / "folder") as folder:
            (folder / "part").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    with new_folder(tmp_path / "folder") as folder:
        (folder / "part").touch()
    assert (tmp_path / "folder" / "part").is_file()
