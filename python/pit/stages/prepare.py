"""Preparation of the data: preferences, given or synthetic, become a tokenizer and a token store.

A stamp, RUN/prepared.json, records what they are made of. Nothing is replaced once a stage has been trained on them,
and nothing is trained before every empty fold and every dropped row has its reason.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pit.atomic import write_file
from pit.config import ConfigError, FieldError, RunConfig
from pit.data.chat import ChatTemplate
from pit.data.errors import DataError
from pit.data.folds import Folds
from pit.data.packing import rows_needed
from pit.data.readers import ReadReport, Reason, read_preferences
from pit.data.store import Progress, Store, build
from pit.data.survey import Survey
from pit.data.synthetic import write as write_synthetic
from pit.data.template import Template
from pit.data.tokenizer import Tokenizer
from pit.data.usable import DETAILS
from pit.model.token_facts import TOKENIZER
from pit.run.base import chat_of, has_role_tokens
from pit.run.folder import Run
from pit.stages import stamp as stamps
from pit.stages.graph import stages_of
from pit.train.log import make_reporter
from pit.types import FOLDS, Preference


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Report of a preparation.

    report: counts of the rows read and dropped.
    held_out: the same of the evaluation split, None where the data's own rows are folded.
    folds: stored rows by fold.
    cut: for each column the stored rows in which a window cut it.
    unusable: pairs that could not be used once read, by reason.
    notes: further things to know, a line each.
    """

    report: ReadReport
    held_out: ReadReport | None
    folds: dict[str, int]
    cut: dict[str, int]
    unusable: dict[str, int]
    notes: tuple[str, ...]

    @property
    def stored(self) -> int:
        """Number of rows in the store."""
        return sum(self.folds.values())

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        report = self.report
        dropped = report.dropped.total() + sum(self.unusable.values())
        read = f"{report.rows:,} rows read, {self.stored:,} pairs kept, {dropped:,} dropped"
        if self.held_out is not None:
            read += f"; {self.held_out.rows:,} rows of the evaluation split"
        lines = [read, ", ".join(f"{name} {count:,}" for name, count in self.folds.items())]
        cut = [f"{_NAMES[name]} {count:,}" for name, count in self.cut.items() if count]
        lines += [f"cut to their windows: {', '.join(cut)}"] if cut else []
        empty = [name for name, count in self.folds.items() if not count]
        lines += [f"note: fold {' and '.join(empty)} is empty; no stage that reads it can work"] if empty else []
        return [*lines, *losses(report, self.held_out, self.unusable), *self.notes]


STORE_FILES = ("*.arrow", "*.difficulty.npy", "*.facts.jsonl")
"""Files of a store besides its manifest."""

_FORGETS = "note: the chat format drops part of an earlier turn: policy and improver share no prefix beyond x"
_NAMES = {"prompt": "prompts", "better": "better answers", "worse": "worse answers"}


def losses(report: ReadReport, held_out: ReadReport | None, unusable: Mapping[str, int]) -> list[str]:
    """Return a line for each reason for which rows are not in the store."""
    lines = report.losses()
    lines += [f"evaluation split: {line}" for line in (held_out.losses() if held_out is not None else [])]
    return lines + [f"dropped {count:,}: {reason}; {DETAILS[Reason(reason)]}" for reason, count in unusable.items()]


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


