"""Real faults: flipped bytes, files cut, grown or replaced under a map, full disks, killed and competing writers."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_cases import TEMPLATE, contents, copy_of, random_batch, rows_of, write_store

from pit.config import PackingConfig
from pit.data import store as s
from pit.data.errors import DataError
from pit.data.loader import Loader
from pit.data.packing import Layout
from pit.data.store import write
from pit.data.synthetic import generate
from pit.data.template import improver_sft


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(write, "SHARD_ROWS", 40)
    monkeypatch.setattr(write, "BATCH_ROWS", 8)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SHARD_ROWS", 40)
        patch.setattr(write, "BATCH_ROWS", 8)
        return s.build(generate(100, 0), tmp_path_factory.mktemp("store") / "s", TEMPLATE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two files of two record batches, few enough bytes to flip each."""
    files = [[random_batch(2, 2, 4 * i + j) for j in range(2)] for i in range(2)]
    return s.Store.open(write_store(tmp_path_factory.mktemp("store") / "s", files))


def check_flip(store, folder, name, index, bit):
    """`folder`, a copy of the store, with one bit flipped is refused or says the same, also to who does not verify."""
    content = (folder / name).read_bytes()
    flipped = bytearray(content)
    flipped[index] ^= 1 << bit
    (folder / name).write_bytes(flipped)
    try:
        found = s.Store.open(folder)
        # JSON may be written in several ways that say the same (its white space is no content).
        if name == "manifest.json" and found.manifest == store.manifest:
            found.verify()
            assert contents(found) == contents(store)
            return
        with pytest.raises(s.StoreError):
            found.verify()
        assert contents(found) == contents(store)
    except s.StoreError as error:
        assert re.search("damaged|build the store again|write the store", str(error))  # noqa: PT017
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
        words = f"{path}: has {size} bytes, its manifest says {len(content)}; the store is damaged, build it again"
        with pytest.raises(s.StoreError, match=f"^{re.escape(words)}$"):
            s.Store.open(folder)
    path.unlink()
    with pytest.raises(s.StoreError, match=r"rl-00000.arrow: is missing; the store is damaged, build it again"):
        s.Store.open(folder)


