"""Readers of published preference data: HH-RLHF, summarize-from-feedback comparisons, and TRL's columns.

Unusable rows are never repaired: they are counted by reason, with their first places, or raise if `strict`.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from pit.data.errors import DataError
from pit.data.readers import hh, summarize, trl
from pit.data.readers.base import ReadReport, Reason, RowError, number_column, records
from pit.types import Preference

__all__ = ["FORMATS", "ReadReport", "Reason", "read_preferences"]

FORMATS: Mapping[str, Callable[[Mapping[str, object]], Preference]] = MappingProxyType(
    {"hh": hh.convert, "summarize": summarize.convert, "trl": trl.convert}
)
"""Converter of a raw row to a preference, by format."""

SPLITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}
)
"""Splits, and the words for them in file names and rows."""

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

    In a folder and its direct subfolders, .jsonl, .json (one object per line), their .gz and .parquet files are read.
    If file names begin with the name of a split (``train.jsonl.gz``), files of other splits are skipped; a file with a
    `split` column is filtered by row.

    Args:
        path: a file or folder.
        format: "hh", "summarize", "trl", or "auto" to detect the format of each file from its first rows.
        split: "train", "validation" or "test".
        strict: raise at the first unusable row.
        difficulty_column: numeric column for `Preference.difficulty`; None reads no difficulty.

    Returns:
        The preferences in the order of the sorted file names, and a report that is filled while they are read.

    Raises:
        DataError: nothing at `path`, no rows, an unknown format or split, a damaged file, or, if `strict`, an unusable
            row.
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
        name = _detect(file) if format == "auto" else format if any(True for _ in records(file)) else None
        if name is not None:
            formats[file] = name
            report.files[_label(file, root)] = name
    if not formats:
        raise DataError(f"{root}: no rows in {[file.name for file in files]}; name a file or folder with rows")
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
                if isinstance(record, RowError):
                    raise record
                row = convert(record)
                if difficulty is not None:
                    row = row._replace(difficulty=number_column(record, difficulty))
            except RowError as error:
                if strict:
                    raise DataError(
                        f"{file}:{number}: {error}; correct or remove the row, or read without strict"
                    ) from error
                report.drop(error.reason, f"{_label(file, root)}:{number}")
            else:
                report.kept += 1
                yield row


def _of_other_split(record: Mapping[str, object], words: tuple[str, ...]) -> bool:
    """Return whether a row belongs to another split; a number at the end ("valid1") is ignored."""
    value = record.get("split")
    return isinstance(value, str) and value.rstrip("0123456789") not in words


def _label(file: Path, root: Path) -> str:
    """Return the name of a file in reports: relative to the folder that was read."""
    return file.name if file == root else file.relative_to(root).as_posix()


def _files(root: Path, split: str) -> list[Path]:
    """Return the data files under `root` that may hold the split, sorted."""
    if root.is_file():
        if not root.name.endswith(_SUFFIXES):
            raise DataError(f"{root}: must end in one of {_SUFFIXES}; rename or convert the file")
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder; name one with preferences")
    candidates = sorted(
        file
        for pattern in ("*", "*/*")
        for file in root.glob(pattern)
        if file.is_file() and file.name.endswith(_SUFFIXES)
    )
    if not candidates:
        raise DataError(f"{root}: no file in it or its subfolders ends in one of {_SUFFIXES}; name another folder")
    named = {file: _split_of(file) for file in candidates}
    if not any(named.values()):
        return candidates
    chosen = [file for file, name in named.items() if name == split]
    if not chosen:
        raise DataError(
            f"{root}: no file for split {split!r}; choose one of {sorted({name for name in named.values() if name})}"
        )
    return chosen


def _split_of(file: Path) -> str | None:
    """Return the split with whose name a file name begins, if any."""
    for split, words in SPLITS.items():
        if re.match(rf"(?:{'|'.join(words)})(?![a-z])", file.name):
            return split
    return None


def _detect(file: Path) -> str | None:
    """Return the most frequent format of the first rows; None for a file without rows.

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
            f"{file}: unknown format, its first {rows} rows have the columns {sorted(columns)[:12]}; convert it to "
            "'hh' (chosen, rejected as transcripts), 'summarize' (info, summaries, choice) or 'trl' ([prompt,] chosen, "
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
