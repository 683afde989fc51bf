"""What a survey says about preferences: repeats, and folds that are far from their share."""

import pytest

from pit.data.folds import Folds
from pit.data.survey import Survey
from pit.types import FOLDS, Message, Preference


def survey_of(*prompts: str, folds: Folds | None = None, better: str = "a") -> Survey:
    survey = Survey(folds or Folds())
    for prompt in prompts:
        turns = tuple(Message("user", text) for text in prompt.split("|"))
        survey.add(Preference(turns, better, "b", difficulty=float(len(prompt))))
    return survey


def test_repeats_are_of_prompts_and_of_pairs() -> None:
    survey = survey_of("x", "y", "x")
    survey.add(Preference((Message("user", "y"),), "other", "b"))
    assert (survey.repeated_prompts, survey.repeated_pairs) == (2, 1)
    assert survey.notes() == ["note: pairs that repeat an earlier one, prompt and both answers: 1"]
    assert list(survey.rows) == list(FOLDS)
    assert survey.rows.total() == 4


def test_fair_folds_and_small_sets_are_not_lopsided() -> None:
    assert survey_of(*(f"question {i}" for i in range(500))).notes() == []
    for n in range(12):
        assert survey_of(*(f"question {i}" for i in range(n))).notes() == []


@pytest.mark.parametrize("by", ["opening", "prompt"])
def test_the_fold_that_is_farthest_from_its_share_is_named(by: str) -> None:
    folds = Folds({"sft": 0.5, "eval": 0.5}, by="opening" if by == "opening" else "prompt")
    same = [f"Hi|{i}" if by == "opening" else "Hi" for i in range(60)]
    (fold,) = {folds.of((Message("user", "Hi"),))}
    notes = survey_of(*same, *(f"question {i}" for i in range(4)), folds=folds).notes()
    remedy = "; set data.fold_by=prompt to fold by the whole prompt" if by == "opening" else ""
    assert notes[-1].startswith("note: fold ")
    assert notes[-1].endswith(f", its share is 50%: 60 of 64 conversations open with 'Hi'{remedy}")
    assert fold in ("sft", "eval")
