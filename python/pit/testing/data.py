"""Data for a check, from a file or folder in any format that `pit.data.readers` or `pit.testing.questions` reads.

Unlike `pit data prepare`, a check refuses data without a single pair.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from pit.data.errors import DataError
from pit.data.readers import FORMATS, ReadReport, read_preferences
from pit.testing.errors import CheckError
from pit.testing.questions import Question, Row, hold_questions, read_questions
from pit.types import Preference

SUBSET = "subset"
"""Column of pairs that names the part of a benchmark."""

_MOST_ROWS = 50_000
"""Rows of a benchmark that are read before some are chosen of each subset."""


def read_rows(path: Path, limit: int) -> list[Row]:
    """Read at most `limit` rows from a file or folder: pairs, or questions with several good or bad answers.

    The first pairs are taken; of rows with a subset, about as many of each subset, spread over the file. Subsets take
    turns, so that any number of first rows has about as many of each.

    Raises:
        CheckError: the format is unknown, or no row is a pair.
    """
    try:
        stream, report = _stream(path)
        rows = _chosen(stream, limit)
    except DataError as error:
        raise CheckError(
            f"{error}; a check needs rows with a prompt, a better and a worse answer (formats: {', '.join(FORMATS)}, "
            "and lists of texts as chosen and rejected)"
        ) from error
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise CheckError(
            f"{path}: none of {report.rows} rows is a pair ({reasons}); give rows with a prompt, a better and a worse "
            "answer (columns prompt, chosen, rejected)"
        )
    return rows


def _stream(path: Path) -> tuple[Iterator[Row], ReadReport]:
    if hold_questions(path):
        return read_questions(path)
    stream, report = read_preferences(path, columns=(SUBSET,))
    return map(_with_subset, stream), report


def _with_subset(row: Preference) -> Row:
    """Return a pair that names its subset as a question, and any other pair as it is."""
    subset = json.loads(row.facts or "{}").get(SUBSET)
    row = row._replace(facts=None)
    return row if subset is None else Question(row.prompt, (row.better,), (row.worse,), str(subset))


def _chosen(stream: Iterator[Row], limit: int) -> list[Row]:
    """Return the first rows, or some of each subset, which take turns."""
    rows = list(itertools.islice(stream, limit))
    if not all(isinstance(row, Question) and row.subset for row in rows):
        return rows
    if len(rows) == limit:
        rows += itertools.islice(stream, _MOST_ROWS)
    places: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(row.subset if isinstance(row, Question) else "", []).append(index)
    chosen: list[tuple[int, int]] = []
    for number, of_subset in enumerate(sorted(places.values(), key=len)):
        count = min(len(of_subset), (limit - len(chosen)) // (len(places) - number))
        chosen += [(turn, of_subset[turn * len(of_subset) // count]) for turn in range(count)]
    return [rows[index] for _, index in sorted(chosen)]
