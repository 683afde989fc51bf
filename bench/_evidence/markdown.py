"""Detailed tables of a family in Markdown, for the marked places of docs/studies/history.md."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from _evidence.variants import MAIN, VARIANTS

Row = Mapping[str, Any]
"""Summary of a family, or one of its rows."""

FEW = 5
"""Most seeds that a table lists one by one; of more it shows the range."""

METHODS = {
    "y0": "y0, one answer",
    "pit_plain_1": "one plain pass",
    "pit_plain_{n}": "{n} plain passes",
    "pit_stop_1": "one pass, accepted",
    **{f"pit_stop_{k}": f"{k} passes, accepted" for k in range(2, 10)},
    "best_of_2": "best of 2 by R_P",
    "best_of_{m}": "best of {m} by R_P",
    "resample_1": "another draw, accepted by the same rule",
    "resample_{n}": "{n} more draws, accepted by the same rule",
    "other_reference_1": "one plain pass on another prompt's answer",
    "empty_reference_1": "one plain pass on none",
    "sft_plain_1": "fine-tuned improver, one plain pass",
    "sft_plain_{n}": "fine-tuned improver, {n} plain passes",
    "sft_stop_1": "fine-tuned improver, one pass, accepted",
    "sft_stop_{n}": "fine-tuned improver, {n} passes, accepted",
    "sft_policy": "M_P, one answer",
}
"""Rows of the table of methods; n passes take m = n + 1 answers."""

SWEPT = {
    "over y0": "{n} passes, accepted, over y0",
    "over sft_plain_{n}": "{n} passes, accepted, over the fine-tuned improver's plain ones",
}
"""Comparisons of n passes, with each side at its best temperature."""


def tables(family: str, summary: Row, passes: int) -> dict[str, str]:
    """Return every table of a family that has rows, by the name of its place."""
    main = MAIN[family]
    trials = [trial for trial in summary["trials"] if trial["variant"] == main]
    texts = {
        "gates": gates(summary),
        "comparisons": comparisons(summary, passes),
        "methods": methods(summary, trials, passes),
        "seeds": by_seed(trials, passes),
        "traits": traits(summary),
        "habits": habits(summary),
        "temperatures": temperatures(summary, passes),
        "variants": variants(summary, passes),
        "copies": copies(trials, passes),
        "rewards": rewards(trials),
        "training": training(trials),
    }
    return {f"{family} {name}": text for name, text in texts.items() if text}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, an empty text where there are no rows.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [head, *rows]
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(head), *texts[1:]]) if rows else ""


def interval(over: Mapping[str, float], digits: int = 1) -> str:
    """Return a mean with its t-interval, in points.

    >>> interval({"value": 1.25, "low": -0.5, "high": 3.0})
    '+1.2 [-0.5, +3.0]'
    """
    return "{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".format(**over, digits=digits)


def per_seed(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return the values of up to `FEW` seeds, or the lowest and the highest of more."""
    if len(values) <= FEW:
        return ", ".join(form(value) for value in values)
    return f"{form(min(values))} to {form(max(values))}"


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there, None where there are none.

    >>> mean_of([1.0, None, 2.0]), mean_of([None])
    (1.5, None)
    """
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def quality(value: float, digits: int = 3) -> str:
    """Return a quality as tables show it.

    >>> quality(0.51234), quality(1.0)
    ('.512', '1.000')
    """
    return f"{value:.{digits}f}".removeprefix("0")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean over seeds with the lowest and the highest value.

    >>> spread([0.25, 0.75])
    '.500 (.250 to .750)'
    """
    return f"{quality(sum(values) / len(values), digits)} ({quality(min(values))} to {quality(max(values))})"


def share(value: float | None) -> str:
    """Return a share in percent, an empty text for None."""
    return "" if value is None else f"{100 * value:.1f} %"


def gates(summary: Row) -> str:
    """Return the gates with their verdicts."""
    rows = []
    for gate in summary["gates"]:
        if "value" in gate:
            digits = 1 if gate["unit"].startswith("win") else 2
            held = "yes" if gate["held"] else "**no**"
            rows.append([gate["gate"], gate["unit"].split(",")[0], gate["rule"], interval(gate, digits), held])
    return table(["must hold", "figure", "asked", "mean and t-interval, points", "held"], rows)


def named(passes: int) -> dict[str, str]:
    """Return methods in words, in the order of their rows."""
    return {key.format(n=passes, m=passes + 1): words.format(n=passes, m=passes + 1) for key, words in METHODS.items()}