def prepare(run: Run) -> Prepared | None:
    """Write RUN/config.json, RUN/tokenizer.json and RUN/store, unless they are there and made from the same.

    Data that cannot be used leave the folder as it was.

    A run that starts from a pretrained model takes its tokenizer and chat format, or those that its folder holds.

    Returns:
        Counts of the rows read and dropped, None if nothing had to be done.

    Raises:
        ConfigError: the config names no preferences, the folder belongs to a run with another config, or rows do not
            hold the longest path of the template.
        DataError: the preferences do not exist, cannot be read, or differ from those that a stage of the run was
            trained on; or the chat format cannot be used.
    """
    config, folder = run.config, run.folder
    require_data(config)
    run.require_config()
    chat = chat_template(run)
    source = _source(run)
    made_of = stamps.made_of(config, source, chat)
    stamp, trained = stamps.read_stamp(folder), stamps.trained_stages(folder)
    if stamp is not None and stamp["made_of"] == made_of and stamps.holds(stamp, run):
        return None
    if trained:
        stamps.require_same(run, stamp, made_of, trained)
    rows = _read(run, source)
    template = run.template_of(_tokenizer(config, rows), None) if chat is None else chat
    if trained and stamp is not None and template.hash != stamp["template"]:
        raise stamps.other_result(run, "tokenizer.json")
    run.save_config()
    if not trained:
        (folder / stamps.STAMP).unlink(missing_ok=True)  # it vouches for what is replaced now
    if chat is None:
        template.tokenizer.save(folder / "tokenizer.json")
    else:
        run.adopt(chat.tokenizer, chat.format)
    store = _build(run, rows, template)
    if trained and stamp is not None and store.hash != stamp["store"]:
        raise stamps.other_result(run, "store")
    prepared = _report(rows, store, template)
    record = {
        "made_of": made_of,
        "template": template.hash,
        "store": store.hash,
        "report": {**vars(rows.report), "dropped": dict(rows.report.dropped), "unusable": prepared.unusable},
    }
    write_file(folder / stamps.STAMP, (json.dumps(record, indent=2) + "\n").encode())
    return prepared


def chat_template(run: Run) -> ChatTemplate | None:
    """Return the template of the chat format of a run, prepared or not; None in role tokens.

    It is that of the pretrained model, or the one that the folder holds.

    Raises:
        ConfigError: rows do not hold the longest path of the template, or the tokenizer of a model with role tokens
            is not named.
        DataError: the chat format cannot be used.
    """
    held, path = run.format, run.config.tokenizer.path
    if run.pretrained is not None and has_role_tokens(run.pretrained):
        if path is None:
            raise ConfigError(
                f"tokenizer.path = None: base.path = {run.pretrained.path} was exported with PIT's own tokenizer; give "
                f"it with --set tokenizer.path={run.pretrained.path / TOKENIZER}"
            )
        return None
    if run.pretrained is not None:
        tokenizer, format = chat_of(run.pretrained, run.config.template)
        template = run.template_of(tokenizer, run.dated(format))
    elif held is not None:
        template = run.template_of(run.tokenizer, held)
    else:
        return None
    assert isinstance(template, ChatTemplate)
    policy, improver = template.path(referenced=False), template.path(referenced=True)
    run.config.require_paths(policy, improver, "of windows and what the chat format adds")
    return template


def require_folds(run: Run) -> None:
    """Raise unless every fold that the run's stages and its evaluation read has rows.

    Raises:
        DataError: one is empty.
    """
    for name in dict.fromkeys([*(stage.fold for stage in stages_of(run.config)), "eval"]):
        run.fold(name)


def require_rows(run: Run) -> None:
    """Raise unless a group of each stage's packing holds every tree that the windows allow.

    Raises:
        FieldError: a tree needs more rows.
    """
    config, template = run.config, run.template
    for stage in stages_of(config):
        layout = run.layout(stage.settings(config).packing)
        for tree in (stage.topology(config), *stage.scored(config)):
            rows = rows_needed(tree, layout, template.longest)
            if rows > layout.rows:
                rule = (
                    f"a tree {tree.name} whose texts fill the windows needs {rows} rows of {layout.row_length} tokens"
                )
                raise FieldError(f"{stage.section}.packing.rows", layout.rows, rule, f"set {{path}}={rows}")


def require_prompts(run: Run) -> None:
    """Raise if a window cut prompts of a synthetic task, whose oracle reads whole ones.

    Raises:
        FieldError: it did.
    """
    data, cut, window = run.config.data, run.store.manifest["truncated"]["prompt"], run.config.windows.input
    if data.synthetic and cut:
        rule = f"must hold all prompts of the task {data.task}, because its oracle reads them; it cuts {cut:,}"
        raise FieldError("windows.input", window, rule, f"set {{path}}={2 * window}")


class _Rows(NamedTuple):
    """Preferences of a run as they were read."""

    folds: Folds
    training: list[Preference]
    held_out: list[Preference]
    report: ReadReport
    held_out_report: ReadReport | None
    unusable: dict[str, int]
    notes: list[str]


