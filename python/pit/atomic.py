"""Files and folders that appear whole or not at all: written under a temporary name next to it, then renamed.

Output that would destroy what the same command reads is refused.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pit.errors import PitError

_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_PREFIX = 60
"""Bytes of a name that its temporary name repeats, so that it stays within the limit of a file system."""


class PlaceError(PitError):
    """A file or folder cannot be written where it was asked for."""


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give the name of the file that is written to an error of a disk that takes no more of it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _OF_WRITES:
            error.filename = str(path)
        raise


def _prefix(path: Path) -> str:
    return f".{path.name.encode(errors='surrogateescape')[:_LONGEST_PREFIX].decode(errors='ignore')}."


def _default_mode(base: int) -> int:
    """Return `base` less the umask, the mode of open() and mkdir() (the tempfile module uses 0600 and 0700)."""
    umask = os.umask(0)
    os.umask(umask)
    return base & ~umask


@contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a new file to write; it takes the place of `path` on success and is removed on failure.

    A reader of `path` sees the old file or the new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(_default_mode(0o666))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_file(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`; a reader sees the old file or the new one, never a part."""
    with new_file(path) as file:
        file.write(content)


RUN_PARTS = frozenset(
    {"config.json", "tokenizer.json", "template.json", "prepared.json", "results.json", "report.html"}
    | {"search.json", "store", "data", "refresh", "stages"}
)
"""Files and folders in the folder of a run that PIT reads back or owns."""


def require_apart(name: str, out: str | Path, *sources: str | Path) -> None:
    """Raise unless writing the file `out` leaves every source as it is.

    Args:
        name: option that names `out`, for the message.
        out: file to write.
        sources: files and folders that the command reads; in the folder of a run, its own parts are kept.

    Raises:
        PlaceError: `out` is one of them, in one of them, or a link to one.
    """
    out = Path(out)
    for source in map(Path, sources):
        if out.exists() and source.exists() and out.samefile(source):
            raise PlaceError(f"{name} = {out}: is {source}, which is read, and would be destroyed; name another file")
        place, folder = out.resolve(), source.resolve()
        if not source.is_dir() or folder not in place.parents:
            continue
        part = place.relative_to(folder).parts[0]
        if part in RUN_PARTS if (source / "config.json").is_file() else out.exists():
            raise PlaceError(f"{name} = {out}: would destroy a part of {source}, which is read; name another file")


def require_absent_or_empty(path: str | Path) -> None:
    """Raise `PlaceError` unless `path` is missing or an empty folder; a link to one cannot be replaced by a folder."""
    path = Path(path)
    if path.is_symlink():
        raise PlaceError(f"{path}: is a link to {path.readlink()}, which a new folder would replace; name that folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PlaceError(f"{path}: already exists and is not an empty folder; remove it or name another folder")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder to fill; it is renamed to `path` on success and removed on failure.

    Raises:
        PlaceError: `path` is a link, or exists and is not an empty folder.
    """
    path = Path(path)
    require_absent_or_empty(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
    try:
        with naming(path):
            yield part
        part.chmod(_default_mode(0o777))
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
