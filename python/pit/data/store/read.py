"""Reading a store: memory maps, of which the C++ core verifies each record batch when it is first read."""

import bisect
import errno
import hashlib
import io
import itertools
import json
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
from pit.data.store.format import MANIFEST, SCHEMA, StoreError, digest, file_digest, parts_of, read_manifest
from pit.data.tokens import Tokens
from pit.types import COLUMNS


class _State(NamedTuple):
    """Identity of a file, to detect a change while it is mapped."""

    bytes: int
    mtime_ns: int
    inode: int


class _Mapped(NamedTuple):
    """A file of a fold and its memory map."""

    path: Path
    state: _State
    map: mmap.mmap


class Fold:
    """One fold of a store.

    Its files are mapped at first use, and their offsets checked; tokens and checksum of a record batch are verified
    when one of its rows is first read.

    Attributes:
        name: one of `pit.types.FOLDS`.
        hash: digest of the fold's files; equal hashes mean equal rows in equal order.
    """

    def __init__(self, folder: Path, name: str, entry: Mapping[str, Any], vocab_size: int) -> None:
        self.name = name
        self.hash = digest([part["blake2b"] for file in entry["files"] for part in parts_of(file)])
        self._folder = folder.absolute()  # the working directory may change before the files are mapped
        self._files: list[dict[str, Any]] = entry["files"]
        self._vocab_size = vocab_size
        rows = (sum(batch["rows"] for batch in file["batches"]) for file in self._files)
        self._first: list[int] = list(itertools.accumulate(rows, initial=0))
        self._mapped: list[_Mapped] = []
        for file in self._files:
            for path in (folder / part["file"] for part in parts_of(file)):
                if not path.is_file():
                    raise StoreError(f"{path}: missing; the store is damaged, build it again")
            path = folder / file["file"]
            _require_bytes(path, path.stat().st_size, file["bytes"])

    def __len__(self) -> int:
        return self._first[-1]

    @cached_property
    def table(self) -> _core.TokenTable:
        """Columns of the fold in the order of `pit.types.COLUMNS`, from which the C++ core reads without a copy.

        Raises:
            StoreError: a file differs from the manifest, or is compressed.
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
        """Return the number of content tokens of every row's prompt, better and worse answer."""
        return self.table.lengths()

    def row(
        self, index: int
    ) -> tuple[Int32[np.ndarray, " prompt"], Int32[np.ndarray, " better"], Int32[np.ndarray, " worse"]]:
        """Return the contents of a row, without closing tokens, as read-only views of the memory map.

        Raises:
            IndexError: no such row.
            StoreError: the row's file changed, or its record batch is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of fold {self.name!r}: out of range; its rows are 0..{len(self) - 1}")
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
        """Return the difficulty of each row, as given in the data.

        Raises:
            StoreError: the data give none, or not for every row; or a file is damaged.
        """
        values = []
        for file in self._files:
            part = file.get("difficulty")
            if part is None:
                raise StoreError(
                    f"{self._folder}: fold {self.name!r} holds no difficulty; set data.difficulty_column to the column "
                    "of the data that does, and build the store again"
                )
            content = (self._folder / part["file"]).read_bytes()
            _require_digest(self._folder / part["file"], hashlib.blake2b(content, digest_size=32).hexdigest(), part)
            values.append(np.load(io.BytesIO(content)))
        difficulty = np.concatenate(values) if values else np.empty(0)
        missing = np.isnan(difficulty)
        if missing.any():
            raise StoreError(
                f"{self._folder}: fold {self.name!r}, row {int(missing.argmax())} has no difficulty, but others do; "
                "give it in every row"
            )
        return difficulty

    def facts(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the further columns of some rows by name; empty where the data were read without any.

        Raises:
            IndexError: no such row.
            StoreError: a file is damaged.
        """
        lines = self._facts
        return [json.loads(lines[range(len(self))[index]]) if lines else {} for index in ids]

    @cached_property
    def _facts(self) -> list[bytes]:
        lines: list[bytes] = []
        for file in self._files:
            if (part := file.get("facts")) is not None:
                content = (self._folder / part["file"]).read_bytes()
                _require_digest(self._folder / part["file"], hashlib.blake2b(content, digest_size=32).hexdigest(), part)
                lines += content.splitlines()
        return lines

    def check_unchanged(self) -> None:
        """Raise if a mapped file has changed; call it before and after reading a batch.

        A map shows the current bytes of its file, and verified batches are not verified again. Two races remain. If a
        file is truncated between this check and a read, the process ends with SIGBUS, like any program that reads a map
        past the end of its file. If a writer changes bytes in place and restores the mtime, or writes through a map
        (whose mtime the system updates late), the change is not noticed: rows are then wrong, but never read from
        outside the map. `Store.verify` detects such a change.

        Raises:
            StoreError: size, mtime or inode of a file changed, or the file is gone.
        """
        for mapped in self._mapped:
            _require_unchanged(mapped)

    def verify(self) -> None:
        """Read every byte of the fold's files and compare it with the manifest.

        Raises:
            StoreError: any byte differs from what was written.
        """
        for file in self._files:
            if file_digest(self._folder / file["file"]) != file["blake2b"]:
                self._verify_table()  # its message is more precise, if the fault lies in the tokens
            for part in parts_of(file):
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
        path: folder of the store.
        manifest: content of its manifest.
        hash: digest of the manifest, which covers every byte of the store.
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
        """Open a store. The manifest and the sizes of the files are checked now, the rest at first use.

        Args:
            path: the folder that `build` made.
            tokenizer_hash: `Tokenizer.hash` of the tokenizer in use; None skips that check.

        Raises:
            StoreError: missing or damaged files, an incomplete store, another version, or another tokenizer.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if tokenizer_hash is not None and manifest["tokenizer"] != tokenizer_hash:
            raise StoreError(
                f"{path}: was tokenised with tokenizer {manifest['tokenizer'][:12]}, but the one in use is "
                f"{tokenizer_hash[:12]}; build the store again with it, or load the tokenizer of the store"
            )
        return cls(path, manifest)

    @property
    def windows(self) -> tuple[int, int, int]:
        """(input, reference, output) windows to which the contents were truncated, in tokens."""
        first, second, third = self.manifest["windows"]
        return first, second, third

    def fold(self, name: str) -> Fold:
        """Return the fold of that name.

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


