"""The token store: preferences tokenised once into memory-mapped Arrow files, one a fold, with a manifest.

The format is plain Arrow IPC (large lists of int32 in the columns prompt, better and worse, uncompressed, 16,384 rows a
record batch), so any Arrow tool opens it; `manifest.json` adds what Arrow does not know: the tokenizer, the windows,
the folds, and checksums.
"""

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from pit.data.atomic import new_folder
from pit.data.errors import DataError
from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY, check_fractions, fold_of
from pit.data.template import EncodedPreference, Template
from pit.types import COLUMNS, FOLDS, Preference

VERSION = 1
BATCH_ROWS = 16_384
MANIFEST = "manifest.json"

_TOKENISE_ROWS = 1_024
_FORMAT = "pit-token-store"
_SCHEMA = pa.schema([(name, pa.large_list(pa.int32())) for name in COLUMNS])


class StoreError(DataError):
    """A token store is missing, damaged, or made for something else."""


class Chunk(NamedTuple):
    """One column of one record batch: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: Int32[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " rows_plus_1"]


class Progress(NamedTuple):
    """What `build` tells its callback."""

    rows: int
    tokens: int


def build(
    preferences: Iterable[Preference],
    out: str | Path,
    template: Template,
    *,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    key: str = DEFAULT_KEY,
    progress: Callable[[Progress], None] | None = None,
) -> "Store":
    """Tokenise preferences into a new store; the folder appears whole or not at all.

    Tokenising runs on all cores (inside the tokenizers library); memory stays bounded by a record batch a fold.

    Args:
        preferences: the rows, for example from `pit.data.readers.read_preferences`.
        out: folder to make; it must be absent or empty.
        template: tokenizer and windows.
        fractions: share of each fold.
        key: key of the fold hash.
        progress: called after each group of rows with the totals so far.

    Raises:
        DataError: bad fractions, `out` holds something, or there are no rows.
    """
    check_fractions(fractions, key)
    rows = tokens = 0
    truncated = [0, 0, 0]
    data = hashlib.blake2b(digest_size=32)
    with new_folder(out) as folder:
        writers = {name: _FoldWriter(folder / f"{name}.arrow") for name in FOLDS}
        try:
            for group in _groups(preferences, _TOKENISE_ROWS):
                for row, encoded in zip(group, template.encode_preferences(group), strict=True):
                    data.update(json.dumps(row).encode())
                    writers[fold_of(row.prompt, fractions, key)].add(encoded)
                    truncated = [count + cut for count, cut in zip(truncated, encoded.truncated, strict=True)]
                    tokens += len(encoded.prompt) + len(encoded.better) + len(encoded.worse)
                rows += len(group)
                if progress is not None:
                    progress(Progress(rows, tokens))
        finally:
            for writer in writers.values():
                writer.close()
        if rows == 0:
            raise DataError(f"{out}: there are no preferences to store; check the reader's report for dropped rows")
        manifest = {
            "format": _FORMAT,
            "version": VERSION,
            "tokenizer": template.tokenizer.hash,
            "vocab_size": template.tokenizer.vocab_size,
            "windows": list(template.windows),
            "fold_key": key,
            "fold_fractions": dict(fractions),
            "data": data.hexdigest(),
            "rows": rows,
            "tokens": tokens,
            "truncated": dict(zip(COLUMNS, truncated, strict=True)),
            "folds": {name: writers[name].describe() for name in FOLDS},
        }
        manifest["hash"] = _digest(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return Store.open(out, template.tokenizer.hash)


class Fold:
    """One fold of a store, read through a memory map. A record batch is checked when it is first touched.

    Attributes:
        name: one of `pit.types.FOLDS`.
        hash: digest of the fold's file; equal hash, equal rows in equal order.
    """

    def __init__(self, path: Path, name: str, entry: Mapping[str, Any], vocab_size: int) -> None:
        self.name = name
        self.hash: str = entry["blake2b"]
        self._path = path
        self._vocab_size = vocab_size
        self._batches: list[dict[str, int]] = entry["batches"]
        self._first: list[int] = list(itertools.accumulate((batch["rows"] for batch in self._batches), initial=0))
        self._chunks: dict[int, tuple[Chunk, Chunk, Chunk]] = {}
        size = path.stat().st_size if path.is_file() else -1
        if size != entry["bytes"]:
            state = "is missing" if size < 0 else f"has {size} bytes, its manifest says {entry['bytes']}"
            raise StoreError(f"{path}: {state}; the store is damaged, build it again")
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path}: not a readable Arrow file ({error}); build the store again") from error
        if not self._reader.schema.equals(_SCHEMA) or self._reader.num_record_batches != len(self._batches):
            raise StoreError(
                f"{path}: holds {self._reader.num_record_batches} record batches of {self._reader.schema}, its "
                f"manifest says {len(self._batches)} of {_SCHEMA}; build the store again"
            )

    def __len__(self) -> int:
        return self._first[-1]

    def lengths(self) -> Int32[np.ndarray, "rows 3"]:
        """Number of content tokens of every row's prompt, better and worse answer."""
        lengths = np.empty((len(self), len(COLUMNS)), np.int32)
        for index, first in enumerate(self._first[:-1]):
            for column, chunk in enumerate(self._chunk(index)):
                lengths[first : self._first[index + 1], column] = np.diff(chunk.offsets)
        return lengths

    def columns(self) -> list[list[Chunk]]:
        """For each of `pit.types.COLUMNS` its chunks in row order, as views of the memory map (no copy)."""
        chunks = [self._chunk(index) for index in range(len(self._batches))]
        return [[chunk[column] for chunk in chunks] for column in range(len(COLUMNS))]

    def row(
        self, index: int
    ) -> tuple[Int32[np.ndarray, " prompt"], Int32[np.ndarray, " better"], Int32[np.ndarray, " worse"]]:
        """Contents of one row, without closing tokens.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"fold {self.name!r} has rows 0..{len(self) - 1}, there is no row {index}")
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        local = index - self._first[batch]
        prompt, better, worse = (
            chunk.values[chunk.offsets[local] : chunk.offsets[local + 1]] for chunk in self._chunk(batch)
        )
        return prompt, better, worse

    def _chunk(self, index: int) -> tuple[Chunk, Chunk, Chunk]:
        """The columns of a record batch, checked on first touch."""
        if index not in self._chunks:
            self._chunks[index] = self._read(index)
        return self._chunks[index]

    def _read(self, index: int) -> tuple[Chunk, Chunk, Chunk]:
        where = f"{self._path}: record batch {index}"
        expected = self._batches[index]
        try:
            batch = self._reader.get_batch(index)
            batch.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{where} is damaged ({error}); build the store again") from error
        if batch.num_rows != expected["rows"] or any(column.null_count for column in batch.columns):
            raise StoreError(f"{where} is damaged: {batch.num_rows} rows instead of {expected['rows']}, or nulls")
        prompt, better, worse = (_column_view(column) for column in batch.columns)
        chunks = (prompt, better, worse)
        checksum = _checksum(chunks)
        if checksum != expected["crc32"]:
            raise StoreError(
                f"{where} is damaged: checksum {checksum:#010x}, its manifest says {expected['crc32']:#010x}; "
                "build the store again"
            )
        for name, chunk in zip(COLUMNS, chunks, strict=True):
            if chunk.values.size and not 0 <= chunk.values.min() <= chunk.values.max() < self._vocab_size:
                raise StoreError(
                    f"{where}, column {name!r}: tokens {chunk.values.min()}..{chunk.values.max()} leave the vocabulary "
                    f"0..{self._vocab_size - 1}; build the store again"
                )
        return chunks


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
            name: Fold(path / entry["file"], name, entry, manifest["vocab_size"])
            for name, entry in manifest["folds"].items()
        }

    @classmethod
    def open(cls, path: str | Path, tokenizer_hash: str | None = None) -> "Store":
        """Open a store through memory maps.

        Args:
            path: the folder that `build` made.
            tokenizer_hash: `Tokenizer.hash` of the tokenizer in use; None skips that check.

        Raises:
            StoreError: missing or damaged files, another version, or another tokenizer.
        """
        path = Path(path)
        manifest = _read_manifest(path)
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
        if _read_manifest(self.path) != self.manifest:
            raise StoreError(f"{self.path / MANIFEST}: changed since the store was opened; open it again")
        for name, fold in self._folds.items():
            digest = _file_digest(self.path / f"{name}.arrow")
            if digest != fold.hash:
                raise StoreError(
                    f"{self.path / f'{name}.arrow'}: digest {digest[:12]}, its manifest says {fold.hash[:12]}; "
                    "the store is damaged, build it again"
                )
            fold.columns()


class _FoldWriter:
    """Writes one fold's file record batch by record batch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = pa.ipc.new_file(str(path), _SCHEMA)
        self._pending: list[EncodedPreference] = []
        self._batches: list[dict[str, int]] = []

    def add(self, row: EncodedPreference) -> None:
        self._pending.append(row)
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        if self._pending:
            self._flush()
        self._writer.close()

    def describe(self) -> dict[str, Any]:
        """The fold's entry in the manifest; the writer must be closed."""
        return {
            "file": self._path.name,
            "bytes": self._path.stat().st_size,
            "blake2b": _file_digest(self._path),
            "rows": sum(batch["rows"] for batch in self._batches),
            "batches": self._batches,
        }

    def _flush(self) -> None:
        contents = zip(*((row.prompt, row.better, row.worse) for row in self._pending), strict=True)
        chunks = [_pack(column) for column in contents]
        arrays = [pa.LargeListArray.from_arrays(chunk.offsets, chunk.values) for chunk in chunks]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
        self._batches.append({"rows": len(self._pending), "crc32": _checksum(chunks)})
        self._pending = []


