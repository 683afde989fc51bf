"""results.json: what is written is what is read, and a bad file is told exactly what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.evaluate import schema
from pit.evaluate.stats import CopyRate, Delta, Interval

MINIMAL = schema.Results(recipe="tiny", seeds=(0,), config_hash="ab", versions={}, delta={})

texts = st.text(max_size=20)
numbers = st.floats(-1e6, 1e6)
shares = st.tuples(*[st.floats(0, 1)] * 3).map(sorted)
counts = st.integers(0, 10**9)


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    low, value, high = sorted(draw(st.tuples(*[st.floats(-100, 100)] * 3)))
    win, lose, tie = draw(st.tuples(counts, counts, st.integers(1, 9)))
    return Delta(value, low, high, win + lose + tie, win, lose, tie, draw(texts))


@st.composite
def points(draw: st.DrawFn) -> tuple[schema.QualityPoint, ...]:
    made = []
    for iteration in range(draw(st.integers(0, 3))):
        low, mean, high = sorted(draw(st.tuples(numbers, numbers, numbers)))
        made.append(schema.QualityPoint(iteration, mean, low, high, draw(st.none() | st.floats(0, 1)), draw(numbers)))
    return tuple(made)


@st.composite
def examples(draw: st.DrawFn) -> schema.Example:
    steps = [schema.ExampleStep(draw(texts), quality=draw(st.none() | numbers))]
    for k in range(1, draw(st.integers(1, 3))):
        reference = draw(st.integers(0, k - 1))
        steps.append(schema.ExampleStep(draw(texts), draw(numbers), draw(st.booleans()), None, reference))
    return schema.Example(draw(texts), tuple(steps))


intervals = st.builds(lambda s, n: Interval(s[1], s[0], s[2], n), shares, counts)
results = st.builds(
    schema.Results,
    recipe=texts,
    seeds=st.lists(st.integers(), max_size=3).map(tuple),
    config_hash=texts,
    versions=st.dictionaries(texts, texts, max_size=3),
    delta=st.dictionaries(texts, deltas(), max_size=3),
    dataset=texts,
    device=texts,
    config=st.dictionaries(texts, st.none() | st.booleans() | counts | st.lists(texts, max_size=2), max_size=3),
    quality=st.dictionaries(texts, points(), max_size=2),
    quality_measure=texts,
    accuracies=st.dictionaries(texts, intervals, max_size=2).flatmap(
        lambda d: intervals.map(lambda length: {**d, schema.LENGTH_BASELINE: length})
    ),
    sensitivity=st.lists(
        st.builds(lambda s, m, a, n: schema.SensitivityRow(m, a, s[1], s[0], s[2], n), shares, texts, texts, counts),
        max_size=2,
    ).map(tuple),
    stages=st.lists(
        st.builds(schema.StageCost, texts, numbers, numbers, counts, counts, st.none() | counts), max_size=2
    ).map(tuple),
    tokens=st.dictionaries(texts, counts, max_size=2),
    copy_rate=st.dictionaries(texts, st.builds(CopyRate, st.floats(0, 1), st.floats(0, 1), counts), max_size=2),
    examples=st.lists(examples(), max_size=2).map(tuple),
    notes=st.lists(texts, max_size=2).map(tuple),
)


@given(results)
def test_what_is_written_is_read(made: schema.Results) -> None:
    assert schema.from_json(schema.to_json(made)) == made


def test_a_folder_is_read_through_its_results_file(tmp_path: Path) -> None:
    schema.write_results(MINIMAL, tmp_path / "results.json")
    assert schema.read_results(tmp_path) == MINIMAL


def test_text_that_utf8_has_no_bytes_for_survives_the_file(tmp_path: Path) -> None:
    odd = schema.Results(recipe="\ud800 é", seeds=(0,), config_hash="", versions={}, delta={})
    schema.write_results(odd, tmp_path / "results.json")
    assert schema.read_results(tmp_path) == odd


def test_numbers_of_numpy_become_plain_ones() -> None:
    d = Delta(np.float32(0.5), np.float64(0.5), 0.5, np.int64(1), 1, 0, 0, "")  # type: ignore[arg-type]
    made = schema.Results(recipe="", seeds=(0,), config_hash="", versions={}, delta={"a": d})
    assert schema.from_json(schema.to_json(made)) == made


def test_a_delta_says_its_unit() -> None:
    d = Delta(0.0, 0.0, 0.0, 1, 0, 0, 1, "m")
    made = schema.Results(recipe="", seeds=(0,), config_hash="", versions={}, delta={"a": d})
    assert json.loads(schema.to_json(made))["delta"]["a"]["unit"] == "points"


def changed(path: str, value: Any) -> str:
    """The JSON of a full file with one value replaced (or removed, for ...)."""
    d = Delta(1.0, 0.5, 2.0, 4, 2, 1, 1, "m")
    steps = (schema.ExampleStep("a"), schema.ExampleStep("b", 0.5, True, None, 0))
    full = schema.Results(
        recipe="tiny",
        seeds=(0,),
        config_hash="ab",
        versions={"jax": "0.10"},
        delta={"d": d},
        quality={"raw": (schema.QualityPoint(0, 1, 0, 2, None, 3), schema.QualityPoint(1, 1, 0, 2, 1.0, 3))},
        accuracies={"length": Interval(0.5, 0.4, 0.6, 10)},
        sensitivity=(schema.SensitivityRow("m", "a", 0.5, 0.4, 0.6, 10),),
        examples=(schema.Example("p", steps),),
    )
    raw = json.loads(schema.to_json(full))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    at = raw
    for part in parents:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("version", 2, "has schema version 2, this program reads version 1; run the evaluation again"),
        ("version", ..., "has schema version None, this program reads version 1"),
        ("recipe", ..., "recipe: missing"),
        ("recipe", 3, "recipe: expected a text, got 3"),
        ("surprise", 3, "surprise: no such field; known are recipe, seeds"),
        ("seeds", 0, "seeds: expected a list, got 0"),
        ("seeds/0", True, r"seeds\[0\]: expected a whole number, got true"),
        ("versions/jax", None, r"versions\['jax'\]: expected a text, got null"),
        ("delta/d/unit", "percent", r'delta\[\'d\'\]\.unit: expected "points", got "percent"'),
        ("delta/d/low", "0.5", r"delta\['d'\]\.low: expected a finite number, got \"0.5\""),
        ("delta/d/low", float("nan"), r"delta\['d'\]\.low: expected a finite number, got NaN"),
        ("delta/d/low", 1.5, r"delta\['d'\]: need low <= value <= high, all in \[-100.0, 100.0\]; got 1.5, 1.0, 2.0"),
        ("delta/d/high", 101, r"all in \[-100.0, 100.0\]; got 0.5, 1.0, 101.0"),
        ("delta/d/n", 5, r"delta\['d'\]: win 2 \+ lose 1 \+ tie 1 must be n = 5, at least 1"),
        ("accuracies/length/high", 1.5, r"accuracies\['length'\]: need low <= value <= high, all in \[0.0, 1.0\]"),
        (
            "accuracies",
            {"judge": {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1}},
            "without 'length'; report the length",
        ),
        ("sensitivity/0/accuracy", 0.1, r"sensitivity\[0\]: need low <= value <= high"),
        ("quality/raw/1/iteration", 0, r"quality\['raw'\]: iterations must ascend; got \[0, 0\]"),
        ("quality/raw/1/mean", 9, r"quality\['raw'\]\[1\]: need low <= value <= high"),
        ("examples/0/steps", [], r"examples\[0\] has no steps"),
        ("examples/0/steps/0/gap", 1.0, r"examples\[0\]\.steps\[0\]: gap, accepted and reference must be null"),
        ("examples/0/steps/1/reference", 1, r"examples\[0\]\.steps\[1\]: .* reference in 0\.\.0; got"),
        ("examples/0/steps/1/gap", None, r"examples\[0\]\.steps\[1\]: gap, accepted and reference must be set"),
    ],
)
def test_a_bad_file_is_told_where(path: str, value: object, words: str) -> None:
    with pytest.raises(schema.ResultsError, match=rf"^results\.json:? .*{words}"):
        schema.from_json(changed(path, value))


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "results.json is not JSON: Expecting property name"), ("[]", "must hold a JSON object; got a list")],
)
def test_what_is_no_object_is_told_so(text: str, words: str) -> None:
    with pytest.raises(schema.ResultsError, match=words):
        schema.from_json(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(schema.ResultsError, match=r"no results at .*results\.json; they are written by a run's"):
        schema.read_results(tmp_path / "results.json")


def test_a_figure_that_is_not_finite_is_not_written() -> None:
    steps = (schema.ExampleStep("a", quality=float("nan")),)
    made = schema.Results("r", (0,), "", {}, {}, examples=(schema.Example("p", steps),))
    with pytest.raises(schema.ResultsError, match=r"examples\[0\]\.steps\[0\]\.quality: nan is not finite"):
        schema.to_json(made)
