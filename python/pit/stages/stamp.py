"""The stamp of a preparation, RUN/prepared.json: what tokenizer and store were made of, and which ones they were.

It vouches for exactly the bytes that were read. Once a stage has been trained, a difference is refused instead of
making the data again in place.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pit.config import RunConfig, digest
from pit.data.chat import ChatTemplate
from pit.data.errors import DataError
from pit.data.readers import find_files, label
from pit.data.store import VERSION, Store
from pit.data.store.format import file_digest
from pit.run.folder import Run

STAMP = "prepared.json"
"""Name of the stamp in the folder of a run."""

RULES = 2
"""Version of the rules by which raw rows become stored rows; another one makes another store."""


def made_of(config: RunConfig, source: Path, chat: ChatTemplate | None) -> dict[str, Any]:
    """Return what the store depends on: settings, and the digest of every file that is opened, links followed."""
    splits = ["train", *([config.data.eval_split] if config.data.eval_split else [])]
    files = {file for split in splits for file in find_files(source, split).files}
    path = config.tokenizer.path
    return {
        "rules": [RULES, VERSION],
        "settings": digest(config.data, config.tokenizer, config.windows, config.seed),
        "files": {label(file, source): file_digest(file) for file in sorted(files)},
        "tokenizer": None if path is None else {path: _digest_of(Path(path))},
        "chat": None if chat is None else [chat.tokenizer.hash, chat.format.hash],
    }


def _digest_of(tokenizer: Path) -> str:
    if not tokenizer.is_file():
        raise DataError(f"{tokenizer}: no such tokenizer file; set tokenizer.path to a tokenizer.json")
    return file_digest(tokenizer)


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """Return the record of a preparation; None without one, or if it is one of another version."""
    path = folder / STAMP
    if not path.is_file():
        return None
    try:
        stamp: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return stamp if _complete(stamp) else None


def _complete(stamp: Any) -> bool:
    """Return whether a stamp has all that is read of it."""
    if not isinstance(stamp, dict) or not {"made_of", "template", "store"} <= set(stamp):
        return False
    made_of = stamp["made_of"]
    parts = isinstance(made_of, dict) and {"rules", "settings", "files", "tokenizer", "chat"} <= set(made_of)
    return parts and isinstance(made_of["files"], dict)


def holds(stamp: Mapping[str, Any], run: Run) -> bool:
    """Return whether tokenizer, chat format and store are there, and those that the stamp vouches for."""
    # Not the template of `run` itself, which may have been loaded before the files changed.
    there = Run(run.folder, run.config)
    try:
        template = there.template.hash
        store = Store.open(run.folder / "store", template).hash
    except DataError:
        return False
    return (template, store) == (stamp["template"], stamp["store"])


def trained_stages(folder: Path) -> list[str]:
    """Return the names of the stages that have results in the folder: a record, or checkpoints."""
    stages = sorted((folder / "stages").glob("*")) if (folder / "stages").is_dir() else []
    return [stage.name for stage in stages if (stage / "done.json").is_file() or any((stage / "checkpoints").glob("*"))]


def require_same(run: Run, stamp: Mapping[str, Any] | None, made_of: Mapping[str, Any], trained: Sequence[str]) -> None:
    """Raise unless the run's stages were trained on data, tokenizer and rules that are those of now.

    Raises:
        DataError: they differ, or nothing says what the stages were trained on.
    """
    other = "train on them in another folder: --out OTHER"
    if stamp is None:
        raise DataError(
            f"{run.folder / STAMP}: is missing or of another version of pit, so that nothing says what the stages "
            f"({', '.join(trained)}) were trained on; put it back, or choose another folder: --out OTHER"
        )
    before = stamp["made_of"]
    if before == made_of:
        return
    changed = [_change(name, before["files"], made_of["files"]) for name in {**before["files"], **made_of["files"]}]
    changed = [change for change in changed if change]
    if changed:
        raise DataError(
            f"{run.config.data.path or run.folder / 'data'}: the preferences are not those that {run.folder} was "
            f"trained on ({', '.join(changed[:5])}); put them back, or {other}"
        )
    if before["tokenizer"] != made_of["tokenizer"]:
        raise DataError(
            f"tokenizer.path = {run.config.tokenizer.path}: the file is not the one that {run.folder} was trained "
            f"with; put it back, or {other.replace('on them', 'with it')}"
        )
    if before["chat"] != made_of["chat"]:
        raise DataError(
            f"base.path = {run.config.base.path}: its tokenizer or chat template is not the one that {run.folder} was "
            f"trained with; put it back, or {other.replace('on them', 'with it')}"
        )
    raise DataError(
        f"{run.folder}: its stages were trained on data prepared by other rules, of another version of pit; choose "
        "another folder: --out OTHER"
    )


def _change(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    if name not in before:
        return f"{name} is new"
    if name not in now:
        return f"{name} is gone"
    return f"{name} changed" if before[name] != now[name] else ""


def other_result(run: Run, name: str) -> DataError:
    """Return the error of a file that was lost, and that the same data now make differently."""
    return DataError(
        f"{run.folder / name}: made again from the same data, it is not the one that the stages were trained on, so "
        "another version of pit or of its packages made it; install that version, or choose another folder: --out OTHER"
    )
