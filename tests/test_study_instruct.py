"""The study of the family instruct: comparisons by name, tables of several seeds, all of its code on a tiny model."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from small_model import write_model

from pit.evaluate import splits

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def study(monkeypatch):
    """The script, which is in no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("study_instruct")


def sum_of_tokens(inputs, answers):
    """Return a worth that differs from answer to answer."""
    return np.array([float(sum(map(int, answer)) % 101) for answer in answers], np.float64)


def made_trial(study, seed, better, passes=2):
    """Return a trial of four prompts in which the columns of `better` hold everything and all others nothing."""
    columns = ["untrained", "sft_policy", *study.methods_of(passes).values(), "pit_stop_1"]
    values = {name: 4 * [float(name in better)] for name in columns}
    return {
        "seed": seed,
        "passes": passes,
        "subsets": ["seen combinations", "unseen kinds"] * 2,
        "aspects": {name: {"held": v, "all held": v, "fluent": [1.0, 1.0, 1.0, 0.0]} for name, v in values.items()},
        "sampled_tokens": dict.fromkeys(columns, 40),
        "perplexity": {"y0": {"value": 9.0, "low": 8.0, "high": 10.0, "n": 4}},
        "examples": [{"prompt": "Write.", "answers": {"y0": "a | b\nc", "pit_stop_2": "d"}}],
    }


def test_comparisons_are_of_the_named_columns(study):
    trials = [made_trial(study, seed, {"pit_stop_2", "search"}) for seed in (1, 2)]
    compared = study.compared(trials)
    assert set(compared) == {f"{candidate} over {baseline}" for candidate, baseline in study.COMPARISONS}
    wins = {name for name, row in compared.items() if row["over_seeds"]["value"] > 0}
    assert wins == {name for name in compared if name.startswith(("PIT", "search"))}
    # Three of four answers are fluent.
    assert [row[0] for row in compared["search over best of n"]["seeds"]] == [75.0, 75.0]
    assert study.worth(trials[0], "search").tolist() == [1, 1, 1, 0]


def test_a_method_that_was_not_measured_is_not_compared(study):
    trial = made_trial(study, 1, {"search"})
    del trial["aspects"]["recombination"]
    assert "search over recombination" not in study.compared([trial])
    assert "search over best of n" in study.compared([trial])


def test_the_table_has_every_method_subset_and_example(study):
    trials = [made_trial(study, seed, {"pit_stop_2"}) for seed in (1, 2)]
    trials[1]["aspects"]["pit_stop_2"]["held"] = [0.5, 1.0, 0.5, 1.0]
    text = study.table({"trials": trials, "compared": study.compared(trials)})
    assert "| share held | seen combinations | unseen kinds |" in text
    held = [row for row in text.splitlines() if row.startswith("| pit_stop_2 | ")]
    assert held[0].startswith("| pit_stop_2 | 0.875 [")
    assert held[1].startswith("| pit_stop_2 | 0.750 [")
    assert "1.000 [1.000, 1.000] |" in held[1]
    assert "| y0 | a \\| b<br>c |" in text
    assert study.interval([1.0]) == "1.000"


@pytest.mark.slow
def test_all_of_the_study_runs_on_a_tiny_model(study, tmp_path, monkeypatch):
    model = write_model(tmp_path / "model")
    # A random model writes nothing fluent, and a search cannot be chosen among answers of equal worth.
    monkeypatch.setattr(splits, "best_gold", lambda run: (sum_of_tokens, "sum of tokens"))
    study.main(["run", "--small", "--model", str(model), "--seeds", "1", "--work", str(tmp_path / "work")])
    results = json.loads((tmp_path / "work" / "instruct.json").read_text())
    (first,) = results["trials"]
    columns = study.methods_of(first["passes"])
    absent = {columns["recombination"]}
    assert set(columns.values()) - absent <= set(first["aspects"])
    assert {len(values["held"]) for values in first["aspects"].values()} == {8}
    assert set(first["perplexity"]) >= {"untrained", "y0", "pit_stop_2"}
