"""Real faults of a build: killed, failing and competing builds, full disks, folders without permission."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from store_cases import TEMPLATE, copy_of, environment, rows_of_task, small_shards, without_privilege

from pit.atomic import PlaceError
from pit.data import store as s
from pit.data.errors import DataError
from pit.data.folds import Folds
from pit.data.store import write
from pit.data.synthetic import generate


@pytest.fixture(autouse=True)
def shards_of_forty():
    with small_shards():
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with small_shards():
        return s.build(rows_of_task(100), tmp_path_factory.mktemp("store") / "s", TEMPLATE)


CHILD = """
import sys
from pit.data import store
from pit.errors import PitError
from pit.data.store import shard, write
from pit.data.synthetic import generate
from store_cases import TEMPLATE
write.SHARD_ROWS, write.BATCH_ROWS, shard.BATCH_ROWS = 40, 8, 8
try:
    store.build(generate(int(sys.argv[2]), 0), sys.argv[1], TEMPLATE, workers=2)
except (PitError, OSError) as error:
    print(getattr(error, "errno", None), error)
    sys.exit(3)
"""


def child(out, rows):
    return [sys.executable, "-c", CHILD, str(out), str(rows)]


def count_shards(monkeypatch):
    """Return a list to which the index of each written shard is appended from now on."""
    written, original = [], write._write_shard

    def counting(job, index, rows):
        written.append(index)
        return original(job, index, rows)

    monkeypatch.setattr(write, "_write_shard", counting)
    return written


def kill_after(shard, out, rows):
    """Build in another process, and kill it when that shard is finished."""
    process = subprocess.Popen(child(out, rows), env=environment())
    deadline = time.monotonic() + 120
    while not (out.with_name("s.partial") / f"shard-{shard:05}.json").exists():
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_build_is_named_and_continues(tmp_path, monkeypatch):
    rows, out, partial = 640, tmp_path / "s", tmp_path / "s.partial"
    for shard in (2, 5):
        kill_after(shard, out, rows)
        assert not out.exists()
        for half in (out, partial, partial / "store"):
            words = f"{half}: this store is incomplete"
            with pytest.raises(s.StoreError, match=re.escape(words)):
                s.Store.open(half)
    kept = {int(path.stem[-5:]) for path in partial.glob("shard-*.json")}
    written = count_shards(monkeypatch)
    preferences = rows_of_task(rows)
    resumed = s.build(preferences, out, TEMPLATE)
    assert sorted(written) == sorted(set(range(rows // 40)) - kept)
    assert list(tmp_path.iterdir()) == [out]
    resumed.verify()
    assert resumed.hash == s.build(preferences, tmp_path / "whole", TEMPLATE).hash


def test_a_build_killed_after_its_last_step_leaves_a_store(built, tmp_path):
    copy_of(built, tmp_path / "s")
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "shard-00000.json").write_text("{}")
    s.Store.open(tmp_path / "s").verify()
    shutil.rmtree(tmp_path / "s")
    assert s.build(rows_of_task(100), tmp_path / "s", TEMPLATE).hash == built.hash
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]


def breaks(after):
    yield from rows_of_task(after)
    raise RuntimeError("reader broke")


def stopped_build(out):
    """Three of five shards of `built`, in OUT.partial."""
    with pytest.raises(RuntimeError, match="reader broke"):
        s.build(breaks(160), out, TEMPLATE, workers=1)
    return out.with_name("s.partial")


def test_finished_shards_are_kept_if_they_match(built, tmp_path, monkeypatch):
    out = tmp_path / "s"
    partial = stopped_build(out)
    assert {path.name for path in partial.glob("shard-*")} >= {f"shard-{i:05}.json" for i in range(3)}
    (partial / "store" / "sft-00009.arrow").write_bytes(b"of a longer build")
    record = partial / "shard-00001.json"
    record.write_text(record.read_text().replace('"tokens": ', '"tokens": 1'))
    damaged = sorted((partial / "store").glob("*-00002.arrow"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    written = count_shards(monkeypatch)
    assert s.build(rows_of_task(100), out, TEMPLATE, workers=1).hash == built.hash
    assert written == [1, 2]
    assert list(tmp_path.iterdir()) == [out]
    assert {path.name for path in out.iterdir()} == {path.name for path in built.path.iterdir()}


@pytest.mark.parametrize("change", ["rows", "settings"])
def test_shards_of_other_rows_or_settings_are_made_again(tmp_path, monkeypatch, change):
    out = tmp_path / "s"
    stopped_build(out)
    written = count_shards(monkeypatch)
    rows, key = (list(generate(70, 1)), "pit") if change == "rows" else (rows_of_task(70), "other")
    store = s.build(rows, out, TEMPLATE, folds=Folds(key=key), workers=1)
    assert written == [0, 1]
    assert store.hash == s.build(rows, tmp_path / "fresh", TEMPLATE, folds=Folds(key=key)).hash
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
        s.build(rows_of_task(400), tmp_path / "s", TEMPLATE, workers=2)
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_a_second_build_into_the_same_folder_is_refused(tmp_path):
    out = tmp_path / "s"

    def rows():
        words = f"{out}: another build is writing it, in {out}.partial"
        with pytest.raises(DataError, match=re.escape(words)):
            s.build(generate(3, 0), out, TEMPLATE)
        yield from rows_of_task(90)

    store = s.build(rows(), out, TEMPLATE)
    store.verify()
    with pytest.raises(PlaceError, match="already exists and is not an empty folder"):
        s.build(rows_of_task(90), out, TEMPLATE)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(DataError, match=r"s: its file system cannot lock files \(No locks available\), so two builds"):
        s.build(generate(3, 0), tmp_path / "s", TEMPLATE)


def test_of_builds_that_start_at_once_one_wins(tmp_path):
    out = tmp_path / "s"
    builds = [subprocess.Popen(child(out, 200), env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in builds]
    assert sorted(process.returncode for process in builds) == [0, 3, 3]
    losers = [text for text in outputs if text]
    assert all("another build is writing it" in text or "already exists" in text for text in losers), losers
    assert list(tmp_path.iterdir()) == [out]
    store = s.Store.open(out)
    store.verify()
    assert store.hash == s.build(rows_of_task(200), tmp_path / "alone", TEMPLATE).hash


def test_a_full_disk_is_named_and_the_build_continues_when_there_is_room(tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=128k tmpfs "$0" && { "$@"; echo "status $?"; ls "$0/s.partial"; '
        f'mount -o remount,size=64m "$0" && "$@" && cp -r "$0/s" {copy}; }}'
    )
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = [*small, 'mount -t tmpfs -o size=128k tmpfs "$0"', disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small disk")
    result = subprocess.run(
        list(map(str, [*small, script, disk, *child(disk / "s", 400)])),
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
    assert store.hash == s.build(rows_of_task(400), tmp_path / "alone", TEMPLATE).hash


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        result = without_privilege(CHILD, tmp_path / "s", 20)
    finally:
        tmp_path.chmod(0o700)
    assert (result.returncode, result.stdout) == (3, f"13 [Errno 13] Permission denied: '{tmp_path}/s.partial'\n")
