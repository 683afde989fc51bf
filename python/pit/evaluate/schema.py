"""Schema of `results.json`, the one file that holds all measurements of a run.

The evaluation writes it, the report and the README's figures read it, and it suffices to check a claim: it holds every
figure with its interval and count, and the versions of the packages. `docs/results.md` describes the file.
"""

import dataclasses
import functools
import json
import math
import shlex
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pit.atomic import write_file
from pit.errors import PitError
from pit.evaluate.stats import CopyRate, Delta, Interval

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
LENGTH_BASELINE = "length"
"""Key in `Results.accuracies` of the judge that prefers the longer answer."""
JUDGE = "judge"
"""Key in `Results.accuracies`, and measure in `Results.delta`, of the judge model that takes no part in training."""
LLM_JUDGE = "llm_judge"
"""Measure in `Results.delta` of the LLM judge behind an API."""
HEADLINES = ("improved_over_policy/oracle", "improved_over_policy/judge")
"""Deltas that tell whether the run improved answers; the first that was measured is the headline of the report."""
RAW, STOP_RULE = "raw", "stop_rule"
"""Names of the two quality series: accept every new answer, and accept it only if its gap is above the threshold."""


class ResultsError(PitError):
    """Error for a results file that is missing, malformed or of another version."""


@dataclass(frozen=True)
class QualityPoint:
    """Mean quality of the answers after a number of iterations of the improver.

    iteration: number of iterations; 0 is the policy's own answer.
    mean, low, high: mean with its 95 % interval, in the unit that `Results.quality_measure` names.
    accepted_share: share of prompts whose new answer of this iteration was accepted; None without a decision.
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
    """Accuracy of a model on pairs of answers with one kind of difference, with Wilson's interval; shares 0 to 1.

    model: name of the model. aspect: kind of difference.
    accuracy: share of pairs in the right order. low, high: ends of its interval. n: number of pairs.
    """

    model: str
    aspect: str
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage.

    name: name of the stage. steps: its steps. tokens: tokens that it trained on, without padding.
    compile_seconds: time in which XLA compiled.
    seconds: wall-clock time; it includes `compile_seconds`.
    peak_memory_bytes: peak device memory; None if it is not known.
    """

    name: str
    seconds: float
    compile_seconds: float
    steps: int
    tokens: int
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class ExampleStep:
    """One answer to the prompt of an example.

    text: the answer; in a search the best candidate of the round.
    gap: gap of this answer over its reference, in the form of `improve.gap` or by likelihood; None for the policy's
        own answer.
    accepted: whether the stop rule accepted it; None for the policy's own answer.
    quality: score by the oracle; None if there is no oracle.
    reference: index of the step that is its reference; None for the policy's own answer.
    """

    text: str
    gap: float | None = None
    accepted: bool | None = None
    quality: float | None = None
    reference: int | None = None