def _pack(rows: Sequence[list[int]]) -> Chunk:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Chunk(np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets)


def _column_view(column: Any) -> Chunk:
    values: np.ndarray = column.values.to_numpy(zero_copy_only=True)
    offsets: np.ndarray = column.offsets.to_numpy(zero_copy_only=True)
    return Chunk(values, offsets)


def _checksum(chunks: Iterable[Chunk]) -> int:
    """CRC-32 over each column's offsets and values in turn, as little-endian bytes."""
    crc = 0
    for chunk in chunks:
        crc = zlib.crc32(chunk.offsets.data, crc)
        crc = zlib.crc32(chunk.values.data, crc)
    return crc


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "hash"}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store, with its format, version and own digest checked."""
    file = path / MANIFEST
    if not file.is_file():
        raise StoreError(f"{path}: no token store here ({MANIFEST} is missing); make one with pit.data.store.build")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreError(f"{file}: damaged ({error}); build the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise StoreError(f"{file}: not the manifest of a token store; build the store again")
    if manifest.get("version") != VERSION:
        raise StoreError(
            f"{file}: format version {manifest.get('version')!r}, this program reads {VERSION}; build the store again"
        )
    if manifest.get("hash") != _digest(manifest):
        raise StoreError(f"{file}: damaged (its digest does not match); build the store again")
    return manifest


def _groups(rows: Iterable[Preference], size: int) -> Iterator[list[Preference]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, size)):
        yield group
