"""The study of rivals: who answers and who improves for each contender, and how p-values are adjusted."""

import importlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from test_wiring_search import sum_of_tokens
from world import World, run_of

BENCH = Path(__file__).parents[2] / "bench"
POLICIES = {
    "RLHF": "rl-policy",
    "RLHF, re-anchored": "rl-policy-again",
    "DPO": "dpo-policy",
    "fine-tuned policy": "sft-policy",
}
IMPROVERS = {
    "PIT": "rl-improver-1",
    "PIT before RL,1": "rl-improver-0",
    "fine-tuned improver": "sft-improver",
    "SRPO's improver": "srpo-improver",
}


@pytest.fixture
def study(monkeypatch):
    """The script, which is in no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("study_rivals")


@pytest.mark.parametrize("name", [*POLICIES, *IMPROVERS])
def test_each_contender_is_its_own_model_at_the_same_number_of_answers(study, name):
    world, run = World(), run_of("rlhf=again", "offline=both", "improve.gap=symmetric", "improve.batch=64")
    world.score = lambda model, path: float(sum(path[-1]) % 7 - (sum(path[-2]) % 5 if len(path) == 3 else 0))
    patches = (
        mock.patch.object(study, "oracle_of", return_value=sum_of_tokens),
        mock.patch.object(study, "CONTENDERS", {name: study.CONTENDERS[name]}),
    )
    with world.watched("study"), patches[0], patches[1]:
        trial = study.trial(run, 5)
    assert world.folds == {"study": ["eval"]}
    asked = [ask.model for ask in world.asked("study")]
    # The draws of the smaller budget are among those of the larger one, and are remembered.
    if name in POLICIES:
        assert asked == [POLICIES[name]] * 6
    else:
        assert asked == ["rl-policy", *[IMPROVERS[name]] * 5]
    assert all(len(of[name]["quality"]) == trial["prompts"] == 5 for of in trial["budgets"].values())


def test_all_contenders_are_compared_with_ours(study):
    def trial(better):
        def entry(name, answers):
            quality = [float(name == study.OURS and i < better) for i in range(4)]
            return {"quality": quality, "tokens_per_prompt": float(answers)}

        names = (study.OURS, *study.RIVALS)
        return {"seed": 0, "prompts": 4, "budgets": {str(n): {x: entry(x, n) for x in names} for n in study.BUDGETS}}

    trials = json.loads(json.dumps([trial(1), trial(2)]))
    rows = study.compared(trials)
    assert [(row["answers"], row["rival"]) for row in rows] == [(n, r) for n in study.BUDGETS for r in study.RIVALS]
    assert all(row["over_seeds"]["value"] == 37.5 for row in rows)
    text = study.table({"compared": rows, "trials": [study.in_short(t) for t in trials]})
    assert text.count("\n| 6 | ") == len(study.RIVALS)
    first = "+37.5 [-121.3, +196.3] | 0 of 2 | 1.000 | 0.375 over 0.000 | 2, 2 |"
    assert text.splitlines()[2] == f"| 2 | {study.RIVALS[0]} | {first}"


def test_p_values_are_adjusted_for_their_number(study):
    rng = np.random.default_rng(0)
    p = rng.random(9) ** 3
    adjusted = np.array(study.holm(list(p)))
    order = np.argsort(p)
    expected = [max(min(1, (9 - i) * p[order[i]]) for i in range(k + 1)) for k in range(9)]
    assert np.allclose(adjusted[order], expected)