def test_a_file_cut_between_opening_and_mapping_is_found(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    fold = s.Store.open(folder).fold("rl")
    os.truncate(folder / "rl-00000.arrow", 8)
    with pytest.raises(s.StoreError, match="has 8 bytes, its manifest says"):
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
    # Rows of another file are not concerned.
    assert [column.tolist() for column in fold.row(len(fold) - 1)] == expected[-1]


def test_a_file_that_goes_while_mapped_is_refused(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    fold = s.Store.open(folder).fold("sft")
    row = fold.row(0)[0]
    expected = row.tolist()
    (folder / "sft-00000.arrow").unlink()
    with pytest.raises(s.StoreError, match=r"sft-00000.arrow: cannot be found any more \(No such file or directory\)"):
        fold.check_unchanged()
    assert row.tolist() == expected


@pytest.mark.parametrize("how", CHANGES)
def test_the_loader_refuses_a_file_that_changes(built, tmp_path, how):
    folder = copy_of(built, tmp_path / "s")
    fold = s.Store.open(folder).fold("sft")
    packing = PackingConfig(row_length=40, rows=4, microbatches=1, window=4, trees=4)
    layout = Layout(closings=(1, 2, 3), pad=0, row_length=40, rows=4, trees=4)
    loader = Loader(fold, improver_sft(), layout, packing, shards=1, seed=0, config_hash="")
    next(loader)
    CHANGES[how](folder / "sft-00000.arrow")
    with pytest.raises(s.StoreError, match=r"sft-00000.arrow: changed while it was mapped"):
        list(islice(loader, 20))  # those loaded ahead are still given


CHILD = """
import sys
from pit.data import store
from pit.data.errors import DataError
from pit.data.store import write
from pit.data.synthetic import generate
from store_cases import TEMPLATE
write.SHARD_ROWS, write.BATCH_ROWS = 40, 8
try:
    store.build(generate(int(sys.argv[2]), 0), sys.argv[1], TEMPLATE, workers=2)
except (DataError, OSError) as error:
    print(getattr(error, "errno", None), error)
    sys.exit(3)
"""


def child(out, rows):
    return [sys.executable, "-c", CHILD, str(out), str(rows)]


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def count_shards(monkeypatch):
    """Indices of the shards that are written from now on."""
    written, original = [], write._write_shard

    def counting(job, index, rows):
        written.append(index)
        return original(job, index, rows)

    monkeypatch.setattr(write, "_write_shard", counting)
    return written


def kill_after(shard, out, rows):
    """Build in a process of its own, and kill it when that shard is finished."""
    process = subprocess.Popen(child(out, rows), env=environment())
    deadline = time.monotonic() + 120
    while not (out.with_name("s.partial") / f"shard-{shard:05}.json").exists():
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_build_is_refused_by_name_and_goes_on(tmp_path, monkeypatch):
    rows, out, partial = 800, tmp_path / "s", tmp_path / "s.partial"
    for shard in (3, 8):
        kill_after(shard, out, rows)
        assert not out.exists()
        for half in (out, partial, partial / "store"):
            words = f"{half}: only half of this store is there, its build was stopped or still runs; wait for it, or"
            with pytest.raises(s.StoreError, match=re.escape(words)):
                s.Store.open(half)
    kept = {int(path.stem[-5:]) for path in partial.glob("shard-*.json")}
    written = count_shards(monkeypatch)
    resumed = s.build(generate(rows, 0), out, TEMPLATE)
    assert sorted(written) == sorted(set(range(rows // 40)) - kept)
    assert list(tmp_path.iterdir()) == [out]
    resumed.verify()
    assert resumed.hash == s.build(generate(rows, 0), tmp_path / "whole", TEMPLATE).hash


def test_a_build_killed_after_its_last_step_has_made_its_store(built, tmp_path):
    copy_of(built, tmp_path / "s")
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "shard-00000.json").write_text("{}")
    s.Store.open(tmp_path / "s").verify()
    shutil.rmtree(tmp_path / "s")
    assert s.build(generate(100, 0), tmp_path / "s", TEMPLATE).hash == built.hash
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]


def breaks(after):
    yield from generate(after, 0)
    raise RuntimeError("reader broke")


def stopped_build(out):
    """Three of five shards of `built`, in OUT.partial."""
    with pytest.raises(RuntimeError, match="reader broke"):
        s.build(breaks(160), out, TEMPLATE, workers=1)
    return out.with_name("s.partial")


def test_finished_shards_are_taken_over_if_they_match(built, tmp_path, monkeypatch):
    out = tmp_path / "s"
    partial = stopped_build(out)
    assert {path.name for path in partial.glob("shard-*")} >= {f"shard-{i:05}.json" for i in range(3)}
    (partial / "store" / "sft-00009.arrow").write_bytes(b"of a longer build")
    record = partial / "shard-00001.json"
    record.write_text(record.read_text().replace('"rows": 40', '"rows": 41'))
    damaged = sorted((partial / "store").glob("*-00002.arrow"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    written = count_shards(monkeypatch)
    assert s.build(generate(100, 0), out, TEMPLATE, workers=1).hash == built.hash
    assert written == [1, 2]
    assert list(tmp_path.iterdir()) == [out]
    assert {path.name for path in out.iterdir()} == {path.name for path in built.path.iterdir()}


@pytest.mark.parametrize("change", ["rows", "settings"])
def test_shards_of_other_rows_or_settings_are_made_again(tmp_path, monkeypatch, change):
    out = tmp_path / "s"
    stopped_build(out)
    written = count_shards(monkeypatch)
    rows, key = (generate(70, 1), "pit") if change == "rows" else (generate(70, 0), "other")
    rows = list(rows)
    store = s.build(rows, out, TEMPLATE, key=key, workers=1)
    assert written == [0, 1]
    assert store.hash == s.build(rows, tmp_path / "fresh", TEMPLATE, key=key).hash
    store.verify()


def test_a_build_that_fails_before_its_first_shard_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="reader broke"):
        s.build(breaks(30), tmp_path / "s", TEMPLATE)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_fails_ends_the_build(tmp_path, monkeypatch):
    def fails(job, index, rows):
        raise ZeroDivisionError("in a worker")

    monkeypatch.setattr(write, "_write_shard", fails)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="in a worker"):
        s.build(generate(400, 0), tmp_path / "s", TEMPLATE, workers=2)
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_a_second_build_into_the_same_folder_is_refused(tmp_path):
    out = tmp_path / "s"

    def rows():
        words = f"{out}: another build is writing it, in {out}.partial; wait for that one, or stop it and build again"
        with pytest.raises(DataError, match=f"^{re.escape(words)}$"):
            s.build(generate(3, 0), out, TEMPLATE)
        yield from generate(90, 0)

    store = s.build(rows(), out, TEMPLATE)
    store.verify()
    with pytest.raises(DataError, match="already exists and is not an empty folder"):
        s.build(generate(90, 0), out, TEMPLATE)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(DataError, match=r"s: its file system cannot lock files \(No locks available\), so two builds"):
        s.build(generate(3, 0), tmp_path / "s", TEMPLATE)


def test_of_builds_that_start_at_once_one_wins(tmp_path):
    out = tmp_path / "s"
    builds = [subprocess.Popen(child(out, 400), env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in builds]
    assert sorted(process.returncode for process in builds) == [0, 3, 3]
    losers = [text for text in said if text]
    assert all("another build is writing it" in text or "already exists" in text for text in losers), losers
    assert list(tmp_path.iterdir()) == [out]
    store = s.Store.open(out)
    store.verify()
    assert store.hash == s.build(generate(400, 0), tmp_path / "alone", TEMPLATE).hash


def test_a_full_disk_is_named_and_the_build_goes_on_when_there_is_room(tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=256k tmpfs "$0" && { "$@"; echo "status $?"; ls "$0/s.partial"; '
        f'mount -o remount,size=64m "$0" && "$@" && cp -r "$0/s" {copy}; }}'
    )
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = [*small, 'mount -t tmpfs -o size=256k tmpfs "$0"', disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small disk")
    result = subprocess.run(
        list(map(str, [*small, script, disk, *child(disk / "s", 2_000)])),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=True,
    )
    assert result.stdout.startswith("28 [Errno 28] "), result.stdout
    assert "status 3" in result.stdout
    assert "shard-00000.json" in result.stdout
    store = s.Store.open(copy)
    store.verify()
    assert store.hash == s.build(generate(2_000, 0), tmp_path / "alone", TEMPLATE).hash


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


def without_privilege(code, *arguments):
    """Run Python code without the right of root to read and write everything."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("setpriv, which takes root's privilege away, is not installed")
    command = [*drop, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        result = without_privilege(CHILD, tmp_path / "s", 20)
    finally:
        tmp_path.chmod(0o700)
    assert (result.returncode, result.stdout) == (3, f"13 [Errno 13] Permission denied: '{tmp_path}/s.partial'\n")


def test_a_file_that_may_not_be_read_is_named(built, tmp_path):
    folder = copy_of(built, tmp_path / "s")
    (folder / "sft-00000.arrow").chmod(0)
    code = "import sys; from pit.data.store import Store; Store.open(sys.argv[1]).fold('sft').lengths()"
    result = without_privilege(code, folder)
    words = f"StoreError: {folder}/sft-00000.arrow: cannot be mapped (Permission denied); make it readable"
    assert result.stderr.rstrip().endswith(words), result.stderr
