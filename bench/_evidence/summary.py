"""What trials of several seeds say together: comparisons with intervals, Elo, quality by pass, tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from _evidence.gates import Gate, steps_to_target
from _evidence.traits import by_habit, goes_with
from _evidence.variants import VARIANTS, Trials
from pit.evaluate.across import across_seeds, elo, t_quantile
from pit.evaluate.stats import delta, length_controlled_delta, paired_mean_difference

Method = tuple[str, str]
"""A variant, and one of its methods."""

REFITS = 400
"""Most resamples of what is fitted anew in each of them: the length regression, Elo."""


def unshared(trials: Trials) -> list[int]:
    """Seeds whose variants improve different first answers, though all of them begin with one policy's.

    Checkpoints that are trained anew on another machine are not the same to the last bit.

    >>> one, other = ({"quality": {"y0": worth}} for worth in ([0.5, 1.0], [0.5, 0.9]))
    >>> unshared({(1, "staged"): one, (1, "own"): one, (2, "staged"): one, (2, "own"): other, (2, "more_rlhf"): other})
    [2]
    """
    firsts: dict[int, set[tuple[float, ...]]] = {}
    for (seed, variant), trial in trials.items():
        if VARIANTS[variant].improver is not None:
            firsts.setdefault(seed, set()).add(tuple(trial["quality"]["y0"]))
    return sorted(seed for seed, found in firsts.items() if len(found) > 1)


def of_shared_seeds(trials: Trials) -> dict[tuple[int, str], Mapping[str, Any]]:
    """Those of the seeds that every variant has which has any.

    Means over other seeds would look like a difference between variants.

    >>> trials = dict.fromkeys([(1, "staged"), (2, "staged"), (2, "own"), (3, "own")], {})
    >>> list(of_shared_seeds(trials))
    [(2, 'staged'), (2, 'own')]
    """
    variants = {variant for _, variant in trials}
    return {key: trial for key, trial in trials.items() if all((key[0], variant) in trials for variant in variants)}


def comparisons(passes: int, main: str) -> dict[str, tuple[Method, Method]]:
    """Every comparison that is reported: what it says, the candidate, and what it is held against."""
    base: Method = (main, "y0")
    last, best = f"pit_stop_{passes}", f"best_of_{passes + 1}"
    found: dict[str, tuple[Method, Method]] = {
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
        "one pass over more RLHF": ((main, "pit_stop_1"), ("more_rlhf", "y0")),
        "one pass over best of 2 after more RLHF": ((main, "pit_stop_1"), ("more_rlhf", "best_of_2")),
        f"{passes} passes over best of {passes + 1} after more RLHF": ((main, last), ("more_rlhf", best)),
        f"{passes} passes accepted over {passes} plain": ((main, last), (main, f"pit_plain_{passes}")),
    }
    for method, rival in ((f"pit_plain_{passes}", best), (last, best), (last, f"sft_plain_{passes}")):
        found[f"own, {method}, over {rival}"] = (("own", method), (main, rival))
    for k in range(1, passes + 1):
        before = "y0" if k == 1 else f"pit_stop_{k - 1}"
        found[f"pass {k} over the answer before, accepted"] = ((main, f"pit_stop_{k}"), (main, before))
    for name, variant in VARIANTS.items():
        if name != main and variant.improver is not None:
            for held in dict.fromkeys((main, variant.of or main)):
                for method in ("pit_plain_1", last):
                    found[f"{held} over {name}, {method}"] = ((held, method), (name, method))
    return found


def compared(trials: Trials, candidate: Method, baseline: Method, *, resamples: int) -> dict[str, Any] | None:
    """Delta in points: each seed with its interval over prompts, and a t-interval over seeds where there are two."""
    seeds = sorted({seed for seed, _ in trials})
    found: dict[str, Any] = {"seeds": {}}
    for seed in seeds:
        sides = [trials.get((seed, variant), {}) for variant, _ in (candidate, baseline)]
        names = (candidate[1], baseline[1])
        if not all(side and name in side["quality"] for side, name in zip(sides, names, strict=True)):
            continue
        quality, base = (np.array(side["quality"][name]) for side, name in zip(sides, names, strict=True))
        length, base_length = (np.array(side["length"][name], float) for side, name in zip(sides, names, strict=True))
        plain = delta(quality, base, seed=seed, resamples=resamples)
        row: dict[str, Any] = {"value": plain.value, "low": plain.low, "high": plain.high, "n": plain.n}
        difference = length - base_length
        # Where all differ in length by the same, length and quality cannot be told apart.
        if np.any(difference != difference[0]) or difference[0] == 0:
            refits = min(resamples, REFITS)
            controlled = length_controlled_delta(quality, base, length, base_length, seed=seed, resamples=refits)
            row["length_controlled"] = controlled._asdict() | {"method": "at equal length"}
        change = paired_mean_difference(100 * quality, 100 * base, seed=seed, resamples=resamples)
        row["quality_points"] = {"value": change.value, "low": change.low, "high": change.high}
        found["seeds"][seed] = row
    rows = found["seeds"].values()
    if len(rows) >= 2:
        found["over_seeds"] = over_seeds([row["value"] for row in rows])
        found["quality_over_seeds"] = over_seeds([row["quality_points"]["value"] for row in rows])
    return found if rows else None


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean, t-interval, signs, and the standard error of the mean; one value a seed, two or more."""
    found = across_seeds(values)
    return found._asdict() | {"standard_error": (found.high - found.value) / t_quantile(found.seeds - 1)}


