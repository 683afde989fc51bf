"""Summary of the trials of a family: comparisons with intervals, Elo, quality by pass, tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from _evidence.gates import Gate
from _evidence.traits import correlations, split_by_habit
from _evidence.variants import VARIANTS, Trials
from pit.evaluate.across import across_seeds, elo, t_quantile
from pit.evaluate.stats import delta, length_controlled_delta, paired_mean_difference

Method = tuple[str, str]
"""A variant and one of its methods."""

REFITS = 400
"""Most resamples of a figure that is fitted again in each of them: the length regression, Elo."""


def unshared(trials: Trials) -> list[int]:
    """Return the seeds whose variants improve different first answers, though all should share one policy.

    A checkpoint that is trained again on another machine is not the same to the last bit.

    >>> one, other = ({"quality": {"y0": worth}} for worth in ([0.5, 1.0], [0.5, 0.9]))
    >>> unshared({(1, "staged"): one, (1, "own"): one, (2, "staged"): one, (2, "own"): other, (2, "more_rlhf"): other})
    [2]
    """
    firsts: dict[int, set[tuple[float, ...]]] = {}
    for (seed, variant), trial in trials.items():
        if VARIANTS[variant].improver is not None:
            firsts.setdefault(seed, set()).add(tuple(trial["quality"]["y0"]))
    return sorted(seed for seed, answers in firsts.items() if len(answers) > 1)


def of_shared_seeds(trials: Trials) -> dict[tuple[int, str], Mapping[str, Any]]:
    """Return the trials of the seeds that every variant ran.

    Means over other seeds would look like a difference between variants.

    >>> trials = dict.fromkeys([(1, "staged"), (2, "staged"), (2, "own"), (3, "own")], {})
    >>> list(of_shared_seeds(trials))
    [(2, 'staged'), (2, 'own')]
    """
    variants = {variant for _, variant in trials}
    return {key: trial for key, trial in trials.items() if all((key[0], variant) in trials for variant in variants)}


def comparisons(passes: int, main: str) -> dict[str, tuple[Method, Method]]:
    """Return every reported comparison by name: the candidate and its rival."""
    base: Method = (main, "y0")
    last, best = f"pit_stop_{passes}", f"best_of_{passes + 1}"
    named: dict[str, tuple[Method, Method]] = {
        "one plain pass": ((main, "pit_plain_1"), base),
        "one pass, accepted": ((main, "pit_stop_1"), base),
        f"{passes} plain passes": ((main, f"pit_plain_{passes}"), base),
        f"{passes} passes, accepted": ((main, last), base),
        "M_P^RL over M_P": (base, (main, "sft_policy")),
        "own reference over another prompt's": ((main, "pit_plain_1"), (main, "other_reference_1")),
        "own reference over none": ((main, "pit_plain_1"), (main, "empty_reference_1")),
        "one pass over best of 2 by R_P": ((main, "pit_stop_1"), (main, "best_of_2")),
        f"{passes} passes over best of {passes + 1} by R_P": ((main, last), (main, best)),
        f"{passes} passes over resampling": ((main, last), (main, f"resample_{passes}")),
        f"{passes} passes over the fine-tuned improver's": ((main, last), (main, f"sft_stop_{passes}")),
        "one plain pass over the fine-tuned improver's": ((main, "pit_plain_1"), (main, "sft_plain_1")),
        "more RLHF over y0": (("more_rlhf", "y0"), base),
        "one pass over more RLHF": ((main, "pit_stop_1"), ("more_rlhf", "y0")),
        "one pass over best of 2 after more RLHF": ((main, "pit_stop_1"), ("more_rlhf", "best_of_2")),
        f"{passes} passes over best of {passes + 1} after more RLHF": ((main, last), ("more_rlhf", best)),
        f"{passes} passes accepted over {passes} plain": ((main, last), (main, f"pit_plain_{passes}")),
    }
    for method, rival in ((f"pit_plain_{passes}", best), (last, best), (last, f"sft_plain_{passes}")):
        named[f"own, {method}, over {rival}"] = (("own", method), (main, rival))
    for k in range(1, passes + 1):
        before = "y0" if k == 1 else f"pit_stop_{k - 1}"
        named[f"pass {k} over the answer before, accepted"] = ((main, f"pit_stop_{k}"), (main, before))
    for name, variant in VARIANTS.items():
        if name != main and variant.improver is not None:
            for candidate in dict.fromkeys((main, variant.of or main)):
                for method in ("pit_plain_1", last):
                    named[f"{candidate} over {name}, {method}"] = ((candidate, method), (name, method))
    return named


def compared(trials: Trials, candidate: Method, baseline: Method, *, resamples: int) -> dict[str, Any] | None:
    """Return Delta in points: each seed with its interval over prompts, and a t-interval over two or more seeds.

    None where no seed has both sides.
    """
    result: dict[str, Any] = {"seeds": {}}
    for seed in sorted({seed for seed, _ in trials}):
        sides = [trials.get((seed, variant), {}) for variant, _ in (candidate, baseline)]
        names = (candidate[1], baseline[1])
        if not all(side and name in side["quality"] for side, name in zip(sides, names, strict=True)):
            continue
        quality, base = (np.array(side["quality"][name]) for side, name in zip(sides, names, strict=True))
        length, base_length = (np.array(side["length"][name], float) for side, name in zip(sides, names, strict=True))
        plain = delta(quality, base, seed=seed, resamples=resamples)
        row: dict[str, Any] = {"value": plain.value, "low": plain.low, "high": plain.high, "n": plain.n}
        difference = length - base_length
        # Where all pairs differ in length by the same amount, nothing separates length from quality.
        if np.any(difference != difference[0]) or difference[0] == 0:
            refits = min(resamples, REFITS)
            controlled = length_controlled_delta(quality, base, length, base_length, seed=seed, resamples=refits)
            row["length_controlled"] = controlled._asdict() | {"method": "at equal length"}
        change = paired_mean_difference(100 * quality, 100 * base, seed=seed, resamples=resamples)
        row["quality_points"] = {"value": change.value, "low": change.low, "high": change.high}
        result["seeds"][seed] = row
    rows = result["seeds"].values()
    if len(rows) >= 2:
        result["over_seeds"] = over_seeds([row["value"] for row in rows])
        result["quality_over_seeds"] = over_seeds([row["quality_points"]["value"] for row in rows])
    return result if rows else None


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Return mean, t-interval, signs, and the standard error of the mean of two or more seeds."""
    across = across_seeds(values)
    return across._asdict() | {"standard_error": (across.high - across.value) / t_quantile(across.seeds - 1)}


