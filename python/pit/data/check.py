"""Reports about data before training: counts, lengths, length bias, repeats and folds of a preference set, and the
contents of a token store.
"""

import dataclasses
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pit.data.folds import Folds
from pit.data.readers import read_preferences
from pit.data.store import Store
from pit.data.survey import Survey
from pit.data.template import Template
from pit.data.tokenizer import Tokenizer
from pit.data.usable import flaw
from pit.terminal import json_line, printable
from pit.types import COLUMNS, Preference

QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)
"""Quantiles of lengths in a report."""

_GROUP_ROWS = 512
_FOLDS = Folds()


@dataclass(frozen=True)
class CheckReport:
    """Report of `check` about a preference set.

    path, files: the file or folder, and the files read, each with its format.
    passed_over: files that look like data but are not read, each with the cause.
    rows, kept: number of rows read, and of usable rows.
    pairs: number of preferences in the usable rows; a row of scored answers gives several.
    other_split: rows skipped because they belong to another split.
    dropped, places: unusable rows by reason, and the first places of each reason.
    characters: for each column the `QUANTILES` of its length in characters; a prompt counts all its messages.
    tokens: the same in tokens (plus one per message of a prompt), None without a tokenizer.
    cut: for each column the pairs in which the window cuts it, None without a tokenizer.
    unusable: pairs that cannot be used once they are encoded and cut, by reason; None without a tokenizer.
    longer_is_better: share of the pairs of unequal length in which the longer answer is the better one.
    longer_is_better_interval: its 95 % Wilson interval.
    repeated_prompts: pairs whose prompt occurs in an earlier pair.
    turns: largest number of messages in a prompt.
    folds: pairs by fold.
    notes: what is wrong with dropped rows, and further things to know, a line each.
    example: the first pair.
    """

    path: str
    files: dict[str, str]
    passed_over: dict[str, str]
    rows: int
    kept: int
    pairs: int
    other_split: int
    dropped: dict[str, int]
    places: dict[str, list[str]]
    characters: dict[str, tuple[int, ...]]
    tokens: dict[str, tuple[int, ...]] | None
    cut: dict[str, int] | None
    unusable: dict[str, int] | None
    longer_is_better: float
    longer_is_better_interval: tuple[float, float]
    repeated_prompts: int
    turns: int
    folds: dict[str, int]
    notes: tuple[str, ...]
    example: Preference | None

    def to_json(self) -> str:
        """Return the report, without what quotes the data, as indented JSON; undefined numbers are null."""
        content = dataclasses.asdict(dataclasses.replace(self, example=None))
        for name in ("example", "notes"):
            del content[name]
        for name in ("longer_is_better", "longer_is_better_interval"):
            if math.isnan(self.longer_is_better):
                content[name] = None
        return json_line({"quantiles": QUANTILES, **content}, indent=1)

    def render(self, console: Console, example: bool = True) -> None:
        """Print the report; `example` adds the first pair as a tree."""
        console.print(self._counts())
        console.print(self._lengths())
        low, high = self.longer_is_better_interval
        if not math.isnan(self.longer_is_better):
            console.print(
                f"The longer answer is the better one in {self.longer_is_better:.1%} of the pairs "
                f"(95 % interval {low:.1%} to {high:.1%}).",
                highlight=False,
            )
        console.print(f"{self.repeated_prompts} rows repeat a prompt.", highlight=False)
        for note in self.notes:
            console.print(Text(note), soft_wrap=True)
        if example and self.example is not None:
            console.print(Panel(draw_tree(self.example), title="one example as its tree", expand=False))

    def _counts(self) -> Table:
        table = Table("preferences", "rows", "first places", title=Text(f"Preferences in {self.path}"))
        table.add_row("read", str(self.rows), "")
        table.add_row("kept", str(self.kept), "")
        for reason, count in self.dropped.items():
            table.add_row(f"dropped: {reason}", str(count), Text(printable(", ".join(self.places[reason]))))
        for reason, count in (self.unusable or {}).items():
            table.add_row(f"unusable as tokens: {reason}", str(count), "")
        for name, count in (self.cut or {}).items():
            table.add_row(f"cut: {name}", str(count), "")
        if self.other_split:
            table.add_row("of another split", str(self.other_split), "")
        for name, count in self.folds.items():
            table.add_row(f"fold {name}", str(count), "")
        return table

    def _lengths(self) -> Table:
        headings = [f"{share:.0%}" for share in QUANTILES]
        table = Table("length", *headings, title="Quantiles of length")
        for unit, quantiles in (("characters", self.characters), ("tokens", self.tokens or {})):
            for name, values in quantiles.items():
                table.add_row(f"{name} ({unit})", *map(str, values))
        return table


