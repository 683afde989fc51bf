"""The study of the search: whose answers each method has, chosen where, and how its table is counted."""

import importlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from test_wiring_search import sum_of_tokens
from world import World, run_of

from pit.data.tokens import Tokens
from pit.evaluate import splits
from pit.improve import Models
from pit.seeds import Seed

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def study(monkeypatch):
    """The script, which is in no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("study_search")


def test_rivals_are_chosen_on_held_out_prompts_and_judged_on_others(study):
    common = ("improve.gap=symmetric", "improve.batch=64")
    world, run = World(), run_of(*common)
    world.score = lambda model, path: float(sum(path[-1]) % 7 - (sum(path[-2]) % 5 if len(path) == 3 else 0))
    patches = (
        mock.patch.object(splits, "best_gold", return_value=(sum_of_tokens, "oracle")),
        mock.patch.object(study, "oracle_of", return_value=sum_of_tokens),
        mock.patch.object(study, "BUDGETS", (2, 6)),
        # Another run of this world: one with settings would look for its data in the folder.
        mock.patch.object(type(run), "with_settings", lambda run, settings: run_of(*common, *settings)),
    )
    with world.watched("study"), patches[0], patches[1], patches[2], patches[3]:
        trial = study.trial(run, 5, 7)
        trial = json.loads(json.dumps(trial))
        compared = study.compared([trial, trial])
    assert world.folds == {"study": ["judge", "eval"]}
    assert (trial["prompts"], trial["held_out_prompts"]) == (5, 7)
    for answers, methods in trial["budgets"].items():
        means = trial["tried"][answers]
        assert set(methods) == {*study.RIVALS, study.SEARCH}
        for method, names in study.families(int(answers), list(means)).items():
            assert methods[method]["split"] in names
            assert means[methods[method]["split"]] == max(means[name] for name in names)
        assert all(len(entry["quality"]) == 5 for entry in methods.values())
    row = compared["6"]["best of n"]
    ours, theirs = (np.array(trial["budgets"]["6"][name]["quality"]) for name in (study.SEARCH, "best of n"))
    assert row["over_seeds"]["value"] == pytest.approx(100 * np.mean(np.sign(ours - theirs)))
    text = study.table({"search_over": compared, "trials": [study.in_short(trial)] * 2})
    assert text.count("\n| 6 |") == len(study.RIVALS) + len(methods)


def test_recombination_rewrites_random_members_and_a_majority_answers(study):
    world, run = World(), run_of()
    prompts = Tokens.of([[300], [301, 302], [303]])
    with world.watched("study"):
        models = Models.load(run, run.config.reward_gap.packing)
        answers, spent = study.recombined(models, prompts, 12, run.config.improve, Seed((5,)))
    asks = world.asked("study")
    assert [ask.model for ask in asks] == ["rl-policy"] * 4 + ["rl-improver-1"] * 8
    assert len({ask.seed for ask in asks}) == 12
    contents = [run.sampler(run.config.improve.rollout).closings.eos]
    made = [[[t for t in ask.tokens[g, 0].tolist() if t and t not in contents] for g in range(3)] for ask in asks]
    assert spent == sum(len(y) + 1 for column in made for y in column)
    assert all(answers[g].tolist() in [column[g] for column in made[-4:]] for g in range(3))
    assert study.majority([[1], [2], [3], [2]]) == 1
    assert study.majority([[1], [2]]) == 0
