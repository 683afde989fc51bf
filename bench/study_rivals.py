"""Which training answers best at the same number of answers, from the same pairs?

    python bench/study_rivals.py run       # train five demo runs with all rivals, answer; may be interrupted
    python bench/study_rivals.py tables    # a Markdown table from bench/results/rivals.json
    python bench/study_rivals.py plot      # docs/studies/rivals.png

A study of about 40 minutes on two cores, so `make bench` does not run it. A policy spends its answers on best of n by
R_P, an improver on a chain of accepted passes over answers of M_P^RL. Figures are of prompts of the eval fold, by the
oracle; seeds, budgets and rankings were fixed before the first run.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from _measure import commit
from pit.atomic import write_file
from pit.evaluate.across import across_seeds
from pit.evaluate.collect import versions
from pit.evaluate.gold import oracle_of
from pit.evaluate.splits import remembering, splits_of, tokens_per_answer, worths
from pit.evaluate.stats import delta
from pit.improve import Models
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages import offline, rl, rl_again, rl_iterated, sft
from study_search import in_short, trained

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "rivals.json"
PLOT = ROOT / "docs" / "studies" / "rivals.png"

SETTINGS = ("rlhf=again", "rl_policy.anchor=init", "offline=both")
"""What a run has besides the recipe demo: the second RL of the policy is anchored where it starts, as RL,1 is."""

BUDGETS = (2, 6)
"""Answers per prompt."""


@dataclass(frozen=True)
class Contender:
    """A trained model and how it spends a budget of answers."""

    role: Literal["policy", "improver"]
    stage: Stage

    def models(self, run: Run, models: Models) -> Models:
        """Return the models of the run with this one in its role."""
        loaded = self.stage.load(run)
        return replace(models, policy=loaded) if self.role == "policy" else replace(models, improver=loaded)

    def split(self, answers: int) -> str:
        """Return the description of its split of a budget."""
        return f"best of {answers}, quality" if self.role == "policy" else f"chain of {answers - 1}"


OURS = "PIT"

CONTENDERS = {
    OURS: Contender("improver", rl_iterated.IMPROVER_1),
    "PIT before RL,1": Contender("improver", rl.IMPROVER_0),
    "fine-tuned improver": Contender("improver", sft.IMPROVER),
    "SRPO's improver": Contender("improver", offline.IMPROVER),
    "RLHF": Contender("policy", rl.POLICY),
    "RLHF, re-anchored": Contender("policy", rl_again.POLICY_AGAIN),
    "DPO": Contender("policy", offline.POLICY),
    "fine-tuned policy": Contender("policy", sft.POLICY),
}
"""PIT's improver and its rivals."""

RIVALS = [name for name in CONTENDERS if name != OURS]


def trial(run: Run, wanted: int) -> dict[str, Any]:
    """Return the oracle's value of each contender's answers and the tokens that it made, by budget."""
    config, fold, worth = run.config.improve, run.fold("eval"), oracle_of(run)
    prompts = fold.columns(range(min(wanted, len(fold))))[0]
    models = Models.load(run, run.config.reward_gap.packing, config=replace(config, rank="both", select="all"))
    models = remembering(models)
    budgets: dict[int, dict[str, Any]] = {answers: {} for answers in BUDGETS}
    for name, contender in CONTENDERS.items():
        own = contender.models(run, models)
        for answers in BUDGETS:
            split = contender.split(answers)
            splits = {split: splits_of(answers, config)[split]}
            ((_, quality, paths),) = worths(own, prompts, splits, worth, run.seed.of("study rivals"))
            spent = tokens_per_answer(paths) * answers
            budgets[answers][name] = {"quality": quality.round(4).tolist(), "tokens_per_prompt": round(spent, 2)}
    return {"seed": run.config.seed, "prompts": len(prompts), "budgets": budgets}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979).

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order, adjusted, least = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return adjusted


def compared(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return PIT over each rival by budget: points by seed, a t-interval over seeds, and Holm's p over all rows."""
    rows: list[dict[str, Any]] = []
    for answers in trials[0]["budgets"]:
        for rival in RIVALS:
            sides = [[np.array(trial["budgets"][answers][m]["quality"]) for m in (OURS, rival)] for trial in trials]
            per_seed = [delta(ours, theirs) for ours, theirs in sides]
            values = [d.value for d in per_seed]
            row = {"answers": int(answers), "rival": rival, "seeds": [[d.value, d.low, d.high] for d in per_seed]}
            if len(trials) > 1:
                row |= {"over_seeds": across_seeds(values)._asdict(), "p": float(stats.ttest_1samp(values, 0).pvalue)}
            rows.append(row)
    if len(trials) > 1:
        for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = adjusted
    return rows


def table(results: Mapping[str, Any]) -> str:
    """Return a Markdown table: PIT over each rival, with the qualities and the tokens of both."""

    def means(answers: int, name: str) -> tuple[float, float]:
        entries = [trial["budgets"][str(answers)][name] for trial in results["trials"]]
        quality, tokens = (float(np.mean([e[key] for e in entries])) for key in ("quality", "tokens_per_prompt"))
        return quality, tokens

    lines = [
        "| answers | PIT over | points, mean [95 % over seeds] | seeds above 0 | p, Holm | quality | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["compared"]:
        (ours, our_tokens), (theirs, tokens) = (means(row["answers"], name) for name in (OURS, row["rival"]))
        mean = "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**row["over_seeds"]) if "over_seeds" in row else ""
        above = f"{sum(low > 0 for _, low, _ in row['seeds'])} of {len(row['seeds'])}"
        p = f"{row['p_holm']:.3f}" if "p_holm" in row else ""
        ends = f"{ours:.3f} over {theirs:.3f} | {our_tokens:.0f}, {tokens:.0f}"
        lines.append(f"| {row['answers']} | {row['rival']} | {mean} | {above} | {p} | {ends} |")
    return "\n".join(lines)


def draw(trials: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the quality of each contender by seed, a panel per number of answers."""
    figure = Figure(figsize=(9.6, 3.2), dpi=150, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(BUDGETS), sharex=True, sharey=True)
    rows = list(reversed(CONTENDERS))
    for axes, answers in zip(panels, BUDGETS, strict=True):
        for at, name in enumerate(rows):
            values = [trial["budgets"][str(answers)][name]["quality"] for trial in trials]
            colour = "#ee6677" if name == OURS else "#4477aa"
            axes.plot(values, [at] * len(values), "o", color=colour, markersize=4, alpha=0.5)
            axes.plot(np.mean(values), at, "|", color=colour, markersize=16, markeredgewidth=2)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(f"{answers} answers per prompt", fontsize=9)
        axes.set_xlabel("quality by the oracle: seeds, and their mean")
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables", "plot"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[331, 332, 333, 334, 335])
    parser.add_argument("--prompts", type=int, default=1000, help="most prompts of the eval fold")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "rivals", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.command == "run":
        jax.config.update("jax_compilation_cache_dir", str(options.work / "xla"))
        measured, trials = commit(), []
        for seed in options.seeds:
            made = trial(trained(options.work / str(seed), seed, *SETTINGS), options.prompts)
            trials.append(json.loads(json.dumps(made)))
            short = [in_short(trial) for trial in trials]
            results = {"commit": measured, "versions": versions(), "compared": compared(trials), "trials": short}
            write_file(options.out, (json.dumps(results, indent=1) + "\n").encode())
    results = json.loads(options.out.read_text(encoding="utf-8"))
    if options.command == "plot":
        draw(results["trials"], PLOT)
    else:
        print(table(results))


if __name__ == "__main__":
    main()