def _require_digest(path: Path, actual: str, part: Mapping[str, Any]) -> None:
    if actual != part["blake2b"]:
        raise StoreError(
            f"{path}: has digest {actual[:12]}, but its manifest says {part['blake2b'][:12]}; the store is damaged, "
            "build it again"
        )


def _require_bytes(path: Path, actual: int, expected: int) -> None:
    if actual != expected:
        raise StoreError(
            f"{path}: has {actual} bytes, but its manifest says {expected}; the store is damaged, build it again"
        )


def _state(result: os.stat_result) -> _State:
    return _State(result.st_size, result.st_mtime_ns, result.st_ino)


def _map(path: Path, size: int) -> _Mapped:
    try:
        with path.open("rb") as file:
            # State of the open file, not of the path: another file may replace it in between.
            state = _state(os.fstat(file.fileno()))
            _require_bytes(path, state.bytes, size)
            return _Mapped(path, state, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        remedy = "allow more open files (ulimit -n)" if error.errno == errno.EMFILE else "make it readable"
        raise StoreError(f"{path}: cannot be mapped ({error.strerror}); {remedy}") from error


def _open(mapped: _Mapped, batches: list[dict[str, int]]) -> tuple[str, mmap.mmap, Any, np.ndarray, np.ndarray]:
    """Return the arguments of `_core.TokenTable.from_arrow` for a mapped file."""
    path = mapped.path
    try:
        reader = pa.ipc.open_file(pa.py_buffer(mapped.map))
        records = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: damaged, not a readable Arrow file ({error}); build the store again") from error
    if not reader.schema.equals(SCHEMA):
        raise StoreError(
            f"{path}: damaged, its columns are not large lists of int32 named {', '.join(COLUMNS)}; build the store "
            "again"
        )
    rows, expected = [record.num_rows for record in records], [batch["rows"] for batch in batches]
    if rows != expected:
        raise StoreError(
            f"{path}: damaged, holds record batches of {rows} rows, but its manifest says {expected}; build the store "
            "again"
        )
    # A column has the buffers validity, offsets, validity of the tokens, tokens; an empty one may be None.
    sizes = [
        [[buffer.size if buffer else 0 for buffer in column.buffers()[1::2]] for column in record.columns]
        for record in records
    ]
    return (
        str(path),
        mapped.map,
        pa.RecordBatchReader.from_batches(SCHEMA, records),
        np.array(sizes, np.int64).reshape(-1, len(COLUMNS), 2),
        np.array([batch["crc32"] for batch in batches], np.uint32),
    )


def _require_unchanged(mapped: _Mapped) -> None:
    try:
        now = _state(mapped.path.stat())
    except OSError as error:
        raise StoreError(
            f"{mapped.path}: gone while it was mapped ({error.strerror}); put it back and start again"
        ) from error
    if now != mapped.state:
        raise StoreError(
            f"{mapped.path}: changed while it was mapped, from {mapped.state} to {now}; start again, and build stores "
            "in other folders while this one is in use"
        )
