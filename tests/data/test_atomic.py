"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from pit.data.atomic import new_folder, write_file


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
