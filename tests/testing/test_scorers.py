"""Scorers and adapters: the methods that they have, their results, and the errors of bad ones."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from pit.testing import adapters
from pit.testing.errors import CheckError, DtypeError, NonFiniteError, ScorerCrashError, ShapeError
from pit.testing.scorers import Item, Method, gaps, methods_of, prompt_text
from pit.types import Message

ASK = (Message("user", "why"),)
ITEMS = (Item(ASK, "because", "no"), Item(ASK, "no", "because it is so"))


def lengths(prompts, outputs, references):
    return np.array([len(y) - len(r) for y, r in zip(outputs, references, strict=True)], np.float32)


def quality(prompts, outputs):
    return np.array([len(x) + 10 * len(y) for x, y in zip(prompts, outputs, strict=True)], np.float32)


def test_a_function_of_three_is_a_gap_scorer():
    scorer = adapters.as_scorer(lengths, "lengths")
    assert methods_of(scorer) == {Method.GAP}
    assert gaps(scorer, ITEMS).tolist() == [5.0, -14.0]


def test_a_function_of_two_is_a_difference_with_a_zero():
    scorer = adapters.as_scorer(quality, "quality")
    assert methods_of(scorer) == {Method.GAP, Method.CENTRED}
    assert gaps(scorer, ITEMS).tolist() == [50.0, -140.0]
    assert gaps(scorer, [Item(ASK, "no", "no")], Method.CENTRED).tolist() == [0.0]


def test_an_object_with_quality_is_wrapped_and_a_scorer_is_kept():
    model = SimpleNamespace(quality=quality, rounding=0.5)
    scorer = adapters.as_scorer(model, "model")
    assert scorer.rounding == 0.5
    assert adapters.as_scorer(scorer, "again") is scorer


@pytest.mark.parametrize(("value", "name"), [(3, "int"), (dict, "type"), (lambda prompts: 0, "function")])
def test_other_objects_are_refused(value, name):
    with pytest.raises(CheckError, match=rf"^mine: is of type {name}, must be a scorer .*prompts, outputs"):
        adapters.as_scorer(value, "mine")


@pytest.mark.parametrize(
    ("result", "fault", "message"),
    [
        (
            np.zeros((2, 1), np.float32),
            ShapeError,
            "gap() has shape (2, 1), must have shape (2,)",
        ),
        (np.zeros(3, np.float32), ShapeError, "gap() has shape (3,), must have shape (2,)"),
        (np.zeros(2, np.int64), DtypeError, "gap() has dtype int64, must be float32"),
        (np.zeros(2), DtypeError, "gap() has dtype float64, must be float32"),
        (np.array([0, np.nan], np.float32), NonFiniteError, "gap()[1] is nan, must be finite (1 of 2"),
        (np.array([np.inf, np.nan], np.float32), NonFiniteError, "gap()[0] is inf, must be finite (2 of 2"),
    ],
)
def test_bad_results_have_different_errors(result, fault, message):
    with pytest.raises(fault, match=f"^{re.escape(message)}"):
        gaps(adapters.GapFunction(lambda *_: result), ITEMS)


def test_a_scorer_that_raises_is_named():
    def fails(prompts, outputs, references):
        raise KeyError("word")

    with pytest.raises(ScorerCrashError, match=r"^gap\(\) raised KeyError: 'word'"):
        gaps(adapters.GapFunction(fails), ITEMS)


def test_a_quality_of_another_shape_is_named():
    scorer = adapters.Difference(adapters.QualityFunction(lambda prompts, outputs: np.zeros(3, np.float32)))
    with pytest.raises(ShapeError, match=r"^quality\(\) has shape \(3,\), must have shape \(4,\)"):
        gaps(scorer, ITEMS)


def test_conversations_as_text():
    assert prompt_text(ASK) == "why"
    assert prompt_text((Message("system", "be brief"), *ASK)) == "system: be brief\n\nuser: why"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:gap", "No module named 'no_such_module'"),
        ("math:gap", "module 'math' has no attribute 'gap'"),
    ],
)
def test_a_failed_import_gives_the_reason(name, reason):
    with pytest.raises(CheckError, match=rf"^{name}: cannot be imported \({reason}\); give MODULE:NAME"):
        adapters.import_scorer(name)
