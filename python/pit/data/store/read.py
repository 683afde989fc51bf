"""Reading a store: memory maps that the C++ core verifies, a record batch when it is first touched."""

import bisect
import errno
import hashlib
import io
import itertools
import mmap
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int32

from pit.data import _core
from pit.data.store.format import MANIFEST, SCHEMA, StoreError, digest, file_digest, read_manifest
from pit.data.tokens import Tokens
from pit.types import COLUMNS


class _State(NamedTuple):
    """What tells that a file is the one that was mapped."""

    bytes: int
    mtime_ns: int
    inode: int


class _Mapped(NamedTuple):
    """A file of a fold under its map."""

    path: Path
    state: _State
    map: mmap.mmap


class Fold:
    """One fold of a store. Its files are mapped at first use, with their offsets checked; tokens and checksum of a
    record batch are verified when one of its rows is first read.

    Attributes:
        name: one of `pit.types.FOLDS`.
        hash: digest of the fold's files; equal hash, equal rows in equal order.
    """

    def __init__(self, folder: Path, name: str, entry: Mapping[str, Any], vocab_size: int) -> None:
        self.name = name
        self.hash = digest([part["blake2b"] for file in entry["files"] for part in _parts(file)])
        self._folder = folder.absolute()  # the process may change its folder before the files are mapped
        self._files: list[dict[str, Any]] = entry["files"]
        self._vocab_size = vocab_size
        rows = (sum(batch["rows"] for batch in file["batches"]) for file in self._files)
        self._first: list[int] = list(itertools.accumulate(rows, initial=0))
        self._mapped: list[_Mapped] = []
        for file in self._files:
            for path in (folder / part["file"] for part in _parts(file)):
                if not path.is_file():
                    raise StoreError(f"{path}: is missing; the store is damaged, build it again")
            path = folder / file["file"]
            _require_bytes(path, path.stat().st_size, file["bytes"])

    def __len__(self) -> int:
        return self._first[-1]

    @cached_property
    def table(self) -> _core.TokenTable:
        """The fold's columns, in the order of `pit.types.COLUMNS`, for the C++ core to read from: nothing is copied.

        Raises:
            StoreError: a file is not what the manifest says, or is compressed.
        """
        mapped = [_map(self._folder / file["file"], file["bytes"]) for file in self._files]
        sources = [_open(each, file["batches"]) for each, file in zip(mapped, self._files, strict=True)]
        try:
            table = _core.TokenTable.from_arrow(sources, COLUMNS, self._vocab_size)
        except _core.CoreError as error:
            raise StoreError(str(error)) from error
        self._mapped = mapped
        return table

    def lengths(self) -> Int32[np.ndarray, "rows 3"]:
        """Number of content tokens of every row's prompt, better and worse answer."""
        return self.table.lengths()

    def row(
        self, index: int
    ) -> tuple[Int32[np.ndarray, " prompt"], Int32[np.ndarray, " better"], Int32[np.ndarray, " worse"]]:
        """Contents of one row, without closing tokens, as read-only views of the memory map.

        Raises:
            IndexError: no such row.
            StoreError: the row's file changed, or its record batch is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"fold {self.name!r} has rows 0..{len(self) - 1}, there is no row {index}")
        table = self.table
        _require_unchanged(self._mapped[bisect.bisect_right(self._first, index) - 1])
        try:
            prompt, better, worse = table.row(index)
        except _core.CoreError as error:
            raise StoreError(str(error)) from error
        return prompt, better, worse

    def columns(self, ids: Sequence[int]) -> tuple[Tokens, Tokens, Tokens]:
        """Return the contents of some rows by column: prompts, better and worse answers, without closing tokens.

        Raises:
            IndexError: no such row.
            StoreError: a file changed, or a record batch is damaged.
        """
        rows = [self.row(index) for index in ids]
        prompts, better, worse = (Tokens.of([row[column] for row in rows]) for column in range(3))
        return prompts, better, worse

    def difficulty(self) -> Float64[np.ndarray, " rows"]:
        """What the data say of each row's difficulty.

        Raises:
            StoreError: they say nothing, or not of every row; or a file is damaged.
        """
        values = []
        for file in self._files:
            part = file.get("difficulty")
            if part is None:
                raise StoreError(
                    f"{self._folder}: fold {self.name!r} holds no difficulty; name the column of the data that does "
                    "(data.difficulty_column), and build the store again"
                )
            content = (self._folder / part["file"]).read_bytes()
            _require_digest(self._folder / part["file"], hashlib.blake2b(content, digest_size=32).hexdigest(), part)
            values.append(np.load(io.BytesIO(content)))
        found = np.concatenate(values) if values else np.empty(0)
        if np.isnan(found).any():
            raise StoreError(
                f"{self._folder}: fold {self.name!r}, row {int(np.isnan(found).argmax())}: has no difficulty, others "
                "do; give it in every row"
            )
        return found

    def check_unchanged(self) -> None:
        """Refuse files that are no longer those that were mapped: to be called around the reading of every batch.

        A map shows whatever its file holds at the moment of reading, and what was verified once is not verified again.
        Two races remain. A file that is cut short between this check and a read ends the process with SIGBUS, as any
        program that reads a map past its file's end. A writer that changes bytes in place and then sets the old mtime,
        or writes through a map of its own (the system updates the mtime of such writes late), goes unseen: rows are
        then wrong, though never read from outside the file's map. `Store.verify` finds such a change.

        Raises:
            StoreError: a file's size, mtime or identity changed, or it is gone.
        """
        for mapped in self._mapped:
            _require_unchanged(mapped)

    def verify(self) -> None:
        """Read every byte of the fold's files and compare it with the manifest.

        Raises:
            StoreError: any byte differs from what was written.
        """
        for file in self._files:
            path = self._folder / file["file"]
            found = file_digest(path)
            if found != file["blake2b"]:
                self._verify_table()  # says more than a digest can, if the fault lies in the tokens
            for part in _parts(file):
                path = self._folder / part["file"]
                _require_digest(path, file_digest(path), part)
        self._verify_table()
        self.check_unchanged()

    def _verify_table(self) -> None:
        try:
            self.table.verify()
        except _core.CoreError as error:
            raise StoreError(str(error)) from error


class Store:
    """A token store on disk, opened with `Store.open`.

    Attributes:
        path: its folder.
        manifest: what its manifest says.
        hash: digest of the manifest, and through it of every byte of the store.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        self._folds = {
            name: Fold(path, name, entry, manifest["vocab_size"]) for name, entry in manifest["folds"].items()
        }

    @classmethod
    def open(cls, path: str | Path, tokenizer_hash: str | None = None) -> "Store":
        """Open a store: its manifest and the sizes of its files are checked now, the rest when it is used.

        Args:
            path: the folder that `build` made.
            tokenizer_hash: `Tokenizer.hash` of the tokenizer in use; None skips that check.

        Raises:
            StoreError: missing or damaged files, half a store, another version, or another tokenizer.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if tokenizer_hash is not None and manifest["tokenizer"] != tokenizer_hash:
            raise StoreError(
                f"{path}: was tokenised with tokenizer {manifest['tokenizer'][:12]}, the one in use is "
                f"{tokenizer_hash[:12]}; build the store again with this tokenizer, or load the other one"
            )
        return cls(path, manifest)

    @property
    def windows(self) -> tuple[int, int, int]:
        """(input, reference, output) windows that the contents were cut to."""
        first, second, third = self.manifest["windows"]
        return first, second, third

    def fold(self, name: str) -> Fold:
        """The fold of that name.

        Raises:
            StoreError: no such fold.
        """
        if name not in self._folds:
            raise StoreError(f"{self.path}: has no fold {name!r}; the folds are {list(self._folds)}")
        return self._folds[name]

    def verify(self) -> None:
        """Read every byte and compare it with the manifest.

        Raises:
            StoreError: any byte of any file differs from what was written.
        """
        if read_manifest(self.path) != self.manifest:
            raise StoreError(f"{self.path / MANIFEST}: changed since the store was opened; open it again")
        for fold in self._folds.values():
            fold.verify()


def _parts(file: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files of one shard's fold: the rows, and their difficulty if anyone gave it."""
    return [part for part in (file, file.get("difficulty")) if part]


