"""Streams of raw rows from files: JSON lines, JSON arrays, CSV, Parquet, and the Arrow files of `save_to_disk`."""

import contextlib
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet

from pit.data.errors import DataError
from pit.data.readers.columns import PICTURES, SYSTEMS
from pit.data.readers.report import Reason, RowError
from pit.data.readers.trl import OTHER_NAMES

MAX_LINE_BYTES = 64 * 2**20
"""Longest allowed JSON line; bounds the memory."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".arrow")
"""Names of files that are read end in one of these."""

COLUMNS = (
    *("prompt", "chosen", "rejected", "responses", "scores", "info", "summaries", "choice", "split"),
    *OTHER_NAMES,
    *SYSTEMS,
    *PICTURES,
)
"""Columns that a reader looks at."""

_BATCH_ROWS = 1_024
_HEAD_BYTES = 4_096
_ARROW_FILE = b"ARROW1"
_NO_SPACE = re.compile(r"[^ \t\r\n]")

Record = Mapping[str, object] | RowError
"""A raw row, or the reason why it cannot be read."""


def records(path: Path, more: Sequence[str] = (), others: Sequence[str] = ()) -> Iterator[tuple[int, Record]]:
    """Yield the line (of CSV and binary files the row) number, from 1, and the raw row.

    A row that cannot be read is yielded as a `RowError`.

    Args:
        path: the file.
        more: columns of numbers to read in addition to `COLUMNS`.
        others: columns of any values to read in addition.

    Raises:
        DataError: the file itself is damaged.
    """
    kind = kind_of(path)
    if kind in (".parquet", ".arrow"):
        yield from _arrow_records(path, (*more, *others))
    elif kind == ".csv":
        yield from _csv_records(path, more)
    elif kind == ".json" and _begins_array(path):
        yield from _array_records(path)
    else:
        yield from _json_records(path)


def kind_of(path: Path) -> str:
    """Return the suffix of a data file, without a final .gz; of another file, its last suffix."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def column_names(path: Path) -> list[str]:
    """Return all columns of a CSV, Parquet or Arrow file; none of a JSON file, whose rows name their own.

    Raises:
        DataError: the file is damaged.
    """
    kind = kind_of(path)
    if kind == ".csv":
        with _opened(path) as file, _text(file) as text:
            return next(csv.reader(text), [])
    if kind not in (".parquet", ".arrow"):
        return []
    with _arrow_errors(path, [0]), _table(path) as (schema, _):
        return list(schema.names)


def _json_records(path: Path) -> Iterator[tuple[int, Record]]:
    for number, line in _lines(path):
        if not line.isspace():
            yield number, parsed(line)


def parsed(line: bytes) -> Record:
    """Return the object on a line of JSON, or the reason why there is none."""
    try:
        return _object(_STRICT.decode(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return RowError(Reason.UTF8, f"byte {error.start} of the line: {error.reason}")
    except RowError as error:
        return error
    except (ValueError, RecursionError) as error:
        return RowError(Reason.JSON, str(error))


def _array_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield the items of a file that holds one JSON array; their numbers are places in it."""
    number, place = 0, 0
    try:
        with _opened(path) as file:
            text = file.read().decode("utf-8-sig")
        place = text.index("[")
        while text[place] != "]":
            place = _after_space(text, place + 1)
            if text[place] == "]" and number == 0:
                break
            number += 1
            try:
                value, end = _STRICT.raw_decode(text, place)
            except RowError as error:
                value, end = error, _LAX.raw_decode(text, place)[1]
            yield number, value if isinstance(value, RowError) else _object(value)
            place = _after_space(text, end)
            if text[place] not in ",]":
                raise ValueError(f"expected a comma at character {place}")
        if _after_space(text, place + 1) < len(text):
            raise ValueError(f"more text after the array, at character {place + 1}")
    except (ValueError, IndexError, RecursionError) as error:
        cause = "it ends too early" if isinstance(error, IndexError) else str(error)
        raise DataError(
            f"{path}: not a JSON array after item {number} ({cause}); write it again, or one object per line"
        ) from error


def _after_space(text: str, place: int) -> int:
    """Return the place of the next character that is not white space."""
    found = _NO_SPACE.search(text, place)
    return found.start() if found else len(text)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object of some pairs.

    Raises:
        RowError: a key occurs twice; which of the values counts would be a guess.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        key = next(name for name in names if names.count(name) > 1)
        raise RowError(Reason.DOUBLED, f"the key {key!r} occurs twice in one object; keep one of them")
    return content


def _finite(text: str) -> float:
    """Return a number of JSON, which has neither infinity nor NaN.

    Raises:
        RowError: it is none, or too large for a float.
    """
    number = float(text)
    if not math.isfinite(number):
        raise RowError(Reason.JSON, f"the number {text[:40]} is not finite, which JSON cannot say; write it as text")
    return number


def _whole(text: str) -> int:
    """Return a whole number.

    Raises:
        RowError: it has more digits than Python reads.
    """
    try:
        return int(text)
    except ValueError as error:
        rule = f"a number has {len(text):,} digits, more than can be read; write it as text"
        raise RowError(Reason.JSON, rule) from error


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_int=_whole, parse_constant=_finite)
_LAX = json.JSONDecoder(parse_int=str)


def _object(value: object) -> Record:
    return value if isinstance(value, dict) else RowError(Reason.OBJECT, f"the row is a {type(value).__name__}")


def _begins_array(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(_HEAD_BYTES).decode("utf-8-sig", "replace").lstrip().startswith("[")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    done = [0]
    with _opened(path, done) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            done[0] += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}:{done[0]}: a line of more than {MAX_LINE_BYTES} bytes; write one row per line")
            yield done[0], line


@contextlib.contextmanager
def _opened(path: Path, done: Sequence[int] = (0,)) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if it is a .gz; `done` counts the lines that were read of it.

    Raises:
        DataError: its gzip stream is damaged.
    """
    with cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}: the gzip stream is damaged or truncated after line {done[0]} ({error}); download the file "
                "again"
            ) from error


