"""Writing a store: parallel shards of input rows, one file per shard and fold; a stopped build keeps finished shards.

The files of a shard depend on its rows and the settings alone, and shards are in the order of the input, so neither
threads nor interruptions change a byte of the store.
"""

import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pyarrow as pa

from pit.data.atomic import require_absent_or_empty, write_file
from pit.data.errors import DataError
from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY, check_fractions, fold_of
from pit.data.store.format import (
    BATCH_ROWS,
    FORMAT,
    MANIFEST,
    SCHEMA,
    VERSION,
    digest,
    file_digest,
    partial_folder,
    record_digest,
)
from pit.data.store.read import Store
from pit.data.template import EncodedPreference, Template
from pit.types import COLUMNS, FOLDS, Preference

SHARD_ROWS = 32_768
"""Input rows of a shard. A stopped build loses at most one shard per worker."""

_TOKENISE_ROWS = 1_024
_MOST_WORKERS = 4  # more only wait for the GIL; tokenising itself is parallel
_POLL_S = 0.1


class Progress(NamedTuple):
    """Progress of a build: totals so far, including shards kept from a stopped build."""

    rows: int
    tokens: int


def build(
    preferences: Iterable[Preference],
    out: str | Path,
    template: Template,
    *,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    key: str = DEFAULT_KEY,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Store:
    """Tokenise preferences into a new store; the folder appears whole or not at all.

    The store is built in ``OUT.partial``. A build that fails or is killed leaves its finished shards there, and the
    next build into the same folder keeps those of the same rows and settings. Memory is bounded by the text of
    `workers` + 1 shards and, for each worker and fold, the tokens of a record batch.

    Args:
        preferences: the rows, for example from `pit.data.readers.read_preferences`.
        out: folder to make; it must be absent or empty.
        template: tokenizer and windows.
        fractions: share of each fold.
        key: key of the fold hash.
        workers: shards built at the same time; None for one per core, at most 4. The store does not depend on it.
        progress: called from time to time, in the caller's thread, with the totals so far.

    Raises:
        DataError: bad fractions, `out` is not empty, another build writes it, or there are no rows.
        OSError: `out` cannot be written.
    """
    check_fractions(fractions, key)
    out = Path(out)
    require_absent_or_empty(out)
    with _locked_folder(out) as folder:
        job = _Job(folder, template, dict(fractions), key)
        shards = _make_shards(job, preferences, workers or min(os.cpu_count() or 1, _MOST_WORKERS), progress)
        if not shards:
            raise DataError(f"{out}: there are no preferences to store; check the reader's report for dropped rows")
        _finish(job, shards)
        job.store.rename(out)
        # A competing build may be opening its lock there; it then removes the rest.
        shutil.rmtree(folder, ignore_errors=True)
    return Store.open(out, template.hash)


@dataclass
class _Job:
    """State that all shards of a build share."""

    folder: Path
    template: Template
    fractions: dict[str, float]
    key: str
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: int = 0
    tokens: int = 0

    @property
    def store(self) -> Path:
        """Folder that becomes the store."""
        return self.folder / "store"

    def settings(self) -> dict[str, Any]:
        """Return everything but the rows that decides the content of the store, as the manifest records it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": self.template.hash,
            "vocab_size": self.template.tokenizer.vocab_size,
            "windows": list(self.template.windows),
            "fold_key": self.key,
            "fold_fractions": self.fractions,
            "shard_rows": SHARD_ROWS,
            "batch_rows": BATCH_ROWS,
        }

    def count(self, rows: int, tokens: int) -> None:
        with self.lock:
            self.rows += rows
            self.tokens += tokens


class _StoppedError(Exception):
    """Ends a worker whose build has failed elsewhere."""


@contextmanager
def _locked_folder(out: Path) -> Iterator[Path]:
    """Lock and yield the folder in which `out` is built; remove it on failure if it holds no finished shard."""
    folder = partial_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    # The system releases the lock whenever and however the process ends.
    with (folder / "lock").open("w") as lock:
        _lock(lock, out)
        try:
            # Another build may have finished since the check in `build`.
            require_absent_or_empty(out)
            (folder / "store").mkdir(exist_ok=True)
            yield folder
        except BaseException:
            if not any(folder.glob("shard-*.json")):
                shutil.rmtree(folder)
            raise


def _lock(lock: TextIO, out: Path) -> None:
    busy = f"{out}: another build is writing it, in {partial_folder(out)}; wait for it, or stop it and build again"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(busy) from error
    except OSError as error:
        raise DataError(
            f"{out}: its file system cannot lock files ({error.strerror}), so two builds could collide; build the "
            "store on a local disk and move it"
        ) from error
    path = Path(lock.name)
    if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
        # The other build ended, and removed this lock with its folder, after this one opened it.
        raise DataError(busy)


def _make_shards(
    job: _Job, preferences: Iterable[Preference], workers: int, progress: Callable[[Progress], None] | None
) -> list[dict[str, Any]]:
    """Make all shards and return their records, in the order of the input."""
    records: list[dict[str, Any]] = []
    pending: deque[Future[dict[str, Any]]] = deque()
    reported = Progress(0, 0)

    def take_first() -> None:
        while not wait([pending[0]], timeout=_POLL_S).done:
            report()
        records.append(pending.popleft().result())
        report()

    def report() -> None:
        nonlocal reported
        with job.lock:
            done = Progress(job.rows, job.tokens)
        if progress is not None and done != reported:
            progress(done)
        reported = done

    with ThreadPoolExecutor(workers) as pool:
        try:
            for index, rows in enumerate(_groups(preferences, SHARD_ROWS)):
                if len(pending) == workers:
                    take_first()
                pending.append(pool.submit(_make_shard, job, index, rows))
            while pending:
                take_first()
        except BaseException:
            job.stop.set()
            raise
    return records


def _make_shard(job: _Job, index: int, rows: Sequence[Preference]) -> dict[str, Any]:
    """Write a shard, unless it is already complete, and return its record."""
    path = job.folder / f"shard-{index:05}.json"
    data = hashlib.blake2b(digest_size=32)
    for row in rows:
        data.update(json.dumps(row).encode())
    source = {"data": data.hexdigest(), "settings": digest(job.settings())}
    record = _finished(job, path, source)
    if record is not None:
        job.count(record["rows"], record["tokens"])
        return record
    path.unlink(missing_ok=True)
    record = source | _write_shard(job, index, rows)
    record["hash"] = record_digest(record)
    write_file(path, json.dumps(record).encode())
    return record


def _finished(job: _Job, path: Path, source: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the record of a shard that an earlier build made from the same source, None if it does not match."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        same = record["hash"] == record_digest(record) and all(record[name] == source[name] for name in source)
        files = [part for entry in record["folds"].values() for part in (entry, entry.get("difficulty")) if part]
        intact = same and all(file_digest(job.store / part["file"]) == part["blake2b"] for part in files)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return record if intact else None


def _write_shard(job: _Job, index: int, rows: Sequence[Preference]) -> dict[str, Any]:
    files = {name: _ShardFile(job.store / f"{name}-{index:05}.arrow") for name in FOLDS}
    tokens = 0
    truncated = [0, 0, 0]
    try:
        for group in _groups(rows, _TOKENISE_ROWS):
            if job.stop.is_set():
                raise _StoppedError
            folds: dict[str, list[EncodedPreference]] = {name: [] for name in FOLDS}
            difficulties: dict[str, list[float | None]] = {name: [] for name in FOLDS}
            before = tokens
            for row, encoded in zip(group, job.template.encode_preferences(group), strict=True):
                name = fold_of(row.prompt, job.fractions, job.key)
                folds[name].append(encoded)
                difficulties[name].append(row.difficulty)
                truncated = [count + cut for count, cut in zip(truncated, encoded.truncated, strict=True)]
                tokens += len(encoded.prompt) + len(encoded.better) + len(encoded.worse)
            for name, encoded_rows in folds.items():
                files[name].add(encoded_rows, difficulties[name])
            job.count(len(group), tokens - before)
        written = {name: file.finish() for name, file in files.items()}
    finally:
        for file in files.values():
            file.close()
    return {
        "rows": len(rows),
        "tokens": tokens,
        "truncated": truncated,
        "folds": {name: entry for name, entry in written.items() if entry is not None},
    }


def _finish(job: _Job, shards: Sequence[dict[str, Any]]) -> None:
    """Write the manifest, and remove the files of earlier builds that are not part of the store."""
    folds = {name: [shard["folds"][name] for shard in shards if name in shard["folds"]] for name in FOLDS}
    truncated = [sum(counts) for counts in zip(*(shard["truncated"] for shard in shards), strict=True)]
    manifest = job.settings() | {
        "data": digest([shard["data"] for shard in shards]),
        "rows": sum(shard["rows"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "truncated": dict(zip(COLUMNS, truncated, strict=True)),
        "folds": {
            name: {"rows": sum(batch["rows"] for file in files for batch in file["batches"]), "files": files}
            for name, files in folds.items()
        },
    }
    manifest["hash"] = record_digest(manifest)
    written = {
        part["file"] for files in folds.values() for file in files for part in (file, file.get("difficulty")) if part
    }
    for path in job.store.iterdir():
        if path.name not in written:
            path.unlink()
    write_file(job.store / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


class _ShardFile:
    """The file of one shard and fold; it is created when its first record batch is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink: Any = None
        self._writer: Any = None
        self._pending: list[list[_Rows]] = []
        self._pending_rows = 0
        self._batches: list[dict[str, int]] = []
        self._difficulty: list[float] = []

    def add(self, rows: Sequence[EncodedPreference], difficulties: Sequence[float | None]) -> None:
        self._difficulty.extend(math.nan if value is None else value for value in difficulties)
        while rows:
            part = rows[: BATCH_ROWS - self._pending_rows]
            rows = rows[len(part) :]
            # Kept as arrays: lists of integers take ten times the memory.
            self._pending.append([_pack(column) for column in zip(*(row[: len(COLUMNS)] for row in part), strict=True)])
            self._pending_rows += len(part)
            if self._pending_rows == BATCH_ROWS:
                self._flush()

    def finish(self) -> dict[str, Any] | None:
        """Complete the file and return its entry in the manifest; None if it has no rows."""
        if self._pending:
            self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        self._sink.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return {
            "file": self._path.name,
            "bytes": self._path.stat().st_size,
            "blake2b": file_digest(self._path),
            "batches": self._batches,
            **self._finish_difficulty(),
        }

    def _finish_difficulty(self) -> dict[str, Any]:
        """Write the difficulty of the rows to a file of its own, if the data give any, and return its entry."""
        values = np.array(self._difficulty, np.float64)
        if np.isnan(values).all():
            return {}
        path = self._path.with_suffix(".difficulty.npy")
        buffer = io.BytesIO()
        np.save(buffer, values)
        write_file(path, buffer.getvalue())
        return {"difficulty": {"file": path.name, "blake2b": file_digest(path)}}

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._sink is not None and not self._sink.closed:
            self._sink.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._sink = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        crc = 0
        arrays = []
        for parts in zip(*self._pending, strict=True):
            lengths = np.concatenate([part.lengths for part in parts])
            values = np.concatenate([part.values for part in parts])
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            # CRC of each column's offsets and values in turn, as little-endian bytes.
            crc = zlib.crc32(values.data, zlib.crc32(offsets.data, crc))
            arrays.append(pa.LargeListArray.from_arrays(offsets, values))
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self._batches.append({"rows": self._pending_rows, "crc32": crc})
        self._pending, self._pending_rows = [], 0


class _Rows(NamedTuple):
    """Token lists of one column, concatenated."""

    lengths: np.ndarray
    values: np.ndarray


def _pack(rows: Sequence[Sequence[int]]) -> _Rows:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return _Rows(lengths, np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())))


def _groups(rows: Iterable[Preference], size: int) -> Iterator[list[Preference]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, size)):
        yield group