def ratings(trials: Trials, main: str, *, resamples: int) -> dict[str, Any]:
    """Return Elo over y0 of all methods of the main variant at temperature 1: per seed, and over seeds."""
    by_seed = {}
    for (seed, variant), trial in sorted(trials.items()):
        if variant == main:
            scores = {name: np.array(values) for name, values in trial["quality"].items() if not name.startswith("t")}
            by_seed[seed] = elo(scores, "y0", seed=seed, resamples=resamples)
    names = list(next(iter(by_seed.values()), {}))
    result: dict[str, Any] = {}
    for name in names:
        result[name] = {"seeds": {seed: rating[name]._asdict() for seed, rating in by_seed.items()}}
        if len(by_seed) >= 2:
            over = across_seeds([rating[name].value for rating in by_seed.values()])
            result[name]["over_seeds"] = over._asdict()
    return result


def best_of_swept(trials: Trials, passes: int, main: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return mean quality by swept method, and the best temperature's name of y0, of the last pass, and of M_PIT's."""
    swept_trials = [trial for (_, variant), trial in sorted(trials.items()) if variant == main]
    methods = sorted({name for trial in swept_trials for name in trial["quality"] if name.startswith("t")})
    means = {name: float(np.mean([np.mean(trial["quality"][name]) for trial in swept_trials])) for name in methods}
    best = {}
    for method in ("y0", f"pit_stop_{passes}", f"sft_plain_{passes}"):
        swept = {name: mean for name, mean in means.items() if name.endswith(f"/{method}")}
        if swept:
            best[method] = max(swept, key=lambda name: swept[name])
    return means, best


def best_temperatures(trials: Trials, passes: int, main: str, *, resamples: int) -> dict[str, Any]:
    """Compare best with best: each method at the temperature at which its mean quality over all seeds is highest."""
    means, best = best_of_swept(trials, passes, main)
    result: dict[str, Any] = {"mean_quality": means, "best": best}
    improved = best.get(f"pit_stop_{passes}")
    for rival in ("y0", f"sft_plain_{passes}"):
        if improved and rival in best:
            result[f"over {rival}"] = compared(trials, (main, improved), (main, best[rival]), resamples=resamples)
    return result


def mended(quality: Sequence[float], first: Sequence[float]) -> dict[str, float | None]:
    """Return the share of imperfect first answers that a method made perfect, and of perfect ones that it spoiled.

    >>> mended([1.0, 0.5, 1.0, 0.2], first=[0.5, 0.5, 1.0, 1.0])
    {'made_perfect': 0.5, 'spoiled': 0.5}
    """
    perfect, before = np.array(quality) == 1, np.array(first) == 1
    return {
        "made_perfect": float(perfect[~before].mean()) if not before.all() else None,
        "spoiled": float(1 - perfect[before].mean()) if before.any() else None,
    }


KEPT = ("sampled_tokens", "accepted", "training", "copy_rate", "accuracies", "answer_seconds", "commit")
"""Fields of a trial that the summary takes over unchanged."""


def summary(
    trials: Trials, passes: int, main: str, rules: Sequence[Gate] = (), *, resamples: int = 2000
) -> dict[str, Any]:
    """Return all figures of one family: per seed and over seeds, no figure of a single prompt."""
    rows = {
        text: row
        for text, (candidate, baseline) in comparisons(passes, main).items()
        if (row := compared(trials, candidate, baseline, resamples=resamples)) is not None
    }
    return {
        "variants_run": sorted({variant for _, variant in trials}),
        "gates": [gate.judged(rows) for gate in rules],
        "comparisons": rows,
        "shared_seeds": sorted({seed for seed, _ in of_shared_seeds(trials)}),
        "elo": ratings(trials, main, resamples=min(resamples, REFITS)),
        "correlations": correlations(trials, rows, passes, main),
        "habits": split_by_habit(trials, rows, passes, main),
        "temperature": best_temperatures(trials, passes, main, resamples=resamples),
        "trials": [
            {
                "seed": seed,
                "variant": variant,
                "prompts": len(trial["quality"]["y0"]),
                "mean_quality": {name: float(np.mean(values)) for name, values in trial["quality"].items()},
                # No win rate over a method can be above the share of its answers that are not perfect.
                "imperfect": {name: float(np.mean(np.array(q) < 1)) for name, q in trial["quality"].items()},
                "mended": {name: mended(q, trial["quality"]["y0"]) for name, q in trial["quality"].items()},
                **{key: trial[key] for key in KEPT},
            }
            for (seed, variant), trial in sorted(trials.items())
        ],
    }
