"""Shared parts of the preference readers: reasons to drop a row, the report, and streams of raw records from files."""

import contextlib
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet

from pit.data.errors import DataError
from pit.types import Message, Preference, RoleName

MAX_LINE_BYTES = 64 * 2**20
"""Longest allowed JSON line; bounds the memory."""

KEPT_PLACES = 5
"""Number of places reported per reason."""

_PARQUET_ROWS = 1_024
_COLUMNS = ("prompt", "chosen", "rejected", "info", "summaries", "choice", "split")


class Reason(StrEnum):
    """Reason to drop a row."""

    JSON = "bad JSON"
    UTF8 = "bad UTF-8"
    OBJECT = "not an object"
    MISSING = "missing column"
    TYPE = "wrong type"
    TRANSCRIPT = "bad transcript"
    PROMPTS = "prompts differ"
    EQUAL = "equal answers"
    EMPTY_ANSWER = "empty answer"
    EMPTY_PROMPT = "empty prompt"


class RowError(ValueError):
    """A row cannot be used; the message gives the reason and a detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


@dataclass
class ReadReport:
    """Report of a reader; complete once its iterator is exhausted.

    files: the files read, each with its format.
    rows: number of rows read, without blank lines and rows of other splits.
    kept: number of rows yielded.
    other_split: number of rows of a mixed file that belong to another split.
    dropped: number of dropped rows, by reason.
    places: the first few ``file:line`` of each reason; files are relative to the folder that was read.
    """

    files: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    kept: int = 0
    other_split: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: Reason, place: str) -> None:
        """Count a dropped row."""
        self.dropped[reason.value] += 1
        places = self.places.setdefault(reason.value, [])
        if len(places) < KEPT_PLACES:
            places.append(place)


def preference(prompt: tuple[Message, ...], better: str, worse: str) -> Preference:
    """Return a preference with stripped answers.

    Raises:
        RowError: the prompt or an answer is empty, both answers are equal, or a text is not valid Unicode.
    """
    better, worse = better.strip(), worse.strip()
    if not any(message.content.strip() for message in prompt):
        raise RowError(Reason.EMPTY_PROMPT, "no message of the prompt has text")
    if not better or not worse:
        raise RowError(Reason.EMPTY_ANSWER, f"the {'rejected' if better else 'chosen'} answer has no text")
    if better == worse:
        raise RowError(Reason.EQUAL, "both answers are the same text")
    for text in (*(message.content for message in prompt), better, worse):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(Reason.UTF8, f"a lone surrogate at character {error.start}") from error
    return Preference(prompt, better, worse)


def column(record: Mapping[str, object], name: str) -> object:
    """Return the value of a column.

    Raises:
        RowError: the column is missing or null.
    """
    value = record.get(name)
    if value is None:
        raise RowError(Reason.MISSING, f"{name!r} is missing or null; the columns are {sorted(record)}")
    return value


def number_column(record: Mapping[str, object], name: str) -> float:
    """Return the value of a column of finite numbers.

    Raises:
        RowError: it is missing, of another type, or not finite.
    """
    value = column(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(Reason.TYPE, f"{name!r} is {value!r}, not a finite number")
    return float(value)


def text_column(record: Mapping[str, object], name: str) -> str:
    """Return the value of a text column.

    Raises:
        RowError: it is missing or of another type.
    """
    value = column(record, name)
    if not isinstance(value, str):
        raise RowError(Reason.TYPE, f"{name!r} is {type(value).__name__}, not text")
    return value


def messages(value: object, name: str) -> tuple[Message, ...]:
    """Return a list of ``{"role", "content"}`` objects as messages.

    Raises:
        RowError: `value` is anything else; the message calls it `name`.
    """
    if not isinstance(value, list):
        raise RowError(Reason.TYPE, f"{name!r} is {type(value).__name__}, not text or a list of messages")
    conversation = []
    for item in value:
        role = item.get("role") if isinstance(item, dict) else None
        content = item.get("content") if isinstance(item, dict) else None
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise RowError(
                Reason.TYPE,
                f"{name!r} has an item that is not a message with role system, user or assistant and a text as content",
            )
        conversation.append(Message(cast(RoleName, role), content))
    return tuple(conversation)


def is_parquet(path: Path) -> bool:
    """Return whether the name of the file ends in .parquet."""
    return path.suffix == ".parquet"


def records(path: Path, more: Sequence[str] = ()) -> Iterator[tuple[int, Mapping[str, object] | RowError]]:
    """Yield the line (row) number, from 1, and the raw row of a JSONL, JSONL.gz or Parquet file.

    A row that cannot be read is yielded as a `RowError`.

    Args:
        path: the file.
        more: columns to read in addition to those of the formats.

    Raises:
        DataError: the file itself is damaged.
    """
    yield from _parquet_records(path, more) if is_parquet(path) else _json_records(path)


def _json_records(path: Path) -> Iterator[tuple[int, Mapping[str, object] | RowError]]:
    for number, line in _lines(path):
        if line.isspace():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield number, RowError(Reason.UTF8, f"byte {error.start} of the line: {error.reason}")
        except (ValueError, RecursionError) as error:
            yield number, RowError(Reason.JSON, str(error))
        else:
            usable = isinstance(value, dict)
            yield number, value if usable else RowError(Reason.OBJECT, f"the row is a {type(value).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes; write one row per line"
                    )
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip stream is damaged or truncated after line {number} ({error}); download the file again"
        ) from error


def _parquet_records(path: Path, more: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object] | RowError]]:
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            names = [name for name in (*_COLUMNS, *more) if name in file.schema_arrow.names]
            for batch in file.iter_batches(_PARQUET_ROWS, columns=names):
                for record in _rows_of(batch):
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file after row {number} ({error}); write it again") from error


def _rows_of(batch: Any) -> Iterator[Mapping[str, object] | RowError]:
    """Yield the rows of a record batch; invalid UTF-8 costs only its own row."""
    with contextlib.suppress(UnicodeDecodeError):
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        try:
            record: Mapping[str, object] | RowError = batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            record = RowError(Reason.UTF8, str(error))
        yield record