# Seven parameters: those of the reader, and what the rows are looked at with.
def check(
    path: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    strict: bool = False,
    template: Template | None = None,
    folds: Folds = _FOLDS,
) -> CheckReport:
    """Read a whole preference set and report on it.

    Args:
        path: file or folder.
        format: see `pit.data.readers.read_preferences`.
        split: the same.
        strict: the same.
        template: adds lengths in tokens, what its windows cut, and the pairs that cannot be used as tokens.
        folds: the rule that assigns rows to folds.

    Raises:
        DataError: there is nothing to read, a file is damaged, or `strict` and a row is unusable.
    """
    preferences, report = read_preferences(path, format, split, strict)
    characters = {name: array("q") for name in COLUMNS}
    encoded = None if template is None else _Encoded(template)
    survey = Survey(folds)
    turns = 0
    example: Preference | None = None
    for group in _groups(preferences):
        example = example or group[0]
        for row in group:
            for name, length in zip(COLUMNS, _characters(row), strict=True):
                characters[name].append(length)
            survey.add(row)
            turns = max(turns, len(row.prompt))
        if encoded is not None:
            encoded.add(group)
    better, worse = (np.asarray(characters[name]) for name in ("better", "worse"))
    longer = int(np.sum(better > worse))
    unequal = int(np.sum(better != worse))
    return CheckReport(
        path=str(path),
        files=report.files,
        passed_over=report.passed_over,
        rows=report.rows,
        kept=report.kept,
        pairs=report.pairs,
        other_split=report.other_split,
        dropped=dict(report.dropped),
        places=report.places,
        characters={name: _quantiles(lengths) for name, lengths in characters.items()},
        tokens={name: _quantiles(lengths) for name, lengths in encoded.lengths.items()} if encoded else None,
        cut=dict(encoded.cut) if encoded else None,
        unusable=dict(encoded.unusable) if encoded else None,
        longer_is_better=longer / unequal if unequal else math.nan,
        longer_is_better_interval=wilson_interval(longer, unequal),
        repeated_prompts=survey.repeated_prompts,
        turns=turns,
        folds=dict(survey.rows),
        notes=(*report.losses(), *report.notes(), *survey.notes()),
        example=example,
    )