def _source(run: Run) -> Path:
    """Return the preferences to read; synthetic ones are written on first use."""
    data = run.config.data
    if data.path is not None:
        return Path(data.path)
    assert data.task is not None
    folder = run.folder / "data"
    if not folder.exists():
        run.save_config()
        folds = dataclasses.asdict(data.folds)
        write_synthetic(
            folder, data.synthetic_rows, run.config.seed, task=data.task, fractions=folds, key=data.fold_key
        )
    return folder


def _read(run: Run, source: Path) -> _Rows:
    """Read all preferences."""
    config, data = run.config, run.config.data
    folds = Folds(dataclasses.asdict(data.folds), data.fold_key, data.fold_by)
    held_out, held_out_report = _read_split(config, source, data.eval_split) if data.eval_split else ([], None)
    rows, report = _read_split(config, source, "train")
    if held_out_report is not None and held_out_report.files.keys() & report.files.keys() and not report.other_splits:
        raise DataError(
            f"{source}: data.eval_split = {data.eval_split!r}, but neither names of files nor a column 'split' tell "
            "which rows are in it; name files train... and test..., or set data.eval_split=none"
        )
    folds = folds.without("eval") if data.eval_split else folds
    known = {folds.text(row.prompt) for row in held_out}
    training = [row for row in rows if folds.text(row.prompt) not in known]
    unusable = {Reason.HELD_OUT.value: len(rows) - len(training)} if len(training) < len(rows) else {}
    survey = Survey(folds)
    for row in training:
        survey.add(row)
    return _Rows(folds, training, held_out, report, held_out_report, unusable, [*report.notes(), *survey.notes()])


def _read_split(config: RunConfig, source: Path, split: str) -> tuple[list[Preference], ReadReport]:
    data = config.data
    columns = data.named_columns
    rows, report = read_preferences(source, data.format, split, data.strict, data.difficulty_column, columns)
    preferences = list(rows)
    if not preferences:
        raise DataError(
            f"{source}: none of its {report.rows + report.other_split:,} rows can be used ({split} split): "
            f"{'; '.join(report.losses())}"
        )
    for name in columns:
        if all(json.loads(row.facts or "{}").get(name) is None for row in preferences):
            raise DataError(
                f"data.columns = {data.columns!r}: no row of {source} has a column {name!r} ({split} split); correct "
                "the name, or leave it out"
            )
    return preferences, report


def _build(run: Run, rows: _Rows, template: Template) -> Store:
    """Tokenise the rows into RUN/store, in the place of what is there."""
    total = len(rows.training) + len(rows.held_out)
    reporter = make_reporter("data")

    def progress(done: Progress) -> None:
        reporter.update(done.rows, total, f"{done.tokens:,} tokens")

    path = run.folder / "store"
    _remove_store(path)
    store = build(rows.training, path, template, folds=rows.folds, held_out=rows.held_out, progress=progress)
    reporter.close()
    return store


def _report(rows: _Rows, store: Store, template: Template) -> Prepared:
    manifest = store.manifest
    forgets = template.closings.input != template.closings.reviewed
    return Prepared(
        report=rows.report,
        held_out=rows.held_out_report,
        folds={name: manifest["folds"][name]["rows"] for name in FOLDS},
        cut=dict(manifest["truncated"]),
        unusable={**rows.unusable, **manifest["dropped"]},
        notes=(*rows.notes, *([_FORGETS] if forgets else [])),
    )


def _tokenizer(config: RunConfig, rows: _Rows) -> Tokenizer:
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path)
    return Tokenizer.train_bpe(_texts(rows), config.tokenizer.vocab_size)


def _texts(rows: _Rows) -> Iterator[str]:
    """Yield all texts of the sft fold: the tokenizer sees no other fold."""
    of_fold = (row for row in rows.training if rows.folds.of(row.prompt) == "sft")
    return chain.from_iterable((*(turn.content for turn in row.prompt), row.better, row.worse) for row in of_fold)


def _remove_store(store: Path) -> None:
    """Delete a store made from something else: only the files that a store consists of."""
    if store.is_dir():
        for path in [*chain.from_iterable(map(store.glob, STORE_FILES)), store / "manifest.json"]:
            path.unlink(missing_ok=True)
        store.rmdir()