def comparisons(summary: Row, passes: int) -> str:
    """Return win rate minus lose rate of every comparison of two or more seeds, best temperatures included."""
    rows = []
    swept = {
        f"{what.format(n=passes)}, each at its best temperature": summary["temperature"].get(key.format(n=passes))
        for key, what in SWEPT.items()
    }
    words = {name: what for name, what in named(passes).items() if name != "y0"}
    for text, row in {**summary["comparisons"], **swept}.items():
        if row is None or "over_seeds" not in row:
            continue
        seeds, over = row["seeds"].values(), row["over_seeds"]
        equal = [seed["length_controlled"]["value"] for seed in seeds if "length_controlled" in seed]
        for name, what in words.items():
            text = re.sub(rf"\b{name}\b", what, text)
        rows.append(
            [
                text,
                per_seed([seed["value"] for seed in seeds], "{:+.1f}".format),
                f"{over['above']} of {over['seeds']}",
                interval(over),
                f"{over['standard_error']:.1f}",
                f"{of_prompts([(seed['low'], seed['high']) for seed in seeds]):.1f}",
                f"{sum(equal) / len(equal):+.1f}" if equal else "",
            ]
        )
    head = ["candidate over rival", "seeds", "above 0", "mean and t-interval", "SE", "of prompts", "at equal length"]
    return table(head, rows)


