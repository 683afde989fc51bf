"""Book-keeping of the evidence: equal steps, shared stages, fresh seeds, comparisons, archives and pages."""

import hashlib
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Import a module of bench/, which is not a package."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def module(name):
    """Return a fixture of that name: a module of `_evidence`."""
    return pytest.fixture(lambda bench: bench(f"_evidence.{name}"), name=name)


variants, plots, summary = module("variants"), module("plots"), module("summary")
gates, traits, markdown = module("gates"), module("traits"), module("markdown")
archive, per_seed, pages = module("archive"), module("per_seed"), module("pages")


@pytest.mark.parametrize("family", ["describe", "relay"])
@pytest.mark.parametrize("small", [False, True])
def test_every_variant_has_the_recipes_steps_to_spend(variants, family, small):
    base = variants.base_config(family, 1, small=small)
    stages = {"describe": 2, "relay": 2 if small else 1}[family]
    improver = sum((base.rl_improver_0.steps, base.rl_improver_1.steps)[:stages])
    for name in variants.VARIANTS:
        config = variants.config_of(family, name, 1, small=small)
        sections = {stage.name: stage.settings(config) for stage in variants.stages_for(config, name)}
        spent = sum(section.steps for stage, section in sections.items() if stage.startswith("rl-improver-"))
        policy = config.rl_policy.steps - base.rl_policy.steps
        assert (spent, policy) == ((0, improver) if name == "more_rlhf" else (improver, 0))
        assert config.data.task == family
        prompts = {section.prompts for stage, section in sections.items() if stage.startswith("rl-")}
        assert prompts == {base.rl_policy.prompts}


def test_variants_share_what_is_the_same_and_seeds_share_nothing(variants):
    def ids(variant, seed):
        config = variants.config_of("describe", variant, seed)
        return {stage.name: variants.identity(config, stage) for stage in variants.stages_for(config, variant)}

    staged, own, more = ids("staged", 1), ids("own", 1), ids("more_rlhf", 1)
    common = ["sft-policy", "sft-improver", "reward-quality", "reward-gap"]
    for other in (own, more, ids("second_only", 1)):
        assert all(staged[name] == other[name] for name in common)
    assert staged["rl-policy"] == own["rl-policy"] != more["rl-policy"]
    # A gap model that learned one pair of orders is another, and so is all RL against it.
    one = ids("one_pair", 1)
    assert {name for name in one if one[name] != staged[name]} == {"reward-gap", "rl-improver-0", "rl-improver-1"}
    assert staged["rl-improver-0"] != own["rl-improver-0"]
    assert not set(staged.values()) & set(ids("staged", 2).values())
    final = [seed for seeds in variants.FINAL_SEEDS.values() for seed in seeds]
    assert not set(variants.EXPLORE_SEEDS) & set(final)
    assert len(final) == len(set(final))
    assert tuple(variants.FINAL_SEEDS) == variants.FAMILIES
    assert all(len(seeds) >= 5 for seeds in variants.FINAL_SEEDS.values())