def _text(file: Any) -> io.TextIOWrapper:
    """Return a file as CSV text; bytes that are not UTF-8 become lone surrogates, which no row may hold."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv_records(path: Path, more: Sequence[str]) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    done = [0]
    try:
        with _opened(path, done) as file, _text(file) as text:
            rows = csv.reader(text, strict=True)
            header = next(rows, [])
            _require_unique(path, header)
            for row in filter(None, rows):
                done[0] += 1
                if len(row) != len(header):
                    detail = f"{len(row)} fields under {len(header)} columns; quote fields that hold commas"
                    yield done[0], RowError(Reason.FIELDS, detail)
                else:
                    yield done[0], _typed(dict(zip(header, row, strict=True)), more)
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV after row {done[0]} ({error}); write the file again") from error


def _typed(record: dict[str, str], more: Sequence[str]) -> dict[str, object]:
    """Return a row of CSV, which holds only text: an empty field is null, columns of numbers become numbers."""
    typed: dict[str, object] = {name: value or None for name, value in record.items()}
    for name in more:
        with contextlib.suppress(ValueError):
            typed |= {name: float(record[name])} if name in record else {}
    return typed


def _require_unique(path: Path, names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"{path}: more than one column is named {doubled[0]!r}; keep one of them")


def _arrow_records(path: Path, more: Sequence[str]) -> Iterator[tuple[int, Record]]:
    done = [0]
    with _arrow_errors(path, done), _table(path) as (schema, batches):
        _require_unique(path, schema.names)
        for batch in batches([name for name in (*COLUMNS, *more) if name in schema.names]):
            if kind_of(path) == ".arrow":
                batch.validate(full=True)  # Offsets of a damaged file may lie anywhere in memory.
            for record in _rows_of(batch):
                done[0] += 1
                yield done[0], record


@contextlib.contextmanager
def _arrow_errors(path: Path, done: Sequence[int]) -> Iterator[None]:
    kind = "Parquet" if kind_of(path) == ".parquet" else "Arrow"
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable {kind} file after row {done[0]} ({reason}); write it again") from error


@contextlib.contextmanager
def _table(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the schema of a binary file, and a function that returns the record batches of some columns."""
    if kind_of(path) == ".parquet":
        with pa.parquet.ParquetFile(path) as file:
            yield file.schema_arrow, lambda names: file.iter_batches(_BATCH_ROWS, columns=names)
        return
    with pa.memory_map(str(path)) as source:
        magic = source.read(len(_ARROW_FILE))
        source.seek(0)
        if magic == _ARROW_FILE:
            table = pa.ipc.open_file(source)
            batches = (table.get_batch(index) for index in range(table.num_record_batches))
        else:
            batches = table = pa.ipc.open_stream(source)
        yield table.schema, lambda names: (part for batch in batches for part in _parts(batch.select(names)))


def _parts(batch: Any) -> Iterator[Any]:
    for first in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.slice(first, _BATCH_ROWS)


def _rows_of(batch: Any) -> Iterator[Record]:
    """Yield the rows of a record batch; invalid UTF-8 costs only its own row."""
    with contextlib.suppress(UnicodeDecodeError):
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        try:
            record: Record = batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            record = RowError(Reason.UTF8, str(error))
        yield record