class _Encoded:
    """Figures of preferences as tokens.

    Attributes:
        lengths: tokens of each column, uncut.
        cut: pairs in which the window cuts a column.
        unusable: pairs that cannot be used, by reason.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self.lengths = {name: array("q") for name in COLUMNS}
        self.cut = Counter(dict.fromkeys(COLUMNS, 0))
        self.unusable: Counter[str] = Counter()

    def add(self, group: Sequence[Preference]) -> None:
        """Encode some preferences and count."""
        _count_tokens(group, self._template.tokenizer, self.lengths)
        for row in self._template.encode_rows(group):
            if row is not None:
                self.cut.update(name for name, cut in zip(COLUMNS, row.truncated, strict=True) if cut)
            reason = flaw(row)
            if reason is not None:
                self.unusable[reason.value] += 1


@dataclass(frozen=True)
class StoreReport:
    """Report of `check_store` about a token store.

    path, hash, tokenizer: folder of the store, its digest, and the digest of its tokenizer.
    version: version of the format.
    windows: (input, reference, output), in tokens.
    folds: rows, tokens, files, record batches and bytes of each fold.
    full: whether every byte was verified.
    """

    path: str
    hash: str
    tokenizer: str
    version: int
    windows: tuple[int, int, int]
    folds: dict[str, dict[str, int]]
    full: bool

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        return json_line(dataclasses.asdict(self), indent=1)

    def render(self, console: Console) -> None:
        """Print the report."""
        measures = next(iter(self.folds.values()))
        table = Table("fold", *measures, title=Text(f"Token store {self.path}, format version {self.version}"))
        for name, counts in self.folds.items():
            table.add_row(name, *(f"{count:,}" for count in counts.values()))
        table.add_row("all", *(f"{sum(fold[name] for fold in self.folds.values()):,}" for name in measures))
        console.print(table)
        first, second, third = self.windows
        result = "every byte is as it was written" if self.full else "sizes and offsets fit; --full verifies every byte"
        console.print(
            f"windows {first} + {second} + {third} tokens, tokenizer {self.tokenizer[:12]}, store {self.hash[:12]}: "
            f"{result}",
            highlight=False,
            soft_wrap=True,
        )


def check_store(path: str | Path, full: bool = False) -> StoreReport:
    """Open a token store and report on it.

    Args:
        path: folder of the store.
        full: verify every byte, not only sizes and offsets.

    Raises:
        StoreError: no store, an incomplete one, or a damaged one; the message names the place.
    """
    store = Store.open(path)
    if full:
        store.verify()
    folds = {}
    for name, entry in store.manifest["folds"].items():
        fold, files = store.fold(name), entry["files"]
        folds[name] = {
            "rows": len(fold),
            "tokens": int(fold.lengths().sum(dtype=np.int64)),
            "files": len(files),
            "batches": sum(len(file["batches"]) for file in files),
            "bytes": sum(file["bytes"] for file in files),
        }
    return StoreReport(
        path=str(path),
        hash=store.hash,
        tokenizer=store.manifest["tokenizer"],
        version=store.manifest["version"],
        windows=store.windows,
        folds=folds,
        full=full,
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share; (0, 1) without trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> low, high = wilson_interval(5, 10)
    >>> round(low, 3), round(high, 3)
    (0.237, 0.763)
    """
    if trials == 0:
        return 0.0, 1.0
    z = 1.959964
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def draw_tree(row: Preference, width: int = 60) -> Tree:
    """Return the gap model's tree of a pair: x, under it both answers as references, under each both as outputs."""

    def label(name: str, text: str) -> Text:
        flat = printable(" ".join(text.split()))
        short = flat if len(flat) <= width else f"{flat[: width - 1]}…"
        return Text.assemble((f"{name} ", "bold"), (f"[{len(text)} characters] ", "dim"), short)

    answers = (("better", row.better), ("worse", row.worse))
    prompt = "\n".join(f"{message.role}: {message.content}" for message in row.prompt)
    tree = Tree(label("x", prompt))
    for reference, text in answers:
        branch = tree.add(label(f"reference: {reference}", text))
        for output, other in answers:
            leaf = label(f"output: {output}", other)
            branch.add(Group(leaf, Text(f"  scored as r({output}, {reference})", style="dim")))
    return tree


def _groups(rows: Iterable[Preference]) -> Iterable[list[Preference]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, _GROUP_ROWS)):
        yield group


def _characters(row: Preference) -> tuple[int, int, int]:
    return sum(len(message.content) for message in row.prompt), len(row.better), len(row.worse)


def _count_tokens(group: Sequence[Preference], tokenizer: Tokenizer, tokens: Mapping[str, "array[int]"]) -> None:
    texts = [text for row in group for text in (*(m.content for m in row.prompt), row.better, row.worse)]
    lengths = map(len, tokenizer.encode_batch(texts))
    for row in group:
        tokens["prompt"].append(sum(next(lengths) + 1 for _ in row.prompt))
        tokens["better"].append(next(lengths))
        tokens["worse"].append(next(lengths))


def _quantiles(lengths: "array[int]") -> tuple[int, ...]:
    if not len(lengths):
        return ()
    return tuple(int(value) for value in np.quantile(np.asarray(lengths), QUANTILES, method="inverted_cdf"))
