"""What trials of several seeds say together: comparisons with intervals, Elo, quality by pass, tokens; and the plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _gates import Gate, steps_to_target
from _traits import by_habit, goes_with
from _variants import VARIANTS, Trials
from pit.evaluate.across import across_seeds, elo, t_quantile
from pit.evaluate.stats import delta, length_controlled_delta, paired_mean_difference
from pit.report.palette import LIGHT, SERIES
from pit.report.plots import save_png

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


LINES: dict[str, tuple[str | None, str, str, str]] = {
    "PIT, accepted": (None, "pit_stop", "blue", "o-"),
    "PIT, every pass kept": (None, "pit_plain", "orange", "o-"),
    "PIT with RL,2, every pass kept": ("own", "pit_plain", "orange", "^:"),
    "best of n by R_P": (None, "best_of", "ink", "s--"),
    "best of n by R_P, after more RLHF": ("more_rlhf", "best_of", "ink", "x:"),
    "resampling, accepted by the same rule": (None, "resample", "grey", "D--"),
    "fine-tuned improver, accepted": (None, "sft_stop", "teal", "v--"),
    "fine-tuned improver, every pass kept": (None, "sft_plain", "teal", "v:"),
}
"""What the plot draws: a variant (None: the main one), the stem of its methods, a colour and a style.

What is no PIT is dashed.
"""

SHADED = ("pit_stop", "best_of")
"""Of these, and of what is drawn at its best temperature, the range over seeds is shaded: all of it hides the lines."""

SWEPT = {"PIT, accepted": ("pit_stop", "blue", "*-"), "fine-tuned improver, kept": ("sft_plain", "teal", "*--")}
"""Drawn at the temperature that is best for it too."""


def plot(trials: Trials, passes: int, main: str, path: Path) -> None:
    """Mean quality by answers sampled a prompt, over seeds: the improver, and what the same samples buy instead."""
    figure = Figure(figsize=(7.2, 4.9), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    answers = range(1, passes + 2)
    for label, (variant, stem, colour, style) in LINES.items():
        # The n-th of best-of-n takes n answers, the k-th pass k + 1.
        names = ["y0", *(f"{stem}_{n if stem == 'best_of' else n - 1}" for n in answers[1:])]
        table = _means(trials, variant or main, names, main)
        _line(axes, answers, table, label, LIGHT[colour], style, shaded=stem in SHADED and variant is None)
    found = best_temperatures(trials, passes, main, resamples=1)
    swept = found["best"]
    if "y0" in swept:
        label = f"the first answer alone, at temperature {swept['y0'].partition('/')[0][1:]}, its best"
        axes.plot([1], [found["mean_quality"][swept["y0"]]], "P", color=LIGHT["ink"], ms=9, ls="none", label=label)
    for what, (stem, colour, style) in SWEPT.items():
        best = swept.get(f"{stem}_{passes}")
        if best is not None:
            warmth = best.partition("/")[0]
            names = [f"{warmth}/y0", *(f"{warmth}/{stem}_{n - 1}" for n in answers[1:])]
            label = f"{what}, at temperature {warmth[1:]}, its best"
            _line(axes, answers, _means(trials, main, names, main), label, LIGHT[colour], style)
    axes.set_xticks(answers)
    axes.set_xlabel("answers sampled a prompt, the first one and rejected ones included", color=LIGHT["muted"])
    _finish(figure, axes, path, "mean hidden quality (shaded: lowest to highest seed)")


def plot_curves(trials: Trials, main: str, path: Path) -> None:
    """What one plain pass over y0 is worth on held-out prompts, by step of the improver's RL and variant.

    Of the seeds that all variants share; the range over them is shaded of the main one alone.
    """
    figure = Figure(figsize=(7.2, 3.9), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    curves = {key: trial["learning_curve"] for key, trial in sorted(of_shared_seeds(trials).items())}
    found = {name: [curve for (_, variant), curve in curves.items() if variant == name] for name in VARIANTS}
    drawn = [name for name, of_seeds in found.items() if of_seeds and all(of_seeds)]
    for k, variant in enumerate(drawn):
        steps = [step for step, _ in found[variant][0]]
        table = np.array([[worth for _, worth in curve] for curve in found[variant]])
        colour = LIGHT[SERIES[k % len(SERIES)]]
        style = ("o-", "^--", "s:")[k // len(SERIES) % 3]
        _line(axes, steps, table, VARIANTS[variant].what, colour, style, shaded=variant == main)
    axes.set_xlabel("steps of the improver's RL", color=LIGHT["muted"])
    _finish(figure, axes, path, "quality of one plain pass")


def _means(trials: Trials, variant: str, names: Sequence[str], main: str) -> np.ndarray:
    """Mean quality of methods, a row a seed of the main variant; no row where the variant lacks one of them."""
    seeds = sorted(seed for seed, name in trials if name == main)
    had = [trials[seed, variant] for seed in seeds] if all((seed, variant) in trials for seed in seeds) else []
    return np.array([[np.mean(trial["quality"][name]) for name in names] for trial in had])


def _line(
    axes: Axes, x: Sequence[int], table: np.ndarray, label: str, colour: str, style: str, *, shaded: bool = True
) -> None:
    """A mean over seeds with the range of all; nothing where there is no seed."""
    if len(table):
        axes.plot(x, table.mean(axis=0), style, color=colour, lw=1.6, ms=5, label=label)
        if shaded:
            axes.fill_between(x, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.10, lw=0)


def _finish(figure: Figure, axes: Axes, path: Path, what: str) -> None:
    axes.set_ylabel(what, color=LIGHT["muted"])
    axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=LIGHT["muted"])
    axes.legend(
        frameon=False, labelcolor=LIGHT["ink"], ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8
    )
    save_png(figure, path)