@pytest.mark.parametrize(
    ("main", "curricula", "losses"),
    [("staged", {"staged"}, {"staged"}), ("first_only", {"first_only"}, {"first_only", "staged"})],
)
def test_a_loss_is_also_compared_with_the_variant_that_differs_in_nothing_else(
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


def fake(qualities):
    return {
        "quality": {name: list(values) for name, values in qualities.items()},
        "length": {name: [len(name)] * len(values) for name, values in qualities.items()},
        "sampled_tokens": {},
        "training": {},
        "copy_rate": {},
        "accuracies": [],
        "accepted": {},
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


def test_mended_counts_first_answers_made_perfect_and_spoiled(summary):
    found = summary.mended([1.0, 0.9, 1.0, 0.9, 1.0], first=[0.5, 0.5, 0.5, 1.0, 1.0])
    assert found == {"made_perfect": pytest.approx(2 / 3), "spoiled": 0.5}
    assert summary.mended([1.0, 0.5], first=[0.5, 0.5]) == {"made_perfect": 0.5, "spoiled": None}
    assert summary.mended([1.0, 0.5], first=[1.0, 1.0]) == {"made_perfect": None, "spoiled": 0.5}


def test_a_summary_holds_every_comparison_whose_sides_are_there(summary, gates):
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
    assert [(each["seed"], each["variant"]) for each in found["trials"]] == sorted(trials)
    assert all(gate["held"] in (True, False) for gate in found["gates"])
    assert found["elo"]["y0"]["over_seeds"]["value"] == 0


def test_tables_of_markdown_hold_the_figures_of_a_summary(bench, summary, gates, markdown, tmp_path):
    methods = {"y0": [0.5, 1.0], "pit_plain_1": [0.6, 1.0], "pit_stop_1": [1.0, 1.0], "pit_stop_2": [1.0, 1.0]}
    methods |= {"best_of_3": [0.5, 0.9], "resample_2": [0.5, 1.0]}
    methods |= {"t0.2/y0": [0.5, 1.0], "t0.2/pit_stop_2": [0.5, 1.0], "t0.2/sft_plain_2": [0.4, 0.4]}
    costs = {"rl-first": {"steps": 7, "tokens": 1000, "seconds": 1.0, "sampled_tokens": 9, "references_sampled": 2}}
    pairs = [{"model": "R_P", "aspect": "order", "accuracy": 0.75}]
    spent = {"pit_stop_2": 74}
    copied = {"pit_plain_1": {"exact": 0.25, "similarity": 0.5, "n": 2}}
    trial = fake(methods)
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
    assert lines["describe copies"] == ["| one plain pass | .250 (.250 to .250) | .500 (.500 to .500) |"]
    assert lines["describe rewards"] == ["| order | .750 (.750 to .750) |"]
    assert lines["describe training"] == ["| rl-improver-0 | 7 | 1,000 | 9 | 2 |"]
    # A page has some of the places.
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- describe training: begin -->\nold\n<!-- describe training: end -->\nb\n")
    bench("study_evidence").fill(page, made)
    assert page.read_text() == (
        f"a\n<!-- describe training: begin -->\n{made['describe training']}\n<!-- describe training: end -->\nb\n"
    )


def test_comparisons_correlate_with_traits_that_move_with_them(summary, markdown, traits):
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
    found = traits.correlations(trials, said, 5, "staged")
    values = {what: row[text]["value"] for what, row in found.items()}
    assert values["y0"] == pytest.approx(-1)
    assert 0.99 < values["one plain pass on another prompt's answer"] < 1
    assert abs(values["R_P's accuracy on samples of M_P^RL"]) < 0.2
    assert "M_P, one answer" not in values
    assert (
        markdown.traits({"correlations": found}).splitlines()[0]
        == "| trait of a seed | one pass over best of 2 by R_P |"
    )
    # Few seeds say nothing.
    few = {text: {"seeds": {seed: said[text]["seeds"][seed] for seed in range(7)}}}
    assert traits.correlations(trials, few, 5, "staged") == {}
    assert markdown.traits({"correlations": {}}) == ""


def test_seeds_whose_policy_is_wrong_by_habit_have_a_column_of_their_own(markdown, traits):
    said = {
        text: {"seeds": {seed: {"value": value} for seed, value in enumerate((8.0, -2.0, 10.0, -4.0))}}
        for text in ("one pass over best of 2 by R_P", "2 passes over best of 3 by R_P", "2 passes over resampling")
    }
    # Of twenty coolest answers seeds 0 and 2 have two that are not perfect, the others one: 95 % are enough.
    cool = {seed: [1.0] * (19 - (seed % 2 == 0)) + [0.85] * (1 + (seed % 2 == 0)) for seed in range(4)}
    trials = {(seed, "staged"): fake({"t0.2/y0": values}) for seed, values in cool.items()}
    found = traits.split_by_habit(trials, said, 2, "staged")
    assert found["seeds"] == {"habit": [0, 2], "none": [1, 3]}
    over = found["over"]["2 passes over resampling"]
    assert [(side["value"], side["above"], side["seeds"]) for side in over.values()] == [(9.0, 2, 2), (-3.0, 0, 2)]
    lines = markdown.habits({"habits": found}).splitlines()
    assert lines[0] == "| mean and t-interval, points; above 0 | 0, 2 | the other 2 |"
    assert lines[2].startswith("| one pass over best of 2 by R_P | +9.0 [-3.7, +21.7], 2 of 2 | -3.0 [")
    # One seed of a kind is no kind.
    assert traits.split_by_habit({key: trial for key, trial in trials.items() if key[0]}, said, 2, "staged") == {}
    assert markdown.habits({"habits": {}}) == ""


def test_many_seeds_are_shown_by_their_range(markdown):
    assert markdown.per_seed([1.0, -2.0], "{:+.0f}".format) == "+1, -2"
    assert markdown.per_seed([1.0, -2.0, 0.0, 0.0, 0.0, 0.0], "{:+.0f}".format) == "-2 to +1"


def measured(dice, passes=2):
    """Return the quality of every method that a plot or a page asks for, for 8 prompts."""
    numbered = ("pit_plain", "pit_stop", "sft_plain", "sft_stop", "resample")
    names = ["y0", "sft_policy", "other_reference_1", "empty_reference_1", "best_of_2", "best_of_3"]
    names += [f"{stem}_{k}" for stem in numbered for k in range(1, passes + 1)]
    names += ["t0.2/y0", *(f"t0.2/{stem}_{k}" for stem in ("pit_stop", "sft_plain") for k in (1, 2))]
    return {name: dice.random(8) for name in names}


def test_the_csv_file_holds_qualities_and_points_per_seed(per_seed, tmp_path):
    dice = np.random.default_rng(0)
    trials = {(seed, "staged"): fake(measured(dice)) for seed in (1, 2)} | {(1, "more_rlhf"): fake({"y0": [0.5] * 8})}
    figures = per_seed.figures(trials, 2, "staged")
    assert figures[1, "staged"]["pit_stop_2"] == pytest.approx(np.mean(trials[1, "staged"]["quality"]["pit_stop_2"]))
    y0, better = (np.array(trials[1, name]["quality"]["y0"]) for name in ("staged", "more_rlhf"))
    assert figures[1, "staged"]["more RLHF over y0"] == pytest.approx(100 * np.mean(np.sign(better - y0)))
    assert "more RLHF over y0" not in figures[2, "staged"]
    file = tmp_path / "evidence.csv"
    file.write_text(per_seed.to_csv({"describe": figures}), encoding="utf-8")
    read = per_seed.read_csv(file)["describe"]
    assert read.keys() == figures.keys()
    for key, row in figures.items():
        assert read[key] == pytest.approx(row, abs=0.05)
        assert all(read[key][name] == pytest.approx(row[name], abs=5e-5) for name in row if " " not in name)
    file.write_text("seed,family,variant\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"evidence\.csv: the first columns"):
        per_seed.read_csv(file)


def test_a_plot_leaves_out_a_variant_that_lacks_a_seed(per_seed, plots, monkeypatch, tmp_path):
    dice = np.random.default_rng(0)
    trials = {(seed, "staged"): fake(measured(dice)) for seed in (1, 2)}
    trials |= {(2, "own"): fake(measured(dice)), (1, "more_rlhf"): fake(measured(dice))}
    trials[2, "more_rlhf"] = fake(measured(dice))
    lines = []
    monkeypatch.setattr(plots, "_line", lambda axes, x, means, label, *_, **more: lines.append((label, len(means))))
    plots.plot(per_seed.figures(trials, 2, "staged"), 2, "staged", tmp_path / "plot.png")
    drawn = dict(lines)
    assert "PIT with RL,2, every pass kept" not in drawn
    assert drawn["PIT, accepted"] == drawn["best of n by R_P, after more RLHF"] == 2
    assert "PIT, accepted, at temperature 0.2, its best" in drawn
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_an_archive_gives_back_its_members_and_equal_members_are_equal_bytes(archive, tmp_path):
    members = {archive.member_name("relay", seed, "own"): json.dumps({"seed": seed}).encode() for seed in (2, 1)}
    one, other = archive.archive_of(tmp_path, "one"), archive.archive_of(tmp_path, "other")
    assert archive.read_members(one) == {}
    archive.write_members(one, members)
    archive.write_members(other, dict(sorted(members.items())))
    assert archive.read_members(one) == members
    assert one.read_bytes() == other.read_bytes()
    listed = (tmp_path / "one.sha256").read_text(encoding="utf-8").splitlines()
    assert listed == [f"{hashlib.sha256(members[name]).hexdigest()}  {name}" for name in sorted(members)]


def test_an_archive_that_does_not_match_its_digests_is_refused(archive, tmp_path):
    file = archive.archive_of(tmp_path, "relay")
    archive.write_members(file, {"a.json": b"1", "b.json": b"2"})
    digests = file.with_name("relay.sha256").read_text(encoding="utf-8")
    archive.write_members(file, {"a.json": b"1", "b.json": b"3"})
    file.with_name("relay.sha256").write_text(digests, encoding="utf-8")
    with pytest.raises(archive.ArchiveError, match=r"b\.json: SHA-256"):
        archive.read_members(file)
    archive.write_members(file, {"a.json": b"1"})
    file.with_name("relay.sha256").write_text(digests, encoding="utf-8")
    with pytest.raises(archive.ArchiveError, match=r"b\.json: SHA-256 is missing"):
        archive.read_members(file)


def test_a_result_is_added_to_an_archive_but_replaces_none(archive, tmp_path):
    file = archive.archive_of(tmp_path, "relay")
    assert archive.add_members(file, {"a.json": b"1"}) == 1
    assert archive.add_members(file, {"a.json": b"1", "b.json": b"2"}) == 1
    assert sorted(archive.read_members(file)) == ["a.json", "b.json"]
    with pytest.raises(archive.ArchiveError, match=r"a\.json"):
        archive.add_members(file, {"a.json": b"3"})


def test_committed_pages_are_made_of_the_committed_figures(per_seed, pages, variants):
    by_family = per_seed.read_csv(BENCH / "results" / "evidence.csv")
    assert tuple(by_family) == variants.FAMILIES
    assert (BENCH / "results" / "evidence.csv").stat().st_size < 50_000
    text = "".join((BENCH.parent / page).read_text("utf-8") for page in ("README.md", "docs/studies/evidence.md"))
    for name, table in pages.tables(by_family).items():
        assert f"<!-- {name}: begin -->\n{table}\n<!-- {name}: end -->" in text, name


def test_committed_digests_name_a_result_per_row_of_the_csv_file(archive, per_seed):
    for family, figures in per_seed.read_csv(BENCH / "results" / "evidence.csv").items():
        lines = (BENCH / "results" / "evidence" / f"{family}.sha256").read_text(encoding="utf-8").splitlines()
        assert {line.split()[1] for line in lines} == {archive.member_name(family, *key) for key in figures}


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