def ratings(trials: Trials, main: str, *, resamples: int) -> dict[str, Any]:
    """Elo over y0 of all methods of the main variant at temperature 1: each seed's interval, and over seeds."""
    by_seed = {}
    for (seed, variant), trial in sorted(trials.items()):
        if variant == main:
            scores = {name: np.array(values) for name, values in trial["quality"].items() if not name.startswith("t")}
            by_seed[seed] = elo(scores, "y0", seed=seed, resamples=resamples)
    names = list(next(iter(by_seed.values()), {}))
    return {
        name: {
            "seeds": {seed: found[name]._asdict() for seed, found in by_seed.items()},
            **(
                {"over_seeds": across_seeds([found[name].value for found in by_seed.values()])._asdict()}
                if len(by_seed) >= 2
                else {}
            ),
        }
        for name in names
    }


def best_temperatures(trials: Trials, passes: int, main: str, *, resamples: int) -> dict[str, Any]:
    """Best against best: each method at the temperature at which its mean quality over all seeds is highest."""
    swept_trials = [trial for (_, variant), trial in sorted(trials.items()) if variant == main]
    methods = sorted({name for trial in swept_trials for name in trial["quality"] if name.startswith("t")})
    means = {name: float(np.mean([np.mean(trial["quality"][name]) for trial in swept_trials])) for name in methods}
    best = {}
    for method in ("y0", f"pit_stop_{passes}", f"sft_plain_{passes}"):
        swept = {name: mean for name, mean in means.items() if name.endswith(f"/{method}")}
        if swept:
            best[method] = max(swept, key=lambda name: swept[name])
    found: dict[str, Any] = {"mean_quality": means, "best": best}
    improved = best.get(f"pit_stop_{passes}")
    for rival in ("y0", f"sft_plain_{passes}"):
        if improved and rival in best:
            found[f"over {rival}"] = compared(trials, (main, improved), (main, best[rival]), resamples=resamples)
    return found


def mended(quality: Sequence[float], first: Sequence[float]) -> dict[str, float | None]:
    """What a method does to first answers: the share of imperfect ones made perfect, and of perfect ones spoiled.

    >>> mended([1.0, 0.5, 1.0, 0.2], first=[0.5, 0.5, 1.0, 1.0])
    {'made_perfect': 0.5, 'spoiled': 0.5}
    """
    perfect, before = np.array(quality) == 1, np.array(first) == 1
    return {
        "made_perfect": float(perfect[~before].mean()) if not before.all() else None,
        "spoiled": float(1 - perfect[before].mean()) if before.any() else None,
    }


KEPT = (
    "sampled_tokens",
    "accepted",
    "training",
    "learning_curve",
    "copy_rate",
    "accuracies",
    "answer_seconds",
    "commit",
)
"""What is published of a trial as it is."""


def summary(
    trials: Trials, passes: int, main: str, rules: Sequence[Gate] = (), *, resamples: int = 2000
) -> dict[str, Any]:
    """Everything of one family that is committed: no figure of a single prompt, all of each seed."""
    shared = of_shared_seeds(trials)
    said = {
        text: row
        for text, (candidate, baseline) in comparisons(passes, main).items()
        if (row := compared(trials, candidate, baseline, resamples=resamples)) is not None
    }
    return {
        "variants_run": sorted({variant for _, variant in trials}),
        "gates": [gate.judged(said) for gate in rules],
        "comparisons": said,
        "shared_seeds": sorted({seed for seed, _ in shared}),
        "steps_to_target": steps_to_target(shared, main),
        "elo": ratings(trials, main, resamples=min(resamples, REFITS)),
        "goes_with": goes_with(trials, said, passes, main),
        "by_habit": by_habit(trials, said, passes, main),
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
