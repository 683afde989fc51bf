"""Readers of preference data: HH-RLHF, summarize-from-feedback comparisons, TRL's columns, ShareGPT, scored answers.

Unusable rows are never repaired: they are counted by reason, with their first places, or raise if `strict`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pit.data.errors import DataError
from pit.data.readers import hh, scored, sharegpt, summarize, trl
from pit.data.readers.columns import markers, number_column, require_no_pictures, with_system
from pit.data.readers.detect import detect
from pit.data.readers.report import ReadReport, Reason, RowError
from pit.data.readers.sources import SPLITS, find_files, label, split_of
from pit.data.readers.streams import Record, records
from pit.types import Preference

__all__ = ["FORMATS", "SPLITS", "ReadReport", "Reason", "RowError", "find_files", "label", "read_preferences"]

Converter = Callable[[Mapping[str, object], str | None], list[Preference]]
"""Makes preferences of a raw row, with the column of their difficulty; raises `RowError` for an unusable row."""


def _one(convert: Callable[[Mapping[str, object]], Preference]) -> Converter:
    """Return the converter of a format whose rows are one pair each."""

    def converter(record: Mapping[str, object], difficulty: str | None) -> list[Preference]:
        row = convert(record)
        return [row if difficulty is None else row._replace(difficulty=number_column(record, difficulty))]

    return converter


FORMATS: Mapping[str, Converter] = MappingProxyType(
    {
        "hh": _one(hh.convert),
        "summarize": _one(summarize.convert),
        "trl": _one(trl.convert),
        "sharegpt": _one(sharegpt.convert),
        "scored": scored.convert,
    }
)
"""Converter of a raw row to preferences, by format."""


def read_preferences(
    path: str | Path,
    format: str = "auto",
    split: str = "train",
    strict: bool = False,
    difficulty_column: str | None = None,
    columns: Sequence[str] = (),
) -> tuple[Iterator[Preference], ReadReport]:
    """Stream the preferences of a file or folder.

    In a folder and its direct subfolders, JSONL, JSON (an object per line, or one array), CSV, Parquet and the Arrow
    files of `save_to_disk` are read, JSON and CSV also as .gz. If names of files or folders tell splits
    (``train.jsonl.gz``, ``test/rows.csv``), files of other splits are not read; a file with a `split` column is
    filtered by row. Hidden files are passed over.

    Args:
        path: a file or folder.
        format: a name of `FORMATS`, or "auto" to detect the format of each file from its first rows.
        split: "train", "validation" or "test".
        strict: raise at the first unusable row.
        difficulty_column: numeric column for `Preference.difficulty`, negated if the name begins with "-"; None reads
            no difficulty.
        columns: further columns for `Preference.facts`; a row without one has null there.

    Returns:
        The preferences in the order of the sorted file names, and a report that is filled while they are read.

    Raises:
        DataError: nothing at `path`, no rows, an unknown format or split, a damaged
            file, or, if `strict`, an unusable row.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f"format={format!r} is unknown; use one of {['auto', *FORMATS]}")
    root = Path(path)
    sources = find_files(root, split)
    formats = {}
    for file in sources.files:
        name = detect(file) if format == "auto" else format if any(True for _ in records(file)) else None
        if name is not None:
            formats[file] = name
    if not formats:
        raise DataError(f"{root}: no rows in {[file.name for file in sources.files]}; name a file or folder with rows")
    report = ReadReport(passed_over=dict(sources.passed_over))
    report.files |= {label(file, root): name for file, name in formats.items()}
    return _read(root, formats, _Wanted(split, strict, difficulty_column, tuple(columns)), report), report


class _Wanted(NamedTuple):
    """What is read of a file: the arguments of `read_preferences`."""

    split: str
    strict: bool
    difficulty: str | None
    columns: tuple[str, ...]


def _read(root: Path, formats: Mapping[Path, str], wanted: _Wanted, report: ReadReport) -> Iterator[Preference]:
    numbers = [wanted.difficulty.removeprefix("-")] if wanted.difficulty else []
    for file, name in formats.items():
        for number, record in records(file, numbers, wanted.columns):
            if isinstance(record, Mapping) and _of_other_split(record, wanted.split):
                report.other_splits[str(record["split"])] += 1
                continue
            report.rows += 1
            try:
                rows = _pairs(record, FORMATS[name], wanted)
            except RowError as error:
                if wanted.strict:
                    raise DataError(
                        f"{file}:{number}: {error}; correct or remove the row, or read without strict"
                    ) from error
                report.drop(error, f"{label(file, root)}:{number}")
            else:
                report.kept += 1
                for row in rows:
                    report.pairs += 1
                    report.marked.update(markers(row))
                    yield row


def _pairs(record: Record, convert: Converter, wanted: _Wanted) -> list[Preference]:
    """Return the preferences of a raw row, by the rules that hold for all formats.

    Raises:
        RowError: the row cannot be used.
    """
    if isinstance(record, RowError):
        raise record
    if not isinstance(record.get("split"), str | None):
        kind = type(record["split"]).__name__
        raise RowError(Reason.TYPE, f"'split' is {kind}, not text; write train, validation or test, or rename it")
    require_no_pictures(record)
    facts = _facts(record, wanted.columns)
    return [
        row._replace(prompt=with_system(record, row.prompt), facts=facts) for row in convert(record, wanted.difficulty)
    ]


def _facts(record: Mapping[str, object], columns: Sequence[str]) -> str | None:
    """Return some columns of a row as a JSON object; values that JSON has not, such as dates, become text."""
    if not columns:
        return None
    return json.dumps({name: record.get(name) for name in columns}, ensure_ascii=True, default=str)


def _of_other_split(record: Mapping[str, object], split: str) -> bool:
    """Return whether a row's column `split` names another split, or none that is known."""
    value = record.get("split")
    return isinstance(value, str) and split_of(value) != split
