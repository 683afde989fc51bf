"""results.json: a file that is read equals the one that was written, and an error names the bad field."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.evaluate import schema
from pit.evaluate.stats import Delta, Interval

MINIMAL = schema.Results(recipe="tiny", seeds=(0,), config_hash="ab", versions={}, delta={})

texts = st.text(max_size=20)
numbers = st.floats(-1e6, 1e6)
counts = st.integers(0, 10**9)
maybe = st.none() | numbers


def ordered(low: str, value: str, high: str, ends: st.SearchStrategy[float], **others: Any) -> Any:
    """Objects with three ascending numbers under these names, and other fields."""
    triple = st.tuples(ends, ends, ends).map(lambda t: dict(zip((low, value, high), sorted(t), strict=True)))
    return st.builds(lambda a, b: {**a, **b}, triple, st.fixed_dictionaries(others))


def listed(item: Any) -> Any:
    """Short lists."""
    return st.lists(item, max_size=2)


def named(item: Any) -> Any:
    """Small objects with any keys."""
    return st.dictionaries(texts, item, max_size=2)


def counted(d: dict[str, Any]) -> dict[str, Any]:
    """A delta whose n is the sum of its outcomes."""
    return {**d, "n": d["win"] + d["lose"] + d["tie"]}


shares = st.floats(0, 1)
later = {"gap": numbers, "accepted": st.booleans(), "quality": maybe, "reference": st.just(0)}
first = {"gap": st.none(), "accepted": st.none(), "quality": maybe, "reference": st.none()}
steps = st.builds(
    lambda start, rest: [start, *rest],
    st.fixed_dictionaries({"text": texts, **first}),
    listed(st.fixed_dictionaries({"text": texts, **later})),
)
accuracy = ordered("low", "value", "high", shares, n=counts)
outcomes = {"win": counts, "lose": counts, "tie": st.integers(1, 9), "method": texts, "unit": st.just("points")}
point = ordered("low", "mean", "high", numbers, accepted_share=st.none() | shares, mean_tokens=numbers)
comparison = st.builds(
    lambda one, other, more: {"asked": one + other + more, "no_verdict": one, "inconsistent": other},
    *[st.integers(0, 9)] * 3,
)
llm_judge = st.fixed_dictionaries(
    {
        **dict.fromkeys(("url", "model", "prompt"), texts),
        "comparisons": named(comparison),
        **dict.fromkeys(("calls", "cached", "unreadable", "failed", "prompt_tokens", "completion_tokens"), counts),
    }
)
raw_results = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "recipe": texts,
        "seeds": listed(st.integers()),
        "config_hash": texts,
        "versions": named(texts),
        "delta": named(ordered("low", "value", "high", st.floats(-100, 100), **outcomes).map(counted)),
        "dataset": texts,
        "device": texts,
        "config": named(st.none() | st.booleans() | counts | listed(texts)),
        "quality": named(listed(point).map(lambda ps: [{**p, "iteration": i} for i, p in enumerate(ps)])),
        "quality_measure": texts,
        "accuracies": st.builds(lambda some, length: {**some, "length": length}, named(accuracy), accuracy),
        "perplexity": named(ordered("low", "value", "high", st.floats(1, 1e6), n=counts)),
        "sensitivity": listed(ordered("low", "accuracy", "high", shares, n=counts, model=texts, aspect=texts)),
        "stages": listed(
            st.fixed_dictionaries(
                {
                    "name": texts,
                    "seconds": numbers,
                    "compile_seconds": numbers,
                    "steps": counts,
                    "tokens": counts,
                    "peak_memory_bytes": st.none() | counts,
                }
            )
        ),
        "tokens": named(counts),
        "copy_rate": named(st.fixed_dictionaries({"exact": shares, "similarity": shares, "n": counts})),
        "examples": listed(st.fixed_dictionaries({"prompt": texts, "steps": steps})),
        "notes": listed(texts),
        "llm_judge": st.none() | llm_judge,
    }
)


@given(raw_results)
def test_what_is_written_is_read(raw: dict[str, Any]) -> None:
    read = schema.from_json(json.dumps(raw))
    assert json.loads(schema.to_json(read)) == raw
    assert schema.from_json(schema.to_json(read)) == read


def test_a_folder_is_read_through_its_results_file(tmp_path: Path) -> None:
    schema.write_results(MINIMAL, tmp_path / "results.json")
    assert schema.read_results(tmp_path) == MINIMAL


def test_results_that_cannot_be_written_leave_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.write_results(MINIMAL, tmp_path / "results.json")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        schema.write_results(dataclasses.replace(MINIMAL, recipe="other"), tmp_path / "results.json")
    assert schema.read_results(tmp_path) == MINIMAL
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_text_that_utf8_cannot_encode_survives_the_file(tmp_path: Path) -> None:
    odd = schema.Results(recipe="\ud800 é", seeds=(0,), config_hash="", versions={}, delta={})
    schema.write_results(odd, tmp_path / "results.json")
    assert schema.read_results(tmp_path) == odd


def test_numbers_of_numpy_become_plain_ones() -> None:
    config = {"lr": np.float32(0.5), "steps": [np.int64(3)]}
    made = schema.Results(recipe="", seeds=(0,), config_hash="", versions={}, delta={}, config=config)
    assert json.loads(schema.to_json(made))["config"] == {"lr": 0.5, "steps": [3]}


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
        quality={
            "raw": (schema.QualityPoint(0, 1.0, 0.0, 2.0, None, 3.0), schema.QualityPoint(1, 1.0, 0.0, 2.0, 1.0, 3.0))
        },
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
    ("path", "value", "message"),
    [
        ("version", 2, "version = 2 must be 1; run pit evaluate"),
        ("version", ..., "version = None must be 1"),
        ("recipe", ..., "recipe: missing"),
        ("recipe", 3, "recipe: expected a string, got 3"),
        ("surprise", 3, "surprise: unknown field; .*recipe, seeds"),
        ("seeds", 0, "seeds: expected a list, got 0"),
        ("seeds/0", True, r"seeds\[0\]: expected an integer, got true"),
        ("versions/jax", None, r"versions\['jax'\]: expected a string, got null"),
        ("delta/d/unit", "percent", r'delta\[\'d\'\]\.unit: expected "points", got "percent"'),
        ("delta/d/low", "0.5", r"delta\['d'\]\.low: expected a finite number, got \"0.5\""),
        ("delta/d/low", float("nan"), r"delta\['d'\]\.low: expected a finite number, got NaN"),
        ("delta/d/low", 1.5, r"delta\['d'\]: need low <= value <= high, all in \[-100.0, 100.0\]; got 1.5, 1.0, 2.0"),
        ("delta/d/high", 101, r"all in \[-100.0, 100.0\]; got 0.5, 1.0, 101.0"),
        ("delta/d/n", 5, r"delta\['d'\]: win 2 \+ lose 1 \+ tie 1 must .* n = 5"),
        ("accuracies/length/high", 1.5, r"accuracies\['length'\]: need low <= value <= high, all in \[0.0, 1.0\]"),
        (
            "accuracies",
            {"judge": {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1}},
            "accuracies has .*'judge'.* not 'length'",
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
def test_an_error_names_the_bad_field(path: str, value: object, message: str) -> None:
    with pytest.raises(schema.ResultsError, match=rf"^results\.json:? .*{message}"):
        schema.from_json(changed(path, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"results\.json is not JSON"), ("[]", r"results\.json must .*object; got a list")],
)
def test_text_that_is_not_a_json_object_is_refused(text: str, message: str) -> None:
    with pytest.raises(schema.ResultsError, match=message):
        schema.from_json(text)


def test_a_missing_folder_is_named_and_no_other_is_advised(tmp_path: Path) -> None:
    with pytest.raises(schema.ResultsError, match=r"nosuch dir: no such folder; name the folder of a run that was ev"):
        schema.read_results(tmp_path / "nosuch dir")
    with pytest.raises(schema.ResultsError, match=rf"run pit evaluate --run {tmp_path} first"):
        schema.read_results(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(schema.ResultsError, match=r"results\.json does not exist; run pit evaluate"):
        schema.read_results(tmp_path / "results.json")


def test_a_number_that_is_not_finite_is_not_written() -> None:
    steps = (schema.ExampleStep("a", quality=float("nan")),)
    made = schema.Results("r", (0,), "", {}, {}, examples=(schema.Example("p", steps),))
    with pytest.raises(schema.ResultsError, match=r"examples\[0\]\.steps\[0\]\.quality = nan must be finite"):
        schema.to_json(made)