@dataclass(frozen=True)
class Example:
    """Prompt with its answers y_0, y_1, ...; y_0 is the policy's own.

    prompt: text of the prompt. steps: its answers, in order.
    """

    prompt: str
    steps: tuple[ExampleStep, ...]


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of two methods by the LLM judge.

    asked: number of prompts. no_verdict: those without a verdict, because no reply came or none could be read.
    inconsistent: those whose verdict changed with the order of the answers; they count as ties.
    """

    asked: int
    no_verdict: int
    inconsistent: int


@dataclass(frozen=True)
class LlmJudgeRecord:
    """What an LLM judge was asked, and its cost.

    url, model: address of the server, and name of the model there.
    prompt: digest of its instructions. comparisons: name of a delta's two methods to its counts.
    calls: replies that the server gave. cached: replies from an earlier evaluation. unreadable: replies that were none
    of those asked for. failed: replies that did not come.
    prompt_tokens, completion_tokens: tokens of all replies, as the server counts them.
    """

    url: str
    model: str
    prompt: str
    comparisons: Mapping[str, Comparisons]
    calls: int
    cached: int
    unreadable: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Results:
    """All measurements of a run. Raises `ResultsError` for values that contradict each other.

    version: version of this schema, 1.
    recipe, dataset, device: recipe, data and hardware, as text for the reader.
    seeds: all seeds that the figures depend on.
    config_hash: hash of the configuration. config: the configuration as plain JSON.
    versions: package name to version.
    delta: "<candidate>_over_<baseline>/<measure>" to win rate minus lose rate, in points. The key of a figure with
        length control ends in "/length_controlled". A report opens with one of `HEADLINES`.
    quality: series name ("raw", "stop_rule", or another improver's) to its points, iterations ascending; of a search,
        by round. Of a synthetic task with several evaluation subsets also "SUBSET, stop rule".
    quality_measure: description of the quality, such as "oracle score, 0 to 1".
    accuracies: model name to pair accuracy, 0 to 1; ", own answers" at its end: on labelled answers of the models.
        Holds "length", the accuracy of "the longer answer is better", if it holds any other.
    perplexity: model name to perplexity, per token, of the better answers of held-out pairs.
    sensitivity: accuracies by kind of difference.
    llm_judge: counts and cost of the LLM judge; None without one.
    stages: costs, in the order in which the stages ran.
    tokens: sampler ("policy", "improver", ...) to the number of tokens it sampled.
    copy_rate: name of a set of outputs to how much of their references they repeat.
    examples: a few prompts with their answers, chosen by a fixed rule.
    notes: caveats, one sentence each.
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
    perplexity: Mapping[str, Interval] = field(default_factory=dict)
    sensitivity: tuple[SensitivityRow, ...] = ()
    stages: tuple[StageCost, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    copy_rate: Mapping[str, CopyRate] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    llm_judge: LlmJudgeRecord | None = None

    def __post_init__(self) -> None:
        _check(self)


def to_json(results: Results) -> str:
    """Return the text of the file: indented JSON, keys in the order of the dataclasses.

    Raises ResultsError for a number that is not finite.
    """
    return json.dumps(_value_to_json(results, ""), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, name: str = FILE_NAME, remedy: str = "run pit evaluate again") -> Results:
    """Return the results that the text of a file holds.

    name: name of the file in error messages.
    remedy: end of the messages.
    Raises ResultsError for text that is not JSON, another version, a missing, unknown or mistyped field, and values
    that contradict each other; the message starts with `name` and names the field.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{name} is not JSON: {error}; {remedy}") from error
    if not isinstance(raw, dict):
        raise ResultsError(f"{name} must hold a JSON object; got {_describe(raw)}; {remedy}")
    if raw.get("version") != SCHEMA_VERSION:
        raise ResultsError(f"{name}: version = {raw.get('version')!r} must be {SCHEMA_VERSION}; {remedy}")
    try:
        return typing.cast(Results, _read(Results, raw, ""))
    except ResultsError as error:
        raise ResultsError(f"{name}: {error}; {remedy}") from error


def write_results(results: Results, path: Path) -> None:
    """Write `results` to `path` (UTF-8), whole or not at all."""
    # A model's text may hold lone surrogates, which UTF-8 cannot encode; they are written as \\udXXX.
    write_file(path, to_json(results).encode(errors="backslashreplace"))


def read_results(path: Path) -> Results:
    """Return the results from a file, or from `results.json` in a run's folder.

    Raises ResultsError if there is no file, and as `from_json` does.
    """
    file = path if path.is_file() or path.suffix == ".json" else path / FILE_NAME
    if not file.parent.is_dir():
        raise ResultsError(f"{file.parent}: no such folder; name the folder of a run that was evaluated")
    command = shlex.join(["pit", "evaluate", "--run", str(file.parent)])
    if not file.is_file():
        raise ResultsError(f"{file} does not exist; run {command} first")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{file} is not UTF-8: {error}; run {command} again") from error
    return from_json(text, str(file), f"run {command} again")


def _check(results: Results) -> None:
    """Raise ResultsError for values that contradict each other."""
    if results.version != SCHEMA_VERSION:
        raise ResultsError(f"version = {results.version} must be {SCHEMA_VERSION}")
    for name, d in results.delta.items():
        where = f"delta[{name!r}]"
        _check_interval(where, d.low, d.value, d.high, -100.0, 100.0)
        if min(d.win, d.lose, d.tie) < 0 or d.win + d.lose + d.tie != d.n or d.n < 1:
            raise ResultsError(f"{where}: win {d.win} + lose {d.lose} + tie {d.tie} must add up to n = {d.n} >= 1")
    for name, accuracy in results.accuracies.items():
        _check_interval(f"accuracies[{name!r}]", accuracy.low, accuracy.value, accuracy.high, 0.0, 1.0)
    if results.accuracies and LENGTH_BASELINE not in results.accuracies:
        raise ResultsError(
            f"accuracies has {sorted(results.accuracies)} but not {LENGTH_BASELINE!r}; add the length baseline"
        )
    for name, perplexity in results.perplexity.items():
        _check_interval(f"perplexity[{name!r}]", perplexity.low, perplexity.value, perplexity.high, 1.0, math.inf)
    for name, counts in results.llm_judge.comparisons.items() if results.llm_judge is not None else ():
        if min(counts.no_verdict, counts.inconsistent) < 0 or counts.no_verdict + counts.inconsistent > counts.asked:
            raise ResultsError(
                f"llm_judge.comparisons[{name!r}]: no_verdict {counts.no_verdict} + inconsistent "
                f"{counts.inconsistent} must be at most asked = {counts.asked}, both at least 0"
            )
    for i, row in enumerate(results.sensitivity):
        _check_interval(f"sensitivity[{i}]", row.low, row.accuracy, row.high, 0.0, 1.0)
    for name, points in results.quality.items():
        if [p.iteration for p in points] != sorted({p.iteration for p in points}):
            raise ResultsError(f"quality[{name!r}]: iterations must ascend; got {[p.iteration for p in points]}")
        for i, point in enumerate(points):
            _check_interval(f"quality[{name!r}][{i}]", point.low, point.mean, point.high, -math.inf, math.inf)
    for i, example in enumerate(results.examples):
        if not example.steps:
            raise ResultsError(f"examples[{i}] has no steps; add the policy's answer")
        for k, step in enumerate(example.steps):
            decided = (step.gap, step.accepted, step.reference)
            if k == 0 and decided != (None, None, None):
                raise ResultsError(f"examples[{i}].steps[0]: gap, accepted and reference must be null; got {decided}")
            if k > 0 and (None in decided or not 0 <= typing.cast(int, step.reference) < k):
                raise ResultsError(
                    f"examples[{i}].steps[{k}]: gap, accepted and reference must be set, reference in 0..{k - 1}; "
                    f"got {decided}"
                )


def _check_interval(where: str, low: float, value: float, high: float, least: float, most: float) -> None:
    """Raise ResultsError unless low <= value <= high, all finite and within [least, most]."""
    if not (math.isfinite(low) and math.isfinite(high) and least <= low <= value <= high <= most):
        raise ResultsError(f"{where}: need low <= value <= high, all in [{least}, {most}]; got {low}, {value}, {high}")


def _value_to_json(value: object, where: str) -> object:
    """Return `value` as JSON's types; every delta gets a "unit" field."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(f"{where} = {value} must be finite, because JSON has no other numbers; leave the figure out")
    if isinstance(value, Delta):
        return {**_fields_to_json(value._asdict(), where), "unit": "points"}
    if isinstance(value, Interval | CopyRate):
        return _fields_to_json(value._asdict(), where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_to_json({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, where)
    if isinstance(value, Mapping):
        return {key: _value_to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_value_to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _fields_to_json(fields: dict[str, Any], where: str) -> dict[str, object]:
    return {name: _value_to_json(item, f"{where}.{name}" if where else name) for name, item in fields.items()}


@functools.cache
def _fields(record: type) -> dict[str, tuple[Any, bool]]:
    """Return field name to (type, required) of a dataclass or named tuple."""
    hints = typing.get_type_hints(record)
    if dataclasses.is_dataclass(record):
        missing = dataclasses.MISSING
        return {
            f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(record)
        }
    return {name: (hint, True) for name, hint in hints.items()}


def _read(kind: Any, raw: object, where: str) -> Any:
    """Return `raw` as a value of the annotated type `kind`, or raise ResultsError with the field's path."""
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
        # Whole numbers of JSON have no limit.
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not abs(raw) <= sys.float_info.max:
            raise ResultsError(f"{where}: expected a finite number, got {_describe(raw)}")
        return float(raw)
    return raw if kind is Any else _expect(kind, raw, where)


def _read_record(kind: type, raw: object, where: str) -> Any:
    """Return `raw` as a dataclass or named tuple, or raise ResultsError with the field's path."""
    fields = _expect(dict, raw, where)
    if kind is Delta:
        unit = fields.get("unit")
        if unit != "points":
            raise ResultsError(f'{where}.unit: expected "points", got {_describe(unit)}')
        fields = {key: item for key, item in fields.items() if key != "unit"}
    known = _fields(kind)
    prefix = f"{where}." if where else ""
    for key in fields:
        if key not in known:
            raise ResultsError(f"{prefix}{key}: unknown field; the fields are {', '.join(known)}")
    for key, (_, required) in known.items():
        if required and key not in fields:
            raise ResultsError(f"{prefix}{key}: missing")
    return kind(**{key: _read(known[key][0], item, prefix + key) for key, item in fields.items()})


def _expect(kind: type, raw: object, where: str) -> Any:
    """Return `raw` if it is of type `kind`, else raise ResultsError."""
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        names = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}
        raise ResultsError(f"{where}: expected {names[kind]}, got {_describe(raw)}")
    return raw


def _describe(raw: object) -> str:
    """Return a short description of a JSON value, for messages."""
    text = json.dumps(raw) if not isinstance(raw, dict | list) else {dict: "an object", list: "a list"}[type(raw)]
    return text if len(text) <= 60 else text[:57] + "..."
