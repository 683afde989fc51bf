"""Stores for tests: small built ones, and one written directly from the description of the format."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pit.data.store import shard, write
from pit.data.synthetic import generate
from pit.data.template import RoleTemplate
from pit.data.tokenizer import Tokenizer
from pit.types import COLUMNS, FOLDS

_ROWS = []

TOKENIZER = Tokenizer.train_bpe(["describe this red lamp: price and size."], 330)
TEMPLATE = RoleTemplate(TOKENIZER, (16, 12, 12))
SCHEMA = pa.schema([(name, pa.large_list(pa.int32())) for name in COLUMNS])


def rows_of_task(n):
    """Return list(generate(n, 0)); rows are generated once per process."""
    _ROWS.extend(generate(n - len(_ROWS), 0, start=len(_ROWS)))
    return _ROWS[:n]


@contextmanager
def small_shards():
    """Make builds use shards of 40 rows and record batches of 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SHARD_ROWS", 40)
        for module in (write, shard):
            patch.setattr(module, "BATCH_ROWS", 8)
        yield


def contents(store):
    """Return the rows of every fold, as lists."""
    return {name: rows_of(store.fold(name)) for name in FOLDS}


def rows_of(fold):
    return [[column.tolist() for column in fold.row(i)] for i in range(len(fold))]


def checksum(batch):
    """Return the checksum of a record batch in the manifest, by zlib."""
    crc = 0
    for column in batch.columns:
        for array in (column.offsets, column.values):
            crc = zlib.crc32(array.to_numpy(), crc)
    return crc


def digest(content):
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def write_file(path, batches, compression=None):
    """Write an Arrow file of record batches, and return its entry in a manifest."""
    with pa.OSFile(str(path), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(sink, SCHEMA, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)
    content = path.read_bytes()
    return {
        "file": path.name,
        "bytes": len(content),
        "blake2b": digest(content),
        "batches": [{"rows": batch.num_rows, "crc32": checksum(batch)} for batch in batches],
    }


def write_manifest(folder, manifest):
    """Write the manifest with a valid digest."""
    manifest = {name: value for name, value in manifest.items() if name != "hash"}
    manifest["hash"] = digest(json.dumps(manifest, sort_keys=True).encode())
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def write_store(folder, files, vocab_size=1000):
    """Write a store whose fold sft has one file per list of record batches; the other folds are empty."""
    folder.mkdir()
    entries = [write_file(folder / f"sft-{i:05}.arrow", batches) for i, batches in enumerate(files)]
    folds = {name: {"rows": 0, "files": []} for name in FOLDS}
    folds["sft"] = {"rows": sum(b["rows"] for entry in entries for b in entry["batches"]), "files": entries}
    manifest = {
        "format": "pit-token-store",
        "version": 2,
        "tokenizer": "0" * 64,
        "vocab_size": vocab_size,
        "windows": [512, 512, 512],
        "rows": folds["sft"]["rows"],
        "folds": folds,
    }
    write_manifest(folder, manifest)
    return folder


def record_batch(*columns):
    """Return a record batch of token lists."""
    arrays = [pa.array(column, pa.large_list(pa.int32())) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def random_batch(rows, tokens, seed):
    """Return a record batch with `rows` rows and, on average, `tokens` tokens per row and column."""
    rng = np.random.default_rng(seed)
    arrays = []
    for _ in COLUMNS:
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 2 * tokens + 1, rows))])
        values = rng.integers(0, 1000, offsets[-1], dtype=np.int32)
        arrays.append(pa.LargeListArray.from_arrays(offsets, values))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def copy_of(store, folder: Path) -> Path:
    """Copy the folder of a store, and replace an earlier copy."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(store.path, folder)
    return folder


def rewrite(folder, **changes):
    """Change fields of a store's manifest and update its digest."""
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()) | changes)


def environment():
    """Return the environment of a process that imports the same modules as this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def without_privilege(code, *arguments):
    """Run Python code without root's privilege to read and write all files."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("setpriv, which drops the privilege of root, is not installed")
    command = [*drop, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
