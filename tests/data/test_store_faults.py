"""Real faults of a store in use: flipped bytes, files cut, grown or replaced under a map, files that do not open."""

import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_cases import (
    TEMPLATE,
    contents,
    copy_of,
    environment,
    random_batch,
    record_batch,
    rows_of,
    small_shards,
    without_privilege,
    write_store,
)

from pit.config import PackingConfig
from pit.data import store as s
from pit.data._core import CoreError
from pit.data.loader import Loader
from pit.data.packing import Layout
from pit.data.synthetic import generate
from pit.data.template import improver_sft
from pit.types import Closings, Shards


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with small_shards():
        return s.build(generate(100, 0), tmp_path_factory.mktemp("store") / "s", TEMPLATE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two files of two record batches, few enough bytes to flip each."""
    files = [[random_batch(2, 2, 4 * i + j) for j in range(2)] for i in range(2)]
    return s.Store.open(write_store(tmp_path_factory.mktemp("store") / "s", files))


def check_flip(store, folder, name, index, bit):
    """Check that a copy of the store with one flipped bit raises or has the same rows, with and without `verify`."""
    content = (folder / name).read_bytes()
    flipped = bytearray(content)
    flipped[index] ^= 1 << bit
    (folder / name).write_bytes(flipped)
    try:
        damaged = s.Store.open(folder)
        # A flipped bit may leave the meaning of JSON unchanged (in white space).
        if name == "manifest.json" and damaged.manifest == store.manifest:
            damaged.verify()
            assert contents(damaged) == contents(store)
            return
        with pytest.raises(s.StoreError):
            damaged.verify()
        assert contents(damaged) == contents(store)
    except s.StoreError as error:
        assert re.search("damaged|build the store again", str(error))  # noqa: PT017
    finally:
        (folder / name).write_bytes(content)


@given(data=st.data())
def test_any_flipped_bit_is_found(built, tmp_path_factory, data):
    folder = copy_of(built, tmp_path_factory.getbasetemp() / "flipped")
    name = data.draw(st.sampled_from(sorted(path.name for path in built.path.iterdir())))
    size = (built.path / name).stat().st_size
    check_flip(built, folder, name, data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7)))


@pytest.mark.slow
def test_every_byte_of_a_small_store_flipped(tiny, tmp_path):
    folder = copy_of(tiny, tmp_path / "flipped")
    for path in tiny.path.iterdir():
        for index in range(path.stat().st_size):
            check_flip(tiny, folder, path.name, index, index % 8)


def test_a_file_cut_anywhere_is_found_at_once(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    path = folder / "rl-00000.arrow"
    content = path.read_bytes()
    for size in (0, 1, 8, len(content) // 2, len(content) - 1, len(content) + 1):
        path.write_bytes((content + b"x")[:size])
        words = f"{path}: has {size} bytes, but its manifest says {len(content)}"
        with pytest.raises(s.StoreError, match=re.escape(words)):
            s.Store.open(folder)
    path.unlink()
    with pytest.raises(s.StoreError, match=r"rl-00000.arrow: missing; the store is damaged"):
        s.Store.open(folder)


def test_a_file_cut_between_opening_and_mapping_is_found(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    fold = s.Store.open(folder).fold("rl")
    os.truncate(folder / "rl-00000.arrow", 8)
    with pytest.raises(s.StoreError, match="has 8 bytes, but its manifest says"):
        fold.lengths()


def touch(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def grow(path):
    with path.open("ab") as file:
        file.write(b"x")


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def replace(path):
    """By a file of the same size and mtime."""
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


CHANGES = {"touched": touch, "grown": grow, "cut": cut, "replaced": replace}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changes_while_mapped_is_refused(built, tmp_path, how):
    folder = copy_of(built, tmp_path / "s")
    fold = s.Store.open(folder).fold("sft")
    expected = rows_of(fold)
    fold.check_unchanged()
    CHANGES[how](folder / "sft-00000.arrow")
    words = f"{folder}/sft-00000.arrow: changed while it was mapped, from "
    with pytest.raises(s.StoreError, match=re.escape(words)):
        fold.check_unchanged()
    with pytest.raises(s.StoreError, match=re.escape(words)):
        fold.row(0)
    with pytest.raises(s.StoreError, match=r"changed while|digest"):
        fold.verify()
    # Rows of other files can still be read.
    assert [column.tolist() for column in fold.row(len(fold) - 1)] == expected[-1]


def test_a_file_that_vanishes_while_mapped_is_refused(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    fold = s.Store.open(folder).fold("sft")
    row = fold.row(0)[0]
    expected = row.tolist()
    (folder / "sft-00000.arrow").unlink()
    with pytest.raises(s.StoreError, match=r"sft-00000.arrow: gone while it was mapped \(No such file or directory\)"):
        fold.check_unchanged()
    assert row.tolist() == expected


def loader_of(fold):
    packing = PackingConfig(row_length=40, rows=4, microbatches=1, window=4, trees=4)
    layout = Layout(closings=Closings.roles(1, 2, 3), pad=0, row_length=40, rows=4, trees=4)
    return Loader(fold, improver_sft(), layout, packing, shards=Shards.all_local(1), seed=0, config_hash="")


@pytest.mark.parametrize("how", CHANGES)
def test_the_loader_refuses_a_file_that_changes(built, tmp_path, how):
    folder = copy_of(built, tmp_path / "s")
    fold = s.Store.open(folder).fold("sft")
    loader = loader_of(fold)
    next(loader)
    CHANGES[how](folder / "sft-00000.arrow")
    with pytest.raises(s.StoreError, match=r"sft-00000.arrow: changed while it was mapped"):
        list(islice(loader, 20))  # prefetched steps are still returned


def write_in_place(path, old, new):
    """Replace bytes of a mapped file and restore its mtime."""
    before, at = path.stat(), path.read_bytes().index(old)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(new)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_hidden_change_is_as_documented(tmp_path):
    """The race of `check_unchanged`: changed tokens are wrong until `verify`, changed offsets raise."""
    folder = write_store(tmp_path / "s", [[record_batch([[1, 2], [3]], [[4], [5]], [[6], [7, 8, 9]])]])
    path, fold = folder / "sft-00000.arrow", s.Store.open(folder).fold("sft")
    assert rows_of(fold) == [[[1, 2], [4], [6]], [[3], [5], [7, 8, 9]]]
    write_in_place(path, np.array([7, 8, 9], np.int32).tobytes(), np.array([7, -8, 9], np.int32).tobytes())
    fold.check_unchanged()
    assert rows_of(fold)[1] == [[3], [5], [7, -8, 9]]
    with pytest.raises(s.StoreError, match=r"record batch 0, column 'worse', row 1: token -8 is outside"):
        fold.verify()
    write_in_place(path, np.array([0, 2, 3]).tobytes(), np.array([0, 2, 2**40]).tobytes())
    fold.check_unchanged()
    words = "column 'prompt', row 1: its offsets 2 and 1099511627776 leave its 3 values; they changed after they were"
    with pytest.raises(s.StoreError, match=re.escape(words)):
        fold.row(1)


def test_a_file_cut_while_it_is_read_ends_the_process_as_documented(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    code = (
        "import os, sys; from pit.data.store import Store; fold = Store.open(sys.argv[1]).fold('sft'); fold.lengths();"
        "os.truncate(sys.argv[1] + '/sft-00000.arrow', 0); fold.table.row(0)"
    )
    result = subprocess.run([sys.executable, "-c", code, folder], env=environment(), timeout=120, check=False)
    assert result.returncode == -signal.SIGBUS


def test_the_loader_names_damage_that_it_touches(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    path = folder / "sft-00000.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(built.fold("sft").row(0)[0].tobytes())] ^= 1
    path.write_bytes(content)
    loader = loader_of(s.Store.open(folder).fold("sft"))
    with pytest.raises(CoreError, match=re.escape(f"{path}: record batch 0 is damaged: checksum 0x")):
        list(islice(loader, 20))


def test_too_many_files_are_named(tmp_path):
    folder = write_store(tmp_path / "s", [[random_batch(1, 1, i)] for i in range(60)])
    code = (
        "import resource, sys; from pit.data.store import Store; fold = Store.open(sys.argv[1]).fold('sft');"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); fold.lengths()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    words = r"StoreError: .*/sft-000\d\d.arrow: cannot be mapped \(Too many open files\); allow more open files"
    assert re.search(words, result.stderr), result.stderr


def test_a_file_that_may_not_be_read_is_named(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    (folder / "sft-00000.arrow").chmod(0)
    code = "import sys; from pit.data.store import Store; Store.open(sys.argv[1]).fold('sft').lengths()"
    result = without_privilege(code, folder)
    words = f"StoreError: {folder}/sft-00000.arrow: cannot be mapped (Permission denied); make it readable"
    assert result.stderr.rstrip().endswith(words), result.stderr