def _require_digest(path: Path, found: str, part: Mapping[str, Any]) -> None:
    if found != part["blake2b"]:
        raise StoreError(
            f"{path}: digest {found[:12]}, its manifest says {part['blake2b'][:12]}; the store is damaged, build it "
            "again"
        )


def _require_bytes(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise StoreError(
            f"{path}: has {found} bytes, its manifest says {expected}; the store is damaged, build it again"
        )


def _state(result: os.stat_result) -> _State:
    return _State(result.st_size, result.st_mtime_ns, result.st_ino)


def _map(path: Path, size: int) -> _Mapped:
    try:
        with path.open("rb") as file:
            # Of the open file, not of the path: another file may take its place in between.
            state = _state(os.fstat(file.fileno()))
            _require_bytes(path, state.bytes, size)
            return _Mapped(path, state, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        remedy = "allow more open files (ulimit -n)" if error.errno == errno.EMFILE else "make it readable"
        raise StoreError(f"{path}: cannot be mapped ({error.strerror}); {remedy}") from error


def _open(mapped: _Mapped, batches: list[dict[str, int]]) -> tuple[str, mmap.mmap, Any, np.ndarray, np.ndarray]:
    """A mapped file as `_core.TokenTable.from_arrow` takes it."""
    path = mapped.path
    try:
        reader = pa.ipc.open_file(pa.py_buffer(mapped.map))
        found = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: damaged, not a readable Arrow file ({error}); build the store again") from error
    if not reader.schema.equals(SCHEMA):
        raise StoreError(
            f"{path}: damaged, its columns are not large lists of int32 named {', '.join(COLUMNS)}; build the store "
            "again"
        )
    rows, expected = [batch.num_rows for batch in found], [batch["rows"] for batch in batches]
    if rows != expected:
        raise StoreError(
            f"{path}: damaged, holds record batches of {rows} rows, its manifest says {expected}; build the store again"
        )
    # Of each column validity, offsets, then validity and values of its tokens; an empty buffer may be None.
    sizes = [
        [[buffer.size if buffer else 0 for buffer in column.buffers()[1::2]] for column in batch.columns]
        for batch in found
    ]
    return (
        str(path),
        mapped.map,
        pa.RecordBatchReader.from_batches(SCHEMA, found),
        np.array(sizes, np.int64).reshape(-1, len(COLUMNS), 2),
        np.array([batch["crc32"] for batch in batches], np.uint32),
    )


def _require_unchanged(mapped: _Mapped) -> None:
    try:
        now = _state(mapped.path.stat())
    except OSError as error:
        raise StoreError(
            f"{mapped.path}: cannot be found any more ({error.strerror}); it was mapped, so leave it in its place"
        ) from error
    if now != mapped.state:
        raise StoreError(
            f"{mapped.path}: changed while it was mapped, from {mapped.state} to {now}; a store in use must not "
            "change: build it in another folder, or start again"
        )
