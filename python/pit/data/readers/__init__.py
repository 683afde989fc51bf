"""Read preference data as it is published: HH-RLHF, summarize-from-feedback comparisons, and TRL's columns.

Rows that cannot be used are counted by reason with their first places, never repaired; with `strict` the first one
raises.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from pit.data.errors import DataError
from pit.data.readers import hh, summarize, trl
from pit.data.readers.base import Dirty, ReadReport, Reason, number_column, records
from pit.types import Preference

__all__ = ["FORMATS", "ReadReport", "Reason", "read_preferences"]

FORMATS: Mapping[str, Callable[[Mapping[str, object]], Preference]] = MappingProxyType(
    {"hh": hh.convert, "summarize": summarize.convert, "trl": trl.convert}
)
"""Converters of a raw row, by the name of the format."""

SPLITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}
)
"""Splits, with the words that file names and rows use for them."""

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_PROBED_ROWS = 100


def read_preferences(
    path: str | Path,
    format: str = "auto",
    split: str = "train",
    strict: bool = False,
    difficulty_column: str | None = None,
) -> tuple[Iterator[Preference], ReadReport]:
    """Stream the preferences of a file or folder.

    A folder is searched for .jsonl, .json (one object a line), their .gz and .parquet files, in itself and in its
    folders. Where file names begin with a split's name (``train.jsonl.gz``), those of other splits are passed over; a
    file that mixes splits in a `split` column is filtered by row.

    Args:
        path: a file or folder.
        format: "hh", "summarize", "trl", or "auto" to tell each file's format by its first rows.
        split: "train", "validation" or "test".
        strict: raise on the first row that cannot be used.
        difficulty_column: column with a number for `Preference.difficulty`.

    Returns:
        The preferences, in the order of the sorted file names, and a report that fills while they are read.

    Raises:
        DataError: nothing at `path`, no rows, an unknown format or split, a damaged file, or, when `strict`, a row
            that cannot be used.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f"format={format!r} is unknown; use one of {['auto', *FORMATS]}")
    if split not in SPLITS:
        raise DataError(f"split={split!r} is unknown; use one of {list(SPLITS)}")
    root = Path(path)
    files = _files(root, split)
    report = ReadReport()
    formats = {}
    for file in files:
        found = _detect(file) if format == "auto" else format if any(True for _ in records(file)) else None
        if found is not None:
            formats[file] = found
            report.files[_label(file, root)] = found
    if not formats:
        raise DataError(f"{root}: no rows in {[file.name for file in files]}; name a file or folder that holds some")
    return _read(root, formats, SPLITS[split], strict, difficulty_column, report), report


def _read(
    root: Path,
    formats: Mapping[Path, str],
    split_words: tuple[str, ...],
    strict: bool,
    difficulty: str | None,
    report: ReadReport,
) -> Iterator[Preference]:
    for file, name in formats.items():
        convert = FORMATS[name]
        for number, record in records(file, [difficulty] if difficulty else []):
            if isinstance(record, Mapping) and _of_other_split(record, split_words):
                report.other_split += 1
                continue
            report.rows += 1
            try:
                if isinstance(record, Dirty):
                    raise record
                row = convert(record)
                if difficulty is not None:
                    row = row._replace(difficulty=number_column(record, difficulty))
            except Dirty as dirty:
                if strict:
                    raise DataError(
                        f"{file}:{number}: {dirty}; correct or remove the row, or read without strict"
                    ) from dirty
                report.drop(dirty.reason, f"{_label(file, root)}:{number}")
            else:
                report.kept += 1
                yield row


def _of_other_split(record: Mapping[str, object], words: tuple[str, ...]) -> bool:
    """Whether a row says that it belongs elsewhere; numbered splits ("valid1") count as their word."""
    value = record.get("split")
    return isinstance(value, str) and value.rstrip("0123456789") not in words


def _label(file: Path, root: Path) -> str:
    """The file's name in reports: below the folder that was asked for."""
    return file.name if file == root else file.relative_to(root).as_posix()


def _files(root: Path, split: str) -> list[Path]:
    """The data files under `root` that may hold the split, sorted."""
    if root.is_file():
        if not root.name.endswith(_SUFFIXES):
            raise DataError(f"{root}: files end in one of {_SUFFIXES}; rename or convert this one")
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder")
    candidates = sorted(
        file
        for pattern in ("*", "*/*")
        for file in root.glob(pattern)
        if file.is_file() and file.name.endswith(_SUFFIXES)
    )
    if not candidates:
        raise DataError(f"{root}: holds no file that ends in one of {_SUFFIXES}, nor do its folders")
    named = {file: _split_of(file) for file in candidates}
    if not any(named.values()):
        return candidates
    chosen = [file for file, name in named.items() if name == split]
    if not chosen:
        raise DataError(f"{root}: no file for split {split!r}; there are {sorted({n for n in named.values() if n})}")
    return chosen


def _split_of(file: Path) -> str | None:
    """The split that a file name begins with, if any."""
    for split, words in SPLITS.items():
        if re.match(rf"(?:{'|'.join(words)})(?![a-z])", file.name):
            return split
    return None


def _detect(file: Path) -> str | None:
    """The format that most of the first rows have; None for a file without rows.

    Raises:
        DataError: no row has a known format.
    """
    votes: Counter[str] = Counter()
    columns: set[str] = set()
    rows = 0
    for _, record in itertools.islice(records(file), _PROBED_ROWS):
        rows += 1
        if isinstance(record, Mapping):
            columns |= set(record)
            name = _format_of(record)
            votes.update([name] if name else [])
    if rows and not votes:
        raise DataError(
            f"{file}: unknown format, its first {rows} rows have the columns {sorted(columns)[:12]}; known are 'hh' "
            "(chosen, rejected as transcripts), 'summarize' (info, summaries, choice) and 'trl' ([prompt,] chosen, "
            "rejected)"
        )
    return votes.most_common(1)[0][0] if votes else None


def _format_of(record: Mapping[str, object]) -> str | None:
    if {"info", "summaries", "choice"} <= set(record):
        return "summarize"
    if not {"chosen", "rejected"} <= set(record):
        return None
    transcript = any(
        isinstance(record[name], str) and str(record[name]).startswith(hh.HUMAN) for name in ("chosen", "rejected")
    )
    return "hh" if transcript and record.get("prompt") is None else "trl"
