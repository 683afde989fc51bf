"""Files and folders appear whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from pit.atomic import PlaceError, naming, new_folder, write_file
from pit.cli.failures import message_of
from pit.data.curriculum import Draws
from pit.data.curriculum.history import History, Visit
from pit.model import tensor_files
from pit.model.tensor_files import write_tensor_file
from pit.train.log import StageLog


def test_atomic_writes_leave_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]

    def interrupted() -> None:
        with new_folder(tmp_path / "folder") as folder:
            (folder / "part").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    with new_folder(tmp_path / "folder") as folder:
        (folder / "part").touch()
    assert (tmp_path / "folder" / "part").is_file()


@pytest.mark.parametrize("name", ["n" * 250, "名" * 80, "n" * 230])
def test_every_name_that_a_file_system_holds_can_be_written(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / "file" / name, b"content")
    assert (tmp_path / "file" / name).read_bytes() == b"content"
    with new_folder(tmp_path / "folder" / name) as folder:
        (folder / "part").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [name]


def test_a_new_folder_replaces_no_link(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dead").symlink_to("gone")
    for name, target in (("link", "empty"), ("dead", "gone")):
        rule = f"{name}: is a link to {target}, which a new folder would replace; name that folder"
        with pytest.raises(PlaceError, match=rule), new_folder(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dead", "empty", "link"]


# Full disks.


def visit(path: Path) -> None:
    with History(path.parent) as history:
        history.add(Visit(Draws(0, np.zeros(1, np.int64), np.zeros(1, np.int64)), None))


def log(path: Path) -> None:
    target = path.readlink()
    path.unlink()
    with StageLog(path.parent, "stage", trackers=()) as log:
        log._file.close()
        log._file = target.open("a")
        log.write(1, {"loss": 1.0})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("draws.jsonl", visit),
        ("metrics.jsonl", log),
    ],
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    path = tmp_path / name
    path.symlink_to(full)
    with pytest.raises(OSError, match="No space left") as error:
        write(path)
    assert message_of(error.value) == f"the disk is full ({path}); free some space, then run the command again"


def test_a_full_disk_is_named_where_the_library_tells_it_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(text: str) -> Callable[..., None]:
        def save(*_: object, **__: object) -> None:
            raise SafetensorError(text)

        return save

    path = tmp_path / "model.safetensors"
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    monkeypatch.setattr(tensor_files, "save_file", fail(words))
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        write_tensor_file(path, {})
    monkeypatch.setattr(tensor_files, "save_file", fail("other"))
    with pytest.raises(SafetensorError, match="other"):
        write_tensor_file(path, {})


def test_a_file_that_is_written_whole_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'$"):
        write_file(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_other_errors_are_left_as_they_are() -> None:
    for error in (OSError(errno.EPIPE, "text"), OSError("own text"), OSError(errno.ENOSPC, "text", "named")):
        before = error.filename
        with pytest.raises(OSError, match="text") as caught, naming("file"):
            raise error
        assert (caught.value, error.filename) == (error, before)
