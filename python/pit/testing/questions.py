"""Questions with several good or bad answers, and their readers: the columns of RewardBench 2 and of RM-Bench.

RewardBench 2 (arXiv 2506.01937) has one good answer against three bad ones, or several good ones; RM-Bench (arXiv
2410.16184) has three good and three bad ones in the same three styles. Both are benchmarks: a check reads them, and
training does not.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pit.data.errors import DataError
from pit.data.readers import SPLITS, ReadReport, Reason, RowError, find_files, label
from pit.data.readers.columns import plain_text, require_prompt, require_unicode, text_column
from pit.data.readers.streams import records
from pit.data.readers.trl import prompt_of
from pit.testing.scorers import Prompt
from pit.types import Preference

STYLES = ("concise", "detailed", "detailed Markdown")
"""Styles of the answers of RM-Bench, in the order of its columns."""

_SUBSETS = ("subset", "domain")
_PROBED_ROWS = 20


class Question(NamedTuple):
    """A prompt with its good and its bad answers.

    good, bad: answers, at least one each.
    subset: part of a benchmark that it belongs to, "" for none.
    styled: whether the good and the bad answers are in `STYLES`, one each, as in RM-Bench.
    """

    prompt: Prompt
    good: tuple[str, ...]
    bad: tuple[str, ...]
    subset: str = ""
    styled: bool = False

    @property
    def better(self) -> str:
        """The first good answer."""
        return self.good[0]

    @property
    def worse(self) -> str:
        """The first bad answer."""
        return self.bad[0]


Row = Preference | Question
"""A row of the data of a check."""


def hold_questions(path: Path) -> bool:
    """Return whether the first rows of a file or folder have lists of texts as `chosen` and `rejected`.

    Raises:
        DataError: there is no data file at the path, or a file is damaged.
    """
    for file in _files(path):
        for number, record in records(file):
            if isinstance(record, Mapping) and all(_texts(record.get(name)) for name in ("chosen", "rejected")):
                return True
            if number >= _PROBED_ROWS:
                break
    return False


def read_questions(path: Path) -> tuple[Iterator[Question], ReadReport]:
    """Stream the questions of a file or folder, of all its splits.

    Returns:
        The questions, and a report that is filled while they are read.

    Raises:
        DataError: there is no data file at the path, or a file is damaged.
    """
    report = ReadReport()
    return _read(path, report), report


def _read(path: Path, report: ReadReport) -> Iterator[Question]:
    for file in _files(path):
        for number, record in records(file, others=_SUBSETS):
            report.rows += 1
            try:
                if isinstance(record, RowError):
                    raise record
                question = question_of(record)
            except RowError as error:
                report.drop(error, f"{label(file, path)}:{number}")
            else:
                report.kept += 1
                yield question


def question_of(record: Mapping[str, object]) -> Question:
    """Return the question of a raw row with the columns `prompt`, `chosen` and `rejected`, and perhaps a subset.

    Raises:
        RowError: a column is missing or of another type, or an answer cannot be used.
    """
    prompt = prompt_of(record)
    if prompt is None:
        text_column(record, "prompt")
    require_prompt(prompt or ())
    good, bad = (_answers(record, name) for name in ("chosen", "rejected"))
    if both := set(good) & set(bad):
        raise RowError(Reason.EQUAL, f"the answer {min(both)[:40]!r} is chosen and rejected")
    subsets = [str(record[name]) for name in _SUBSETS if record.get(name) is not None]
    require_unicode(*subsets, *(message.content for message in prompt or ()))
    styled = "domain" in record and "subset" not in record and len(good) == len(bad) == len(STYLES)
    return Question(prompt or (), good, bad, subsets[0] if subsets else "", styled)


def _answers(record: Mapping[str, object], name: str) -> tuple[str, ...]:
    values = record.get(name)
    if not isinstance(values, list) or not values:
        raise RowError(Reason.TYPE, f"{name!r} is {type(values).__name__}, not a list of at least one text")
    texts = tuple(plain_text(value, f"{name}[{index}]").strip() for index, value in enumerate(values))
    if not all(texts):
        raise RowError(Reason.EMPTY_ANSWER, f"{name}[{texts.index('')}] has no text")
    require_unicode(*texts)
    return texts


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _files(path: Path) -> list[Path]:
    """Return the data files of every split at a path."""
    files: dict[Path, None] = {}
    errors = []
    for split in SPLITS:
        try:
            files |= dict.fromkeys(find_files(path, split).files)
        except DataError as error:
            errors.append(error)
    if not files:
        raise errors[0]
    return list(files)
