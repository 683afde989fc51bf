"""What all preference readers share: reasons to drop a row, the report, and streams of raw records from files."""

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
"""A JSON line longer than this is refused: reading stays within bounded memory."""

KEPT_PLACES = 5
"""Places remembered for each reason."""

_PARQUET_ROWS = 1_024
_COLUMNS = ("prompt", "chosen", "rejected", "info", "summaries", "choice", "split")


class Reason(StrEnum):
    """Why a row is dropped."""

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


class Dirty(ValueError):
    """A row that cannot be used, with the reason and a detail for the reader of the message."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


@dataclass
class ReadReport:
    """What a reader met; complete once its iterator is exhausted.

    files: the files read, each with its format.
    rows: rows seen (blank lines and rows of other splits are not counted).
    kept: rows yielded.
    other_split: rows of a mixed file that belong to another split.
    dropped: rows dropped, by reason.
    places: the first few ``file:line`` of each reason, files named below the folder that was read.
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
    """The cleaned preference: answers lose their outer whitespace.

    Raises:
        Dirty: nothing is asked, an answer is empty, both are equal, or the text is no Unicode.
    """
    better, worse = better.strip(), worse.strip()
    if not any(message.content.strip() for message in prompt):
        raise Dirty(Reason.EMPTY_PROMPT, "no message of the prompt has text")
    if not better or not worse:
        raise Dirty(Reason.EMPTY_ANSWER, f"the {'rejected' if better else 'chosen'} answer has no text")
    if better == worse:
        raise Dirty(Reason.EQUAL, "both answers are the same text")
    for text in (*(message.content for message in prompt), better, worse):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Dirty(Reason.UTF8, f"a lone surrogate at character {error.start}") from error
    return Preference(prompt, better, worse)


def column(record: Mapping[str, object], name: str) -> object:
    """A column of a record.

    Raises:
        Dirty: it is not there, or null.
    """
    value = record.get(name)
    if value is None:
        raise Dirty(Reason.MISSING, f"{name!r} is not among {sorted(record)}")
    return value


def number_column(record: Mapping[str, object], name: str) -> float:
    """A column that holds a finite number.

    Raises:
        Dirty: it is missing, of another type, or not finite.
    """
    value = column(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Dirty(Reason.TYPE, f"{name!r} is {value!r}, not a finite number")
    return float(value)


def text_column(record: Mapping[str, object], name: str) -> str:
    """A column that holds text.

    Raises:
        Dirty: it is missing or of another type.
    """
    value = column(record, name)
    if not isinstance(value, str):
        raise Dirty(Reason.TYPE, f"{name!r} is {type(value).__name__}, not text")
    return value


def messages(value: object, name: str) -> tuple[Message, ...]:
    """A list of ``{"role", "content"}`` objects as messages.

    Raises:
        Dirty: anything else.
    """
    if not isinstance(value, list):
        raise Dirty(Reason.TYPE, f"{name!r} is {type(value).__name__}, not text or a list of messages")
    found = []
    for each in value:
        role = each.get("role") if isinstance(each, dict) else None
        content = each.get("content") if isinstance(each, dict) else None
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise Dirty(
                Reason.TYPE,
                f"{name!r} holds something that is not a message with a role of system, user or assistant and a text "
                "content",
            )
        found.append(Message(cast(RoleName, role), content))
    return tuple(found)


def is_parquet(path: Path) -> bool:
    """Whether the file's name says Parquet."""
    return path.suffix == ".parquet"


def records(path: Path, more: Sequence[str] = ()) -> Iterator[tuple[int, Mapping[str, object] | Dirty]]:
    """The raw rows of a JSONL, JSONL.gz or Parquet file with their line (row) numbers from 1, or why one is unusable.

    Args:
        path: the file.
        more: columns to read beside those of the formats.

    Raises:
        DataError: the file itself is damaged.
    """
    yield from _parquet_records(path, more) if is_parquet(path) else _json_records(path)


def _json_records(path: Path) -> Iterator[tuple[int, Mapping[str, object] | Dirty]]:
    for number, line in _lines(path):
        if line.isspace():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield number, Dirty(Reason.UTF8, f"byte {error.start} of the line: {error.reason}")
        except (ValueError, RecursionError) as error:
            yield number, Dirty(Reason.JSON, str(error))
        else:
            usable = isinstance(value, dict)
            yield number, value if usable else Dirty(Reason.OBJECT, f"the row is a {type(value).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes; is this JSONL?")
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip stream is damaged or cut short after line {number} ({error}); fetch the file again"
        ) from error


def _parquet_records(path: Path, more: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object] | Dirty]]:
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            names = [name for name in (*_COLUMNS, *more) if name in file.schema_arrow.names]
            for batch in file.iter_batches(_PARQUET_ROWS, columns=names):
                for record in _rows_of(batch):
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file after row {number} ({error})") from error


def _rows_of(batch: Any) -> Iterator[Mapping[str, object] | Dirty]:
    """The rows of a record batch; where one holds bad UTF-8 only that row is lost."""
    with contextlib.suppress(UnicodeDecodeError):
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        try:
            record: Mapping[str, object] | Dirty = batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            record = Dirty(Reason.UTF8, str(error))
        yield record
