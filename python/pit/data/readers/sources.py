"""Files of a preference set: which files of a folder are read, and which are not.

Copies, hidden files, other splits and metadata must not be read as training data; whatever looks like data and is not
read is named.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pit.data.errors import DataError
from pit.data.readers.streams import SUFFIXES, kind_of

SPLITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("train", "training"),
        "validation": ("validation", "validate", "valid", "val", "dev", "development"),
        "test": (
            *("test", "tests", "testing", "eval", "evals", "evaluation", "evaluations"),
            *("held out", "hold out", "held outs", "hold outs"),
        ),
    }
)
"""Splits, and the words for them in the names of files and folders and in a column `split`; where a word has a space, a
name may have nothing, or one of space, `_`, `-` and `.`."""

METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that the `datasets` library writes beside data; they hold no rows."""

_SPLIT_OF_WORD = {word.replace(" ", ""): split for split, words in SPLITS.items() for word in words}
_WORDS = "|".join(word.replace(" ", "[ _.-]?") for words in SPLITS.values() for word in words)
_NAMED = re.compile(rf"(?<![a-z])({_WORDS})(?![a-z])")


class Sources(NamedTuple):
    """Files of a set: those to read, sorted, and those that look like data but are not read, with the cause."""

    files: list[Path]
    passed_over: dict[str, str]


def split_of(name: str) -> str | None:
    """Return the split that a name tells by its first word for one, None if it tells none.

    >>> split_of("hh_Test-00000.jsonl"), split_of("train_prefs"), split_of("contest")
    ('test', 'train', None)
    """
    found = _NAMED.search(name.lower())
    return _SPLIT_OF_WORD[re.sub("[ _.-]", "", found.group(1))] if found else None


def label(file: Path, root: Path) -> str:
    """Return the name of a file in reports: relative to the folder that was read."""
    return file.name if file == root else file.relative_to(root).as_posix()


def find_files(root: Path, split: str) -> Sources:
    """Return the data files at `root`, a file or a folder, that may hold the split.

    A folder is searched with its direct subfolders. Names with a leading dot are passed over in silence. If names of
    files or folders tell splits, only files of this split are read.

    Raises:
        DataError: there is no such file or folder, no data file in it, none of the split, a link to nothing, or one
            set in two encodings.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r} is unknown; use one of {list(SPLITS)}")
    if root.is_file():
        if not root.name.endswith(SUFFIXES):
            raise DataError(f"{root}: must end in one of {SUFFIXES}; rename or convert the file")
        return Sources([root], {})
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder; name one with preferences")
    candidates, passed_over = _candidates(root)
    if not candidates:
        raise DataError(f"{root}: no file in it or its subfolders ends in one of {SUFFIXES}; name another folder")
    _require_one_encoding(candidates)
    chosen = _of_split(root, candidates, split, passed_over)
    return Sources(chosen, dict(sorted(passed_over.items())))


def _candidates(root: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the data files, each once, and others that look like data, with the cause."""
    candidates: dict[tuple[int, int], Path] = {}
    passed_over = {}
    for path in sorted(path for pattern in ("*", "*/*", "*/*/*") for path in root.glob(pattern)):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            continue
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path}: links to {path.readlink()}, which is not there; restore it or remove the link")
        if not path.is_file() or not path.name.endswith(SUFFIXES):
            continue
        state = path.stat()
        key = (state.st_dev, state.st_ino)
        cause = _unread(path, parts)
        if cause is None and key in candidates:
            cause = f"the same file as {label(candidates[key], root)}"
        if cause is None:
            candidates[key] = path
        elif cause:
            passed_over[label(path, root)] = cause
    return list(candidates.values()), passed_over


def _unread(path: Path, parts: Sequence[str]) -> str | None:
    """Return why a file with the suffix of data is not read, "" if that need not be said; None if it is read."""
    if path.name in METADATA:
        return ""
    if len(parts) > 2:
        return "deeper than a direct subfolder"
    state = path.parent / "state.json"
    if kind_of(path) == ".arrow" and state.is_file():
        # A folder of `save_to_disk` lists its files; caches of later work may lie beside them.
        try:
            listed = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{state}: not the state of a saved data set ({error!r}); save it again") from error
        return None if path.name in listed else "not listed in state.json"
    return None


def _require_one_encoding(files: Sequence[Path]) -> None:
    """Raise if two files differ in nothing but their suffix: one of them is a copy."""
    by_stem: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        suffix = next(end for end in sorted(SUFFIXES, key=len, reverse=True) if file.name.endswith(end))
        by_stem[file.with_name(file.name.removesuffix(suffix))].append(file)
    for same in by_stem.values():
        if len(same) > 1:
            raise DataError(
                f"{same[0].parent}: {' and '.join(file.name for file in same)} look like one set in two encodings; "
                "keep one of them in the folder, or give them different names"
            )


def _of_split(root: Path, files: Sequence[Path], split: str, passed_over: dict[str, str]) -> list[Path]:
    """Return the files of a split, by the innermost name that tells one; all files if no name does."""
    splits = {file: _split_of_file(file, root) for file in files}
    named = {name for name in splits.values() if name}
    if not named:
        return list(files)
    chosen = [file for file, name in splits.items() if name == split]
    unnamed = [label(file, root) for file, name in splits.items() if name is None]
    if not chosen:
        beside = f"; {unnamed[0]} does not name its split, rename it or read it by itself" if unnamed else ""
        raise DataError(f"{root}: no file for split {split!r}; choose one of {sorted(named)}{beside}")
    passed_over |= dict.fromkeys(unnamed, f"its name tells no split, and {label(chosen[0], root)} tells {split!r}")
    return chosen


def _split_of_file(file: Path, root: Path) -> str | None:
    parts = file.relative_to(root).parts
    return next((split for split in map(split_of, reversed(parts)) if split), None)
