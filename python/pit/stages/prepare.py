"""Preparation of the data: preferences, given or synthetic, become a tokenizer and a token store."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from pit.config import ConfigError, RunConfig, digest
from pit.data.atomic import write_file
from pit.data.errors import DataError
from pit.data.folds import fold_of
from pit.data.readers import ReadReport, read_preferences
from pit.data.store import VERSION, Progress, build
from pit.data.synthetic import write as write_synthetic
from pit.data.tokenizer import Tokenizer
from pit.run.folder import Run
from pit.train.log import make_reporter
from pit.types import Preference


def require_data(config: RunConfig) -> None:
    """Raise unless the config names preferences that exist, or a synthetic task.

    Raises:
        ConfigError: it names neither.
        DataError: there is no such file or folder.
    """
    path = config.data.path
    if path is None and config.data.task is None:
        raise ConfigError(f"data.path = None: recipe {config.name} needs preferences; give them with --data FOLDER")
    if path is not None and not Path(path).exists():
        raise DataError(f"{path}: there is no such file or folder; give the preferences with --data FOLDER")


def prepare(run: Run) -> ReadReport | None:
    """Write RUN/tokenizer.json and RUN/store, unless they exist and are made from the same data and config.

    A folder that holds the chat format of a pretrained model holds its tokenizer too (`Run.adopt`), which is used.

    Returns:
        Counts of the rows read and dropped, None if nothing had to be done.

    Raises:
        ConfigError: the config names no preferences, or its rows do not hold the longest path of the template.
        DataError: they do not exist or cannot be read, or the template refuses one.
    """
    config, folder = run.config, run.folder
    require_data(config)
    source = _source(run)
    stamp, wanted = folder / "prepared.json", _fingerprint(run, source)
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8"))["fingerprint"] == wanted:
        return None
    reporter = make_reporter("data")
    rows, report = read_preferences(
        source,
        format=config.data.format,
        strict=config.data.strict,
        difficulty_column=config.data.difficulty_column,
    )
    preferences = list(rows)
    fractions = dataclasses.asdict(config.data.folds)
    if not run.has_format:
        tokenizer = _tokenizer(config, lambda: _texts(preferences, fractions, config.data.fold_key))
        tokenizer.save(folder / "tokenizer.json")
    # Not the template of `run` itself, which may have been loaded before there was this tokenizer.
    template = Run(folder, config).template
    policy, improver = template.path(referenced=False), template.path(referenced=True)
    config.require_paths(policy, improver, "of windows and what the chat format adds")
    if template.closings.input != template.closings.reviewed:
        reporter.note("the chat format drops part of an earlier turn: policy and improver share no prefix beyond x")
    _remove_store(folder / "store")

    def progress(done: Progress) -> None:
        reporter.update(done.rows, len(preferences), f"{done.tokens:,} tokens")

    build(preferences, folder / "store", template, fractions=fractions, key=config.data.fold_key, progress=progress)
    reporter.close()
    record = {"fingerprint": wanted, "report": {**vars(report), "dropped": dict(report.dropped)}}
    write_file(stamp, (json.dumps(record, indent=2) + "\n").encode())
    return report


def _source(run: Run) -> Path:
    """Return the preferences to read; synthetic ones are written on first use."""
    data = run.config.data
    if data.path is not None:
        return Path(data.path)
    assert data.task is not None
    folder = run.folder / "data"
    if not folder.exists():
        write_synthetic(folder, data.synthetic_rows, run.config.seed, task=data.task)
    return folder


def _fingerprint(run: Run, source: Path) -> str:
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    facts = [[str(p.relative_to(source)), p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.is_file()]
    config, formats = run.config, [run.template.hash] if run.has_format else []
    return digest(config.data, config.tokenizer, config.windows, config.seed, facts, VERSION, *formats)


def _tokenizer(config: RunConfig, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path)
    return Tokenizer.train_bpe(texts(), config.tokenizer.vocab_size)


def _texts(preferences: list[Preference], fractions: dict[str, float], key: str) -> Iterator[str]:
    """Yield all texts of the sft fold: the tokenizer sees no other fold."""
    of_fold = (p for p in preferences if fold_of(p.prompt, fractions, key) == "sft")
    return chain.from_iterable((*(m.content for m in p.prompt), p.better, p.worse) for p in of_fold)


def _remove_store(store: Path) -> None:
    """Delete a store made from something else: only the files that a store consists of."""
    if store.is_dir():
        for path in [*store.glob("*.arrow"), store / "manifest.json"]:
            path.unlink(missing_ok=True)
        store.rmdir()
