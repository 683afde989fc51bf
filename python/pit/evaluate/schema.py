"""The shape of `results.json`, the one file in which a run says what it measured.

The evaluation writes it, the report and the README's figures read it, and nothing else is needed to check a claim:
every figure has its interval, its count and the versions it was made with. `docs/results.md` describes the file.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pit.errors import PitError
from pit.evaluate.stats import CopyRate, Delta, Interval

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
LENGTH_BASELINE = "length"
"""Name, among the accuracies, of the judge that prefers the longer answer."""
JUDGE = "judge"
"""Name, among the accuracies and as the measure of a delta, of the judge model that no trained model has seen."""
HEADLINES = ("improved_over_policy/oracle", "improved_over_policy/judge")
"""The deltas that answer the question of the whole run; the first one measured is the headline."""
RAW, STOP_RULE = "raw", "stop_rule"
"""The two quality series: every iteration taken, and only those whose gap is over the threshold."""


class ResultsError(PitError):
    """A results file that is missing, malformed or of another version."""


@dataclass(frozen=True)
class QualityPoint:
    """Mean quality of the answers after so many iterations of the improver.

    iteration: 0 is the policy's own answer.
    mean, low, high: in the unit that `Results.quality_measure` names, with a 95 % interval.
    accepted_share: share of prompts whose proposal of this iteration was accepted; None where nothing was decided.
    mean_tokens: mean length of the answers, in tokens.
    """

    iteration: int
    mean: float
    low: float
    high: float
    accepted_share: float | None
    mean_tokens: float


@dataclass(frozen=True)
class SensitivityRow:
    """How often a model notices one kind of difference between two answers, with Wilson's interval; shares 0 to 1."""

    model: str
    aspect: str
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class StageCost:
    """What one stage cost. seconds includes compile_seconds; peak_memory_bytes is None where it is not known."""

    name: str
    seconds: float
    compile_seconds: float
    steps: int
    tokens: int
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class ExampleStep:
    """One answer of an example.

    gap: centred gap of this answer over the one that it was written from; None for the policy's own answer.
    accepted: whether the stop rule took it; None for the policy's own answer.
    quality: what the oracle says of it; None where there is no oracle.
    reference: index of the step that it was written from; None for the policy's own answer.
    """

    text: str
    gap: float | None = None
    accepted: bool | None = None
    quality: float | None = None
    reference: int | None = None


@dataclass(frozen=True)
class Example:
    """One prompt and the answers y_0, y_1, ... to it."""

    prompt: str
    steps: tuple[ExampleStep, ...]


@dataclass(frozen=True)
class Results:
    """Everything a run measured. Raises `ResultsError` for values that contradict each other.

    version: `SCHEMA_VERSION`.
    recipe, dataset, device: names, for the reader.
    seeds: every seed that the figures depend on.
    config_hash, config: the hash of the configuration, and the configuration as plain JSON.
    versions: package name to version.
    delta: "<candidate>_over_<baseline>/<measure>" to win rate minus lose rate, in points; a length-controlled figure
        adds "/length_controlled". `HEADLINES` are the ones that a report opens with.
    quality: series name (`RAW`, `STOP_RULE`, or another improver's) to its points, iterations ascending.
    quality_measure: what the points are, such as "oracle score, 0 to 1".
    accuracies: model name to pair accuracy, 0 to 1; `LENGTH_BASELINE` is among them when any other is.
    sensitivity: accuracies by kind of difference.
    stages: costs, in the order in which the stages ran.
    tokens: what was counted ("policy", "improver", ...) to tokens sampled for it.
    copy_rate: name of a set of outputs to how much of their references they repeat.
    examples: a few, chosen before looking.
    notes: caveats, each a sentence.
    """

    recipe: str
    seeds: tuple[int, ...]
    config_hash: str
    versions: Mapping[str, str]
    delta: Mapping[str, Delta]
    version: int = SCHEMA_VERSION
    dataset: str = ""
    device: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, tuple[QualityPoint, ...]] = field(default_factory=dict)
    quality_measure: str = ""
    accuracies: Mapping[str, Interval] = field(default_factory=dict)
    sensitivity: tuple[SensitivityRow, ...] = ()
    stages: tuple[StageCost, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    copy_rate: Mapping[str, CopyRate] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)


