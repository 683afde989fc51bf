"""Writing a store: parallel shards of input rows, one file per shard and fold; a stopped build keeps finished shards.

The files of a shard depend on its rows and the settings alone, and shards are in the order of the input, so neither
threads nor interruptions change a byte of the store.
"""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pit.atomic import require_absent_or_empty, write_file
from pit.data.errors import DataError
from pit.data.folds import Folds
from pit.data.store.format import (
    BATCH_ROWS,
    FORMAT,
    MANIFEST,
    VERSION,
    digest,
    file_digest,
    partial_folder,
    parts_of,
    record_digest,
)
from pit.data.store.read import Store
from pit.data.store.shard import ShardFile
from pit.data.template import EncodedPreference, Template
from pit.data.usable import flaw
from pit.types import COLUMNS, FOLDS, Preference

SHARD_ROWS = 32_768
"""Input rows of a shard. A stopped build loses at most one shard per worker."""

_TOKENISE_ROWS = 1_024
_MOST_WORKERS = 4  # more only wait for the GIL; tokenising itself is parallel
_POLL_S = 0.1

Placed = tuple[str, Preference]
"""A row with the fold that holds it."""


class Progress(NamedTuple):
    """Progress of a build: totals so far, including shards kept from a stopped build."""

    rows: int
    tokens: int


_FOLDS = Folds()


def build(
    preferences: Iterable[Preference],
    out: str | Path,
    template: Template,
    *,
    folds: Folds = _FOLDS,
    held_out: Iterable[Preference] = (),
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Store:
    """Tokenise preferences into a new store; the folder appears whole or not at all.

    Rows whose answers are equal or empty once they are encoded and cut to the window are left out and counted in the
    manifest.

    The store is built in ``OUT.partial``. A build that fails or is killed leaves its finished shards there, and the
    next build into the same folder keeps those of the same rows and settings. Memory is bounded by the text of
    `workers` + 1 shards and, for each worker and fold, the tokens of a record batch.

    Args:
        preferences: the rows, for example from `pit.data.readers.read_preferences`.
        out: folder to make; it must be absent or empty.
        template: tokenizer and windows.
        folds: the rule that assigns rows to folds.
        held_out: more rows, all for the fold "eval".
        workers: shards built at the same time; None for one per core, at most 4. The store does not depend on it.
        progress: called from time to time, in the caller's thread, with the totals so far.

    Raises:
        DataError: `out` is not empty, another build writes it, or there are no usable rows.
        OSError: `out` cannot be written.
    """
    out = Path(out)
    require_absent_or_empty(out)
    with _locked_folder(out) as folder:
        job = _Job(folder, template, folds)
        placed = itertools.chain(((folds.of(row.prompt), row) for row in preferences), (("eval", r) for r in held_out))
        shards = _make_shards(job, placed, workers or min(os.cpu_count() or 1, _MOST_WORKERS), progress)
        if not any(shard["rows"] for shard in shards):
            dropped = ", ".join(f"{count} rows with {reason}" for reason, count in _dropped(shards).items())
            raise DataError(f"{out}: no preferences to store{f' ({dropped})' if dropped else ''}; give usable rows")
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
    folds: Folds
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
            "fold_by": self.folds.by,
            "fold_key": self.folds.key,
            "fold_fractions": dict(self.folds.fractions),
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
    job: _Job, rows: Iterable[Placed], workers: int, progress: Callable[[Progress], None] | None
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
            for index, group in enumerate(_groups(rows, SHARD_ROWS)):
                if len(pending) == workers:
                    take_first()
                pending.append(pool.submit(_make_shard, job, index, group))
            while pending:
                take_first()
        except BaseException:
            job.stop.set()
            raise
    return records


def _make_shard(job: _Job, index: int, rows: Sequence[Placed]) -> dict[str, Any]:
    """Write a shard, unless it is already complete, and return its record."""
    path = job.folder / f"shard-{index:05}.json"
    data = hashlib.blake2b(digest_size=32)
    for fold, row in rows:
        # Without facts the digest is that of stores from before there were any.
        data.update(json.dumps((fold, row if row.facts is not None else row[:4])).encode())
    source = {"data": data.hexdigest(), "settings": digest(job.settings())}
    record = _finished(job, path, source)
    if record is not None:
        job.count(len(rows), record["tokens"])
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
        files = [part for entry in record["folds"].values() for part in parts_of(entry)]
        intact = same and all(file_digest(job.store / part["file"]) == part["blake2b"] for part in files)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return record if intact else None


def _write_shard(job: _Job, index: int, rows: Sequence[Placed]) -> dict[str, Any]:
    files = {name: ShardFile(job.store / f"{name}-{index:05}.arrow") for name in FOLDS}
    tokens, truncated = 0, [0, 0, 0]
    dropped: Counter[str] = Counter()
    try:
        for group in _groups(rows, _TOKENISE_ROWS):
            if job.stop.is_set():
                raise _StoppedError
            folds: dict[str, list[EncodedPreference]] = {name: [] for name in FOLDS}
            sources: dict[str, list[Preference]] = {name: [] for name in FOLDS}
            before = tokens
            every = job.template.encode_rows([row for _, row in group])
            for (name, row), encoded in zip(group, every, strict=True):
                reason = flaw(encoded)
                if encoded is None or reason is not None:
                    dropped[str(reason)] += 1
                    continue
                folds[name].append(encoded)
                sources[name].append(row)
                truncated = [count + cut for count, cut in zip(truncated, encoded.truncated, strict=True)]
                tokens += len(encoded.prompt) + len(encoded.better) + len(encoded.worse)
            for name, encoded_rows in folds.items():
                files[name].add(encoded_rows, sources[name])
            job.count(len(group), tokens - before)
        written = {name: file.finish() for name, file in files.items()}
    finally:
        for file in files.values():
            file.close()
    return {
        "rows": len(rows) - dropped.total(),
        "dropped": dict(dropped),
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
        "dropped": dict(_dropped(shards)),
        "tokens": sum(shard["tokens"] for shard in shards),
        "truncated": dict(zip(COLUMNS, truncated, strict=True)),
        "folds": {
            name: {"rows": sum(batch["rows"] for file in files for batch in file["batches"]), "files": files}
            for name, files in folds.items()
        },
    }
    manifest["hash"] = record_digest(manifest)
    written = {part["file"] for files in folds.values() for file in files for part in parts_of(file)}
    for path in job.store.iterdir():
        if path.name not in written:
            path.unlink()
    write_file(job.store / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _dropped(shards: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Return the number of rows that were left out, by reason."""
    return sum((Counter[str](shard["dropped"]) for shard in shards), Counter[str]())


def _groups(rows: Iterable[Placed], size: int) -> Iterator[list[Placed]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, size)):
        yield group