def of_prompts(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the standard error over seeds that prompts alone cause, from 95 % intervals over prompts.

    >>> of_prompts([(0.0, 3.92), (10.0, 13.92), (5.0, 8.92), (0.0, 3.92)])
    0.5
    """
    return math.sqrt(sum(((high - low) / 3.92) ** 2 for low, high in intervals)) / len(intervals)


def methods(summary: Row, trials: Sequence[Row], passes: int) -> str:
    """Return quality, mended and spoiled answers, tokens and Elo of every method of the main variant."""
    rows = []
    # Where hardly any first answer is perfect, a share of them means nothing.
    perfect = 1 - (mean_of(trial["imperfect"]["y0"] for trial in trials) or 0)
    for name, what in named(passes).items():
        measured = [trial for trial in trials if name in trial["mean_quality"]]
        if measured:
            values = [trial["mean_quality"][name] for trial in measured]
            elo = summary["elo"].get(name, {}).get("over_seeds")
            spoiled = mean_of(trial["mended"][name]["spoiled"] for trial in measured)
            rows.append(
                [
                    what,
                    spread(values, 4),
                    share(mean_of(trial["imperfect"][name] for trial in measured)),
                    share(mean_of(trial["mended"][name]["made_perfect"] for trial in measured)),
                    share(spoiled) if perfect > 0.01 else "",
                    tokens(measured, name),
                    "{value:+.0f} [{low:+.0f}, {high:+.0f}]".format(**elo) if elo else "",
                ]
            )
    head = ["answer", "mean quality (seeds)", "not perfect", "of imperfect y0, made perfect"]
    return table([*head, "of perfect y0, spoiled", "tokens per prompt", "Elo over y0"], rows)


def tokens(trials: Sequence[Row], name: str) -> str:
    """Return tokens sampled per prompt, the first answer and rejected ones included."""
    spent = mean_of(
        trial["sampled_tokens"][name] / trial["prompts"] for trial in trials if name in trial["sampled_tokens"]
    )
    return f"{spent:.1f}" if spent else ""


def by_seed(trials: Sequence[Row], passes: int) -> str:
    """Return mean quality by method, one row per seed."""
    columns = {
        "y0": "y0",
        f"pit_stop_{passes}": f"{passes} passes, accepted",
        f"best_of_{passes + 1}": "best of as many",
    }
    columns |= {f"resample_{passes}": "as many draws, accepted by the same rule"}
    columns |= {
        "t0.2/y0": "y0 at .2",
        f"t0.2/pit_stop_{passes}": f"{passes} passes at .2",
        f"t0.2/sft_plain_{passes}": "fine-tuned, plain, at .2",
    }
    rows = [
        [str(trial["seed"]), *(quality(trial["mean_quality"][name]) for name in columns)]
        for trial in trials
        if columns.keys() <= trial["mean_quality"].keys()
    ]
    return table(["seed", *columns.values()], rows)


def traits(summary: Row) -> str:
    """Return correlations over seeds with the comparisons with best of n, with their intervals."""
    texts = list(dict.fromkeys(text for by_text in summary["correlations"].values() for text in by_text))
    rows = [
        [what, *(interval(by_text[text], 2) if text in by_text else "" for text in texts)]
        for what, by_text in summary["correlations"].items()
    ]
    return table(["trait of a seed", *texts], rows)


def habits(summary: Row) -> str:
    """Return comparisons with draws of seeds whose policy is wrong at any temperature, and of all others."""
    split = summary["habits"]
    rows = [
        [text, *(f"{interval(over)}, {over['above']} of {over['seeds']}" for over in by_side.values())]
        for text, by_side in split.get("over", {}).items()
    ]
    if not rows:
        return ""
    seeds = ", ".join(map(str, split["seeds"]["habit"]))
    return table(["mean and t-interval, points; above 0", seeds, f"the other {len(split['seeds']['none'])}"], rows)


def temperatures(summary: Row, passes: int) -> str:
    """Return mean quality by temperature of first answers, passes, and passes of the fine-tuned improver."""
    means = summary["temperature"]["mean_quality"]
    warmths = sorted({name.partition("/")[0] for name in means})
    words = named(passes)
    rows = [
        [words[name], *(quality(means[f"{warmth}/{name}"], 4) for warmth in warmths)]
        for name in ("y0", f"pit_stop_{passes}", f"sft_plain_{passes}")
        if f"{warmths[0]}/{name}" in means
    ]
    return table(["mean quality at temperature", *(warmth[1:] for warmth in warmths)], rows)


def variants(summary: Row, passes: int) -> str:
    """Return the quality of each variant on the seeds that all of them ran; of a policy alone its first answer."""
    rows = []
    shared = [trial for trial in summary["trials"] if trial["seed"] in summary["shared_seeds"]]
    for name, variant in VARIANTS.items():
        means = [trial["mean_quality"] for trial in shared if trial["variant"] == name]
        shown = ("pit_plain_1", f"pit_stop_{passes}") if variant.improver else ("y0",)
        if means:
            columns = [[mean[method] for mean in means] for method in shown]
            cells = [f"{quality(sum(values) / len(values))} ({per_seed(values, quality)})" for values in columns]
            rows.append([f"`{name}`", variant.what, *cells, *[""] * (2 - len(cells)), str(len(means))])
    plain = "one plain pass (`more_rlhf`: one answer)"
    return table(["variant", "the improver's RL", plain, f"{passes} passes, accepted", "seeds"], rows)


def copies(trials: Sequence[Row], passes: int) -> str:
    """Return the share of its reference that one plain pass repeats, mean and range over seeds."""
    rates = [trial["copy_rate"] for trial in trials if trial["copy_rate"]]
    rows = [
        [named(passes)[name], *(spread([rate[name][key] for rate in rates]) for key in ("exact", "similarity"))]
        for name in (rates[0] if rates else ())
    ]
    return table(["pass", "references repeated word for word", "edit similarity to the reference"], rows)


def rewards(trials: Sequence[Row]) -> str:
    """Return the share of pairs that reward models rank like the oracle or the labels, mean and range over seeds."""
    shares: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        for row in trial["accuracies"]:
            shares.setdefault(row["aspect"], {}).setdefault(row["model"], []).append(row["accuracy"])
    models = list(dict.fromkeys(model for by_model in shares.values() for model in by_model))
    rows = [
        [aspect, *(spread(by_model[model]) if model in by_model else "" for model in models)]
        for aspect, by_model in shares.items()
    ]
    return table(["pairs", *models], rows)


STAGES = {"rl-first": "rl-improver-0", "rl-second": "rl-improver-1", "rl-third": "rl-improver-2"}
"""Names of today for the stages of archived trials."""


def training(trials: Sequence[Row]) -> str:
    """Return steps and tokens of each stage of the main variant, mean over seeds."""
    keys = ("tokens", "sampled_tokens", "references_sampled")
    stages = list(dict.fromkeys(stage for trial in trials for stage in trial["training"]))
    rows = []
    for stage in stages:
        costs = [trial["training"][stage] for trial in trials]
        means = [sum(cost.get(key, 0) for cost in costs) / len(costs) for key in keys]
        rows.append([STAGES.get(stage, stage), str(costs[0]["steps"]), *(f"{mean:,.0f}" for mean in means)])
    return table(["stage", "steps", "tokens trained on", "tokens sampled", "references sampled"], rows)