def to_json(results: Results) -> str:
    """The file's text: indented, keys in the order of the dataclasses, every number finite."""
    return json.dumps(_plain(results, ""), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, name: str = FILE_NAME) -> Results:
    """Results from the file's text.

    name: what messages call the file.
    Raises ResultsError for text that is no JSON, another version, a missing, unknown or mistyped field, and values
    that contradict each other; the message starts with `name` and says where.
    """
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultsError(f"{name} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ResultsError(f"{name} must hold a JSON object; got {_kind(raw)}")
    if raw.get("version") != SCHEMA_VERSION:
        raise ResultsError(
            f"{name} has schema version {raw.get('version')!r}, this program reads version {SCHEMA_VERSION}; "
            "run the evaluation again with this program"
        )
    try:
        return typing.cast(Results, _read(Results, raw, ""))
    except ResultsError as error:
        raise ResultsError(f"{name}: {error}") from error


def write_results(results: Results, path: Path) -> None:
    """Writes `results` to `path` (UTF-8)."""
    # Text of a model may hold lone surrogates, which UTF-8 has no bytes for; they stay visible as \\udXXX.
    path.write_text(to_json(results), encoding="utf-8", errors="backslashreplace")


def read_results(path: Path) -> Results:
    """Results from a file, or from `results.json` in a run's folder; raises ResultsError as `from_json` does."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ResultsError(f"no results at {file}; they are written by a run's evaluation, which has to finish first")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{file} is not UTF-8: {error}") from error
    return from_json(text, str(file))


def _check(results: Results) -> None:
    if results.version != SCHEMA_VERSION:
        raise ResultsError(f"version = {results.version} must be {SCHEMA_VERSION}")
    for name, d in results.delta.items():
        where = f"delta[{name!r}]"
        _ordered(where, d.low, d.value, d.high, -100.0, 100.0)
        if min(d.win, d.lose, d.tie) < 0 or d.win + d.lose + d.tie != d.n or d.n < 1:
            raise ResultsError(f"{where}: win {d.win} + lose {d.lose} + tie {d.tie} must be n = {d.n}, at least 1")
    for name, accuracy in results.accuracies.items():
        _ordered(f"accuracies[{name!r}]", accuracy.low, accuracy.value, accuracy.high, 0.0, 1.0)
    if results.accuracies and LENGTH_BASELINE not in results.accuracies:
        raise ResultsError(
            f"accuracies hold {sorted(results.accuracies)} without {LENGTH_BASELINE!r}; report the length baseline "
            "beside them"
        )
    for i, row in enumerate(results.sensitivity):
        _ordered(f"sensitivity[{i}]", row.low, row.accuracy, row.high, 0.0, 1.0)
    for name, points in results.quality.items():
        if [p.iteration for p in points] != sorted({p.iteration for p in points}):
            raise ResultsError(f"quality[{name!r}]: iterations must ascend; got {[p.iteration for p in points]}")
        for i, point in enumerate(points):
            _ordered(f"quality[{name!r}][{i}]", point.low, point.mean, point.high, -math.inf, math.inf)
    for i, example in enumerate(results.examples):
        if not example.steps:
            raise ResultsError(f"examples[{i}] has no steps; it needs the policy's answer at least")
        for k, step in enumerate(example.steps):
            decided = (step.gap, step.accepted, step.reference)
            if k == 0 and decided != (None, None, None):
                raise ResultsError(f"examples[{i}].steps[0]: gap, accepted and reference must be null; got {decided}")
            if k > 0 and (None in decided or not 0 <= typing.cast(int, step.reference) < k):
                raise ResultsError(
                    f"examples[{i}].steps[{k}]: gap, accepted and reference must be set, reference in 0..{k - 1}; "
                    f"got {decided}"
                )


def _ordered(where: str, low: float, value: float, high: float, least: float, most: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and least <= low <= value <= high <= most):
        raise ResultsError(f"{where}: need low <= value <= high, all in [{least}, {most}]; got {low}, {value}, {high}")


def _plain(value: object, where: str) -> object:
    """JSON's own types, with the unit written beside each delta."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(f"{where}: {value} is not finite and JSON has no such number; leave the figure out")
    if isinstance(value, Delta):
        return {**_plain_fields(value._asdict(), where), "unit": "points"}
    if isinstance(value, Interval | CopyRate):
        return _plain_fields(value._asdict(), where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_fields({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, where)
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _plain_fields(fields: dict[str, Any], where: str) -> dict[str, object]:
    return {name: _plain(item, f"{where}.{name}" if where else name) for name, item in fields.items()}


@functools.cache
def _fields(record: type) -> dict[str, tuple[Any, bool]]:
    """Field name to (type, required) of a dataclass or named tuple."""
    hints = typing.get_type_hints(record)
    if dataclasses.is_dataclass(record):
        missing = dataclasses.MISSING
        return {
            f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(record)
        }
    return {name: (hint, True) for name, hint in hints.items()}


def _read(kind: Any, raw: object, where: str) -> Any:
    """`raw` as a value of the annotated type `kind`, or an error that names the place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if raw is None else _read(arguments[0], raw, where)
    if origin is Mapping:
        return {key: _read(arguments[1], item, f"{where}[{key!r}]") for key, item in _expect(dict, raw, where).items()}
    if origin is tuple:
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_expect(list, raw, where)))
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, tuple)):
        return _read_record(kind, raw, where)
    if kind is float:
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not math.isfinite(raw):
            raise ResultsError(f"{where}: expected a finite number, got {_kind(raw)}")
        return float(raw)
    return raw if kind is Any else _expect(kind, raw, where)


def _read_record(kind: type, raw: object, where: str) -> Any:
    given = _expect(dict, raw, where)
    if kind is Delta:
        unit = given.get("unit")
        if unit != "points":
            raise ResultsError(f'{where}.unit: expected "points", got {_kind(unit)}')
        given = {key: item for key, item in given.items() if key != "unit"}
    known = _fields(kind)
    prefix = f"{where}." if where else ""
    for key in given:
        if key not in known:
            raise ResultsError(f"{prefix}{key}: no such field; known are {', '.join(known)}")
    for key, (_, required) in known.items():
        if required and key not in given:
            raise ResultsError(f"{prefix}{key}: missing")
    return kind(**{key: _read(known[key][0], item, prefix + key) for key, item in given.items()})


def _expect(kind: type, raw: object, where: str) -> Any:
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        names = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
        raise ResultsError(f"{where}: expected {names[kind]}, got {_kind(raw)}")
    return raw


def _kind(raw: object) -> str:
    text = json.dumps(raw) if not isinstance(raw, dict | list) else {dict: "an object", list: "a list"}[type(raw)]
    return text if len(text) <= 60 else text[:57] + "..."
