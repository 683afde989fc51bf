"""The file of one shard and fold of a store: record batches of token lists, difficulty and facts of the rows."""

import io
import itertools
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pit.atomic import naming, write_file
from pit.data.store.format import BATCH_ROWS, SCHEMA, file_digest
from pit.data.template import EncodedPreference
from pit.types import COLUMNS, Preference


class ShardFile:
    """The file of one shard and fold; it is created when its first record batch is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink: Any = None
        self._writer: Any = None
        self._pending: list[list[_Rows]] = []
        self._pending_rows = 0
        self._batches: list[dict[str, int]] = []
        self._difficulty: list[float] = []
        self._facts: list[str | None] = []

    def add(self, rows: Sequence[EncodedPreference], sources: Sequence[Preference]) -> None:
        """Append rows, each with the preference that it encodes, for its difficulty and its facts."""
        self._difficulty.extend(math.nan if row.difficulty is None else row.difficulty for row in sources)
        self._facts.extend(row.facts for row in sources)
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
        with naming(self._path):
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
            **self._finish_facts(),
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

    def _finish_facts(self) -> dict[str, Any]:
        """Write the facts of the rows, a line each, to a file of their own, if the data give any; return its entry."""
        if None in self._facts:
            return {}
        path = self._path.with_suffix(".facts.jsonl")
        write_file(path, "".join(f"{facts}\n" for facts in self._facts).encode())
        return {"facts": {"file": path.name, "blake2b": file_digest(path)}}

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._sink is not None and not self._sink.closed:
            with naming(self._path):
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
        with naming(self._path):
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
