"""Detection of a file's format from its first rows, and what to do about sets that hold no preferences."""

import itertools
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path

from pit.data.errors import DataError
from pit.data.readers import hh
from pit.data.readers.columns import PICTURES
from pit.data.readers.streams import column_names, records

_PROBED_ROWS = 100

_NO_PAIRS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"completion", "label"}),
        "it holds single answers with a label (as for KTO), but a preference needs two answers to one prompt; write a "
        "row with prompt, chosen and rejected for a good and a bad answer to the same prompt",
    ),
    (
        frozenset({"completions"}),
        "it holds several answers per prompt in a form that is unknown; write rows with prompt, responses (a list of "
        "texts) and scores (a list of numbers, higher is better)",
    ),
    (
        frozenset({"messages"}),
        "it holds conversations without a preference; write rows with prompt, chosen and rejected",
    ),
)
"""Columns of sets that hold no pairs, and what they need."""


def detect(file: Path) -> str | None:
    """Return the most frequent format of the first rows; None for a file without rows.

    Raises:
        DataError: no row has a known format, or there are pictures.
    """
    votes: Counter[str] = Counter()
    columns: dict[str, None] = {}
    rows = read = 0
    for _, record in itertools.islice(records(file), _PROBED_ROWS):
        rows += 1
        if isinstance(record, Mapping):
            read += 1
            columns |= dict.fromkeys(str(name) for name, value in record.items() if value or name not in PICTURES)
            name = format_of(record)
            votes.update([name] if name else [])
    names = column_names(file) or sorted(columns)
    pictures = [name for name in PICTURES if name in names]
    if votes and pictures:
        raise DataError(
            f"{file}: has pictures (column {pictures[0]!r}), and answers to a picture make no sense without it; give "
            "a set of texts, or leave the column out if it is empty"
        )
    if votes or not rows:
        return votes.most_common(1)[0][0] if votes else None
    if not read:
        raise DataError(
            f"{file}: unknown format, none of its first {rows} rows is a JSON object; write one per line, or "
            "one array of them in a .json file"
        )
    raise DataError(
        f"{file}: unknown format, its first {rows} rows have the columns {names[:12]}; {_remedy(set(names))}"
    )


def format_of(record: Mapping[str, object]) -> str | None:
    """Return the format of a raw row by its columns, None if they are those of no format."""
    names = set(record)
    if {"info", "summaries", "choice"} <= names:
        return "summarize"
    if {"responses", "scores"} <= names:
        return "scored"
    if not {"chosen", "rejected"} <= names:
        return None
    if "conversations" in names and record.get("prompt") is None:
        return "sharegpt"
    transcript = any(hh.is_transcript(record[name]) for name in ("chosen", "rejected"))
    return "hh" if transcript and record.get("prompt") is None else "trl"


def _remedy(columns: Set[str]) -> str:
    for needed, remedy in _NO_PAIRS:
        if needed <= columns:
            return remedy
    return (
        "convert it to 'hh' (chosen, rejected as transcripts), 'summarize' (info, summaries, choice), 'trl' ([prompt,] "
        "chosen, rejected), 'sharegpt' (conversations, chosen, rejected) or 'scored' (prompt, responses, scores), or "
        "move the file out of the folder"
    )
