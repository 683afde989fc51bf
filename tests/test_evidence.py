"""The evidence's book-keeping: equal steps, shared stages, fresh seeds, comparisons of what is there."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("_variants"), importlib.import_module("_summary")


@pytest.mark.parametrize("family", ["describe", "relay"])
@pytest.mark.parametrize("small", [False, True])
def test_every_variant_has_the_recipes_steps_to_spend(modules, family, small):
    variants, _ = modules
    base = variants.base_config(family, 1, small=small)
    improver = base.rl_first.steps + base.rl_second.steps + (base.rl_third.steps if base.own_references else 0)
    for name in variants.VARIANTS:
        config = variants.config_of(family, name, 1, small=small)
        stages = variants.stages_for(config, name)
        own = [stage for stage in stages if stage in ("rl-first", "rl-second", "rl-third")]
        spent = sum(getattr(config, stage.replace("-", "_")).steps for stage in own)
        policy = config.rl_policy.steps - base.rl_policy.steps
        assert (spent, policy) == ((0, improver) if name == "more_rlhf" else (improver, 0))
        assert config.data.task == family
        assert {getattr(config, s.replace("-", "_")).prompts for s in stages if s.startswith("rl-")} == {
            base.rl_policy.prompts
        }


def test_variants_share_what_is_the_same_and_seeds_share_nothing(modules):
    variants, _ = modules

    def ids(variant, seed):
        config = variants.config_of("describe", variant, seed)
        return {name: variants.identity(config, name) for name in variants.stages_for(config, variant)}

    staged, own, more = ids("staged", 1), ids("own", 1), ids("more_rlhf", 1)
    common = ["sft-policy", "sft-improver", "reward-quality", "reward-gap"]
    for other in (own, more, ids("second_only", 1)):
        assert all(staged[name] == other[name] for name in common)
    assert staged["rl-policy"] == own["rl-policy"] != more["rl-policy"]
    assert staged["rl-first"] != own["rl-first"]
    assert not set(staged.values()) & set(ids("staged", 2).values())
    assert not set(variants.EXPLORE_SEEDS) & set(variants.FINAL_SEEDS)
    assert len(variants.FINAL_SEEDS) >= 5


def fake(qualities):
    return {
        "quality": {name: list(values) for name, values in qualities.items()},
        "length": {name: [len(name)] * len(values) for name, values in qualities.items()},
        "sampled_tokens": {},
        "training": {},
        "copy_rate": {},
        "accuracies": [],
    }


def test_a_comparison_is_made_of_the_seeds_that_have_both_sides(modules):
    _, summary = modules
    trials = {
        (1, "staged"): fake({"y0": [0.0, 0.0, 0.5, 1.0], "pit_stop_1": [1.0, 1.0, 0.0, 1.0]}),
        (2, "staged"): fake({"y0": [0.0, 0.0], "pit_stop_1": [1.0, 1.0]}),
        (3, "staged"): fake({"y0": [0.0, 0.0]}),
    }
    found = summary.compared(trials, ("staged", "pit_stop_1"), summary.BASE, resamples=50)
    # Two won, one lost of four; two of two.
    assert {seed: row["value"] for seed, row in found["seeds"].items()} == {1: 25.0, 2: 100.0}
    assert found["seeds"][1]["mean_change"] == pytest.approx(1.5 / 4)
    # All differ by as many tokens, so length cannot be controlled for.
    assert "length_controlled" not in found["seeds"][1]
    over = found["over_seeds"]
    # Half the difference is 37.5; the interval of two seeds is 12.706 of it.
    assert (over["value"], over["above"], over["below"]) == (62.5, 2, 0)
    assert over["high"] - over["value"] == pytest.approx(12.7062 * 37.5, rel=1e-4)
    assert summary.compared(trials, ("own", "pit_stop_1"), summary.BASE, resamples=50) is None


def test_the_best_temperature_is_chosen_over_all_seeds(modules):
    _, summary = modules
    cold, warm = np.array([0.2, 0.4]), np.array([0.5, 0.5])
    trials = {
        (seed, "staged"): fake(
            {"t0.2/y0": cold + shift, "t1.0/y0": warm, "t0.2/pit_stop_1": warm, "t1.0/pit_stop_1": cold}
        )
        for seed, shift in ((1, 0.3), (2, 0.0))
    }
    found = summary.best_temperatures(trials, 1, resamples=20)
    assert found["best"] == {"y0": "t1.0/y0", "pit_stop_1": "t0.2/pit_stop_1"}
    assert found["mean_quality"]["t0.2/y0"] == pytest.approx(0.45)
    assert found["over y0"]["over_seeds"]["value"] == 0


def test_a_summary_holds_every_comparison_whose_sides_are_there_and_the_plot_is_drawn(modules, tmp_path):
    _, summary = modules
    methods = ["y0", "sft_policy", "best_of_2", "best_of_3", "other_reference_1", "empty_reference_1"]
    stems = ("pit_plain", "pit_stop", "sft_plain", "sft_stop", "resample")
    methods += [f"{stem}_{k}" for stem in stems for k in (1, 2)]
    dice = np.random.default_rng(0)
    trials = {(seed, "staged"): fake({name: dice.random(8) for name in methods}) for seed in (1, 2)}
    trials |= {(seed, "more_rlhf"): fake({"y0": dice.random(8)}) for seed in (1, 2)}
    found = summary.summary(trials, 2, resamples=20)
    asked = {text for text in summary.comparisons(2) if not text.startswith(("staged over", "own,"))}
    assert found["comparisons"].keys() == asked
    assert all(row["over_seeds"]["seeds"] == 2 for row in found["comparisons"].values())
    assert found["elo"].keys() == set(methods)
    assert found["elo"]["y0"]["over_seeds"]["value"] == 0
    assert [(each["seed"], each["variant"]) for each in found["trials"]] == sorted(trials)
    summary.plot(trials, 2, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
