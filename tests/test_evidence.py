"""The evidence's book-keeping: equal steps, shared stages, fresh seeds, comparisons of what is there."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of bench/, which is no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def room(name):
    """A fixture of that name: a module of what bench/evidence.py is made of."""
    return pytest.fixture(lambda bench: bench(f"_evidence.{name}"), name=name)


variants, plots, summary = room("variants"), room("plots"), room("summary")
gates, traits, markdown = room("gates"), room("traits"), room("markdown")


@pytest.mark.parametrize("family", ["describe", "relay"])
@pytest.mark.parametrize("small", [False, True])
def test_every_variant_has_the_recipes_steps_to_spend(variants, family, small):
    base = variants.base_config(family, 1, small=small)
    stages = {"describe": 2, "relay": 2 if small else 1}[family]
    improver = sum((base.rl_first.steps, base.rl_second.steps)[:stages])
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


def test_variants_share_what_is_the_same_and_seeds_share_nothing(variants):
    def ids(variant, seed):
        config = variants.config_of("describe", variant, seed)
        return {name: variants.identity(config, name) for name in variants.stages_for(config, variant)}

    staged, own, more = ids("staged", 1), ids("own", 1), ids("more_rlhf", 1)
    common = ["sft-policy", "sft-improver", "reward-quality", "reward-gap"]
    for other in (own, more, ids("second_only", 1)):
        assert all(staged[name] == other[name] for name in common)
    assert staged["rl-policy"] == own["rl-policy"] != more["rl-policy"]
    # A gap model that learned one pair of orders is another, and so is all RL against it.
    one = ids("one_pair", 1)
    assert {name for name in one if one[name] != staged[name]} == {"reward-gap", "rl-first", "rl-second"}
    assert staged["rl-first"] != own["rl-first"]
    assert not set(staged.values()) & set(ids("staged", 2).values())
    final = [seed for seeds in variants.FINAL_SEEDS.values() for seed in seeds]
    assert not set(variants.EXPLORE_SEEDS) & set(final)
    assert len(final) == len(set(final))
    assert variants.FINAL_SEEDS.keys() == variants.FAMILIES.keys()
    assert all(len(seeds) >= 5 for seeds in variants.FINAL_SEEDS.values())


@pytest.mark.parametrize(
    ("main", "curricula", "losses"),
    [("staged", {"staged"}, {"staged"}), ("first_only", {"first_only"}, {"first_only", "staged"})],
)
def test_a_loss_is_also_held_against_the_variant_that_differs_in_nothing_else(
    variants, summary, main, curricula, losses
):
    found = summary.comparisons(2, main)

    def held(name):
        return {left for left in variants.VARIANTS if f"{left} over {name}, pit_stop_2" in found}

    assert held("uniform") == held("adaptive") == curricula
    assert held("difference") == held("one_pair") == losses
    assert all(
        found[f"{left} over one_pair, pit_plain_1"] == ((left, "pit_plain_1"), ("one_pair", "pit_plain_1"))
        for left in losses
    )


def fake(qualities, curve=()):
    return {
        "quality": {name: list(values) for name, values in qualities.items()},
        "length": {name: [len(name)] * len(values) for name, values in qualities.items()},
        "sampled_tokens": {},
        "training": {},
        "copy_rate": {},
        "accuracies": [],
        "accepted": {},
        "learning_curve": curve,
        "answer_seconds": 1.0,
        "commit": "abc",
    }


def test_a_comparison_is_made_of_the_seeds_that_have_both_sides(summary):
    trials = {
        (1, "staged"): fake({"y0": [0.0, 0.0, 0.5, 1.0], "pit_stop_1": [1.0, 1.0, 0.0, 1.0]}),
        (2, "staged"): fake({"y0": [0.0, 0.0], "pit_stop_1": [1.0, 1.0]}),
        (3, "staged"): fake({"y0": [0.0, 0.0]}),
    }
    found = summary.compared(trials, ("staged", "pit_stop_1"), ("staged", "y0"), resamples=50)
    # Two won, one lost of four; two of two.
    assert {seed: row["value"] for seed, row in found["seeds"].items()} == {1: 25.0, 2: 100.0}
    change = found["seeds"][1]["quality_points"]
    assert change["value"] == pytest.approx(100 * 1.5 / 4)
    assert change["low"] < change["value"] < change["high"]
    # All differ by as many tokens, so length cannot be controlled for.
    assert "length_controlled" not in found["seeds"][1]
    over = found["over_seeds"]
    # Half the difference is 37.5; the interval of two seeds is 12.706 of it.
    assert (over["value"], over["above"], over["below"]) == (62.5, 2, 0)
    assert over["high"] - over["value"] == pytest.approx(12.7062 * 37.5, rel=1e-4)
    assert over["standard_error"] == pytest.approx(37.5, rel=1e-4)
    # 37.5 points of quality on one seed, 100 on the other.
    assert found["quality_over_seeds"]["value"] == pytest.approx(68.75)
    assert summary.compared(trials, ("own", "pit_stop_1"), ("staged", "y0"), resamples=50) is None


def test_the_best_temperature_is_chosen_over_all_seeds(summary):
    cold, warm = np.array([0.2, 0.4]), np.array([0.5, 0.5])
    trials = {
        (seed, "staged"): fake(
            {"t0.2/y0": cold + shift, "t1.0/y0": warm, "t0.2/pit_stop_1": warm, "t1.0/pit_stop_1": cold}
        )
        for seed, shift in ((1, 0.3), (2, 0.0))
    }
    found = summary.best_temperatures(trials, 1, "staged", resamples=20)
    assert found["best"] == {"y0": "t1.0/y0", "pit_stop_1": "t0.2/pit_stop_1"}
    assert found["mean_quality"]["t0.2/y0"] == pytest.approx(0.45)
    assert found["over y0"]["over_seeds"]["value"] == 0


def test_what_a_method_does_to_first_answers(summary):
    found = summary.mended([1.0, 0.9, 1.0, 0.9, 1.0], first=[0.5, 0.5, 0.5, 1.0, 1.0])
    assert found == {"made_perfect": pytest.approx(2 / 3), "spoiled": 0.5}
    assert summary.mended([1.0, 0.5], first=[0.5, 0.5]) == {"made_perfect": 0.5, "spoiled": None}
    assert summary.mended([1.0, 0.5], first=[1.0, 1.0]) == {"made_perfect": None, "spoiled": 0.5}


def test_a_summary_holds_every_comparison_whose_sides_are_there_and_the_plot_is_drawn(summary, gates, plots, tmp_path):
    methods = ["y0", "sft_policy", "best_of_2", "best_of_3", "other_reference_1", "empty_reference_1"]
    stems = ("pit_plain", "pit_stop", "sft_plain", "sft_stop", "resample")
    methods += [f"{stem}_{k}" for stem in stems for k in (1, 2)]
    swept = ["t0.2/y0", *(f"t0.2/{stem}_{k}" for stem in ("pit_stop", "sft_plain") for k in (1, 2))]
    methods += swept
    dice = np.random.default_rng(0)
    trials = {(seed, "staged"): fake({name: dice.random(8) for name in methods}) for seed in (1, 2)}
    drawn = ("y0", "best_of_2", "best_of_3")
    trials |= {(seed, "more_rlhf"): fake({name: dice.random(8) for name in drawn}) for seed in (1, 2)}
    found = summary.summary(trials, 2, "staged", gates.gates(2), resamples=20)
    asked = {text for text in summary.comparisons(2, "staged") if not text.startswith(("staged over", "own,"))}
    assert found["comparisons"].keys() == asked
    assert all(row["over_seeds"]["seeds"] == 2 for row in found["comparisons"].values())
    assert found["elo"].keys() == set(methods) - set(swept)
    assert found["trials"][0]["imperfect"]["y0"] == 1.0
    assert found["elo"]["y0"]["over_seeds"]["value"] == 0
    assert [(each["seed"], each["variant"]) for each in found["trials"]] == sorted(trials)
    assert all(gate["held"] in (True, False) for gate in found["gates"])
    assert found["steps_to_target"] == {}
    plots.plot(trials, 2, "staged", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    curves = {(1, "staged"): fake({}, [[5, 0.1], [10, 0.3]]), (2, "staged"): fake({}, [[5, 0.2], [10, 0.3]])}
    plots.plot_curves(trials | curves, "staged", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tables_of_markdown_hold_what_was_found(bench, summary, gates, markdown, tmp_path):
    methods = {"y0": [0.5, 1.0], "pit_plain_1": [0.6, 1.0], "pit_stop_1": [1.0, 1.0], "pit_stop_2": [1.0, 1.0]}
    methods |= {"best_of_3": [0.5, 0.9], "resample_2": [0.5, 1.0]}
    methods |= {"t0.2/y0": [0.5, 1.0], "t0.2/pit_stop_2": [0.5, 1.0], "t0.2/sft_plain_2": [0.4, 0.4]}
    costs = {"rl-first": {"steps": 7, "tokens": 1000, "seconds": 1.0, "sampled_tokens": 9, "references_sampled": 2}}
    pairs = [{"model": "R_P", "aspect": "order", "accuracy": 0.75}]
    spent = {"pit_stop_2": 74}
    copied = {"pit_plain_1": {"exact": 0.25, "similarity": 0.5, "n": 2}}
    trial = fake(methods, [[5, 0.1], [10, 0.3]])
    trial |= {"training": costs, "accuracies": pairs, "sampled_tokens": spent, "copy_rate": copied}
    trials = {(seed, "staged"): trial for seed in (1, 2)} | {(1, "more_rlhf"): fake({"y0": [0.5, 0.7]})}
    found = summary.summary(trials, 2, "staged", gates.gates(2), resamples=20)
    made = markdown.tables("describe", found, 2)
    lines = {name: text.splitlines()[2:] for name, text in made.items()}
    assert lines["describe gates"][0] == (
        "| y2 over y0, accepted | win rate minus lose rate | mean at least +20, t-interval above +10 "
        "| +50.0 [+50.0, +50.0] | yes |"
    )
    row = "| 2 passes, accepted | 1.0000 (1.000 to 1.000) | 0.0 % | 100.0 % | 0.0 % | 37.0 | "
    assert any(line.startswith(row) for line in lines["describe methods"])
    assert (
        "| one pass, accepted | +50.0, +50.0 | 2 of 2 | +50.0 [+50.0, +50.0] | 0.0 | 18.0 |  |"
        in (lines["describe comparisons"])
    )
    assert lines["describe seeds"] == [
        f"| {seed} | .750 | 1.000 | .700 | .750 | .750 | .750 | .400 |" for seed in (1, 2)
    ]
    assert lines["describe temperatures"][0] == "| y0, one answer | .7500 |"
    assert [line.split(" | ")[0] for line in lines["describe variants"]] == ["| `staged`", "| `more_rlhf`"]
    # Side by side without a difference stands what ran on the same seeds: the second has no more RLHF.
    assert lines["describe variants"][0].endswith("| .800 (.800) | 1.000 (1.000) | 1 |")
    assert lines["describe steps"] == ["| `staged` | 10 |"]
    assert lines["describe copies"] == ["| one plain pass | .250 (.250 to .250) | .500 (.500 to .500) |"]
    assert lines["describe rewards"] == ["| order | .750 (.750 to .750) |"]
    assert lines["describe training"] == ["| rl-first | 7 | 1,000 | 9 | 2 |"]
    # A page has some of the places.
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- describe training: begin -->\nold\n<!-- describe training: end -->\nb\n")
    bench("evidence").fill(page, made)
    assert page.read_text() == (
        f"a\n<!-- describe training: begin -->\n{made['describe training']}\n<!-- describe training: end -->\nb\n"
    )


def test_comparisons_go_with_what_moves_with_them(summary, markdown, traits):
    trials = {}
    for seed in range(10):
        # One pass wins on so many of ten prompts; what it does with another's answer rises with that, y0 falls.
        won = [1.0] * seed + [0.5] * (10 - seed)
        methods = {"pit_stop_1": won, "best_of_2": [0.5] * 10, "other_reference_1": [0.1 * seed + 0.01 * (seed % 2)]}
        seen = [{"model": "R_P", "aspect": "samples of M_P^RL", "accuracy": 0.5 + 0.01 * (seed % 3)}]
        trials[seed, "staged"] = fake({**methods, "y0": [1 - 0.01 * seed]}) | {"accuracies": seen}
    text, last = traits.over_draws(5)
    assert {text, last} <= summary.comparisons(5, "staged").keys()
    said = {text: summary.compared(trials, *summary.comparisons(5, "staged")[text], resamples=20)}
    found = traits.goes_with(trials, said, 5, "staged")
    values = {what: row[text]["value"] for what, row in found.items()}
    assert values["y0"] == pytest.approx(-1)
    assert 0.99 < values["one plain pass on another prompt's answer"] < 1
    assert abs(values["R_P's accuracy on samples of M_P^RL"]) < 0.2
    assert "M_P, one answer" not in values
    assert markdown.traits({"goes_with": found}).splitlines()[0] == "| of a seed | one pass over best of 2 by R_P |"
    # Few seeds say nothing.
    few = {text: {"seeds": {seed: said[text]["seeds"][seed] for seed in range(7)}}}
    assert traits.goes_with(trials, few, 5, "staged") == {}
    assert markdown.traits({"goes_with": {}}) == ""


def test_seeds_whose_policy_is_wrong_by_habit_stand_apart(markdown, traits):
    said = {
        text: {"seeds": {seed: {"value": value} for seed, value in enumerate((8.0, -2.0, 10.0, -4.0))}}
        for text in ("one pass over best of 2 by R_P", "2 passes over best of 3 by R_P", "2 passes over resampling")
    }
    # Of twenty coolest answers seeds 0 and 2 have two that are not perfect, the others one: 95 % are enough.
    cool = {seed: [1.0] * (19 - (seed % 2 == 0)) + [0.85] * (1 + (seed % 2 == 0)) for seed in range(4)}
    trials = {(seed, "staged"): fake({"t0.2/y0": values}) for seed, values in cool.items()}
    found = traits.by_habit(trials, said, 2, "staged")
    assert found["seeds"] == {"habit": [0, 2], "none": [1, 3]}
    over = found["over"]["2 passes over resampling"]
    assert [(side["value"], side["above"], side["seeds"]) for side in over.values()] == [(9.0, 2, 2), (-3.0, 0, 2)]
    lines = markdown.habits({"by_habit": found}).splitlines()
    assert lines[0] == "| mean and t-interval, points; above 0 | 0, 2 | the other 2 |"
    assert lines[2].startswith("| one pass over best of 2 by R_P | +9.0 [-3.7, +21.7], 2 of 2 | -3.0 [")
    # One seed of a kind is no kind.
    assert traits.by_habit({key: trial for key, trial in trials.items() if key[0]}, said, 2, "staged") == {}
    assert markdown.habits({"by_habit": {}}) == ""


def test_many_seeds_are_told_by_their_range(markdown):
    assert markdown.each([1.0, -2.0], "{:+.0f}".format) == "+1, -2"
    assert markdown.each([1.0, -2.0, 0.0, 0.0, 0.0, 0.0], "{:+.0f}".format) == "-2 to +1"


def test_a_plot_shows_no_variant_that_lacks_a_seed(plots):
    trials = {(seed, name): fake({"y0": [seed / 10]}) for seed, name in [(1, "staged"), (2, "staged"), (2, "own")]}
    assert plots.means(trials, "staged", ["y0"], "staged").tolist() == [[0.1], [0.2]]
    assert len(plots.means(trials, "own", ["y0"], "staged")) == 0


def over(value, low):
    return {"value": value, "low": low, "high": 2 * value - low, "seeds": 5, "above": 5, "below": 0}


def test_gates_ask_for_the_mean_and_the_lower_end(gates):
    first = gates.gates(2)[0]
    assert first.rule == "mean at least +20, t-interval above +10"
    text = "2 passes, accepted"
    asked = {(20.0, 10.1): True, (19.9, 15.0): False, (30.0, 10.0): False}
    assert {key: first.judged({text: {"over_seeds": over(*key)}})["held"] for key in asked} == asked
    said = first.judged({})
    assert (said["held"], said["unit"], "value" in said) == (None, "win rate minus lose rate, points", False)


def test_gates_of_passes_look_at_quality(gates):
    text = "pass 2 over the answer before, accepted"
    gate = next(gate for gate in gates.gates(2) if gate.comparison == text)
    rows = {text: {"over_seeds": over(-9.0, -10.0), "quality_over_seeds": over(-0.1, -0.4)}}
    assert gate.judged(rows)["held"] is True
    assert gate.judged({text: {"quality_over_seeds": over(0.1, -0.5)}})["held"] is False


def test_every_gate_names_a_comparison_that_is_made(summary, gates):
    assert {gate.comparison for gate in gates.gates(5)} <= summary.comparisons(5, "staged").keys()


def test_the_target_is_the_end_of_the_main_variant(gates):
    rising = [[5 * k, 0.1 * k] for k in range(1, 6)]
    trials = {
        (1, "staged"): fake({}, rising),
        (2, "staged"): fake({}, [[step, worth + 0.2] for step, worth in rising]),
        (1, "own"): fake({}, [[5, 0.0], [10, 0.6], [15, 0.3]]),
        (2, "own"): fake({}, [[5, 0.0], [10, 0.5], [15, 0.59]]),
        (1, "more_rlhf"): fake({}),
    }
    found = gates.steps_to_target(trials, "staged")
    # Ends of .5 and .7, less .01.
    assert found["target"] == pytest.approx(0.59)
    assert found["steps"] == {"own": {1: 10, 2: 15}, "staged": {1: None, 2: 20}}
