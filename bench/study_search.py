"""Does a search of draws and passes beat either alone, at the same number of answers?

    python bench/study_search.py run                         # train, choose splits, answer; may be interrupted
    python bench/study_search.py tables                      # Markdown tables from bench/results/search.json

A study of over an hour on one core, so `make bench` does not run it. Each seed is a demo run of its own. Rivals are
as free as the search: the ranking of best-of-n and the rule of the chain are chosen on the same held-out prompts as the
split of the search, whose options hold all of them. Figures are of prompts of the eval fold.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from _measure import commit
from pit.atomic import write_file
from pit.config import ImproveConfig
from pit.data.tokens import Tokens
from pit.evaluate.across import across_seeds
from pit.evaluate.collect import versions
from pit.evaluate.gold import oracle_of
from pit.evaluate.splits import remembering, search_of, splits_of, worths
from pit.evaluate.stats import delta
from pit.improve import Models
from pit.improve.record import Searched, write_searched
from pit.run.folder import Run
from pit.seeds import Seed
from pit.stages.graph import stages_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "search.json"

BUDGETS = (2, 6, 12)
"""Answers per prompt."""

RSA_STEPS = {2: 1, 6: 1, 12: 2}
"""Steps of recombination by budget; the population is the budget over the steps and the first draws."""

SEARCH = "search"
RIVALS = ("best of n", "chain", "resampling", "recombination")


def families(answers: int, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the options of each method among the splits of a budget, by description."""
    chains = (f"chain of {answers - 1}", f"chain of {answers - 1}, calibrated")
    return {
        "best of n": [name for name in names if name.startswith(f"best of {answers},")],
        "chain": [name for name in names if name in chains],
        "resampling": [name for name in names if name.startswith("resampled")],
        SEARCH: list(names),
    }


def chosen(searched: Searched, answers: int) -> dict[str, str]:
    """Return the option of each method that is worth most on held-out prompts, the first one at ties."""
    means = searched.tried[answers]
    of_method = families(answers, list(means))
    return {method: max(options, key=lambda name: means[name]) for method, options in of_method.items()}


def majority(population: Sequence[Sequence[int]]) -> int:
    """Return the place of the first of the answers that occur most often.

    >>> majority([[1], [2], [2]])
    1
    """
    counts = Counter(map(tuple, population))
    return max(range(len(population)), key=lambda place: counts[tuple(population[place])])


def recombined(models: Models, prompts: Tokens, answers: int, config: ImproveConfig, seed: Seed) -> tuple[Tokens, int]:
    """Return answers of recursive self-aggregation (arXiv 2509.26626), and the tokens of all that were made.

    Every member of the next population is the improver's answer to a random member of this one, because an improver
    reads one reference; nothing is refused, and a majority of the last population answers.
    """
    ids, steps = list(range(len(prompts))), RSA_STEPS[answers]
    population = [models.respond(prompts, ids, config, seed.of("draw", k)) for k in range(answers // (steps + 1))]
    spent = sum(int(column.length.sum()) + len(column) for column in population)
    for step in range(1, steps + 1):
        dice = np.random.default_rng(seed.of("members", step).number)
        read = dice.integers(0, len(population), (len(population), len(prompts)))
        members = [Tokens.of([population[int(of)][row] for row, of in enumerate(places)]) for places in read]
        population = [models.refine(prompts, refs, ids, config, seed, step, k) for k, refs in enumerate(members)]
        spent += sum(int(column.length.sum()) + len(column) for column in population)
    rows = [[column[row].tolist() for column in population] for row in range(len(prompts))]
    return Tokens.of([members[majority(members)] for members in rows]), spent


def trained(folder: Path, seed: int, *more: str) -> Run:
    """Return the finished demo run of a seed with more settings; what is finished is not made again."""
    settings = (f"seed={seed}", "workers=1", "evaluate.gate=warn", *more)
    options = ["--out", str(folder), *(word for setting in settings for word in ("--set", setting))]
    finished = (folder / "config.json").is_file() and Run.open(folder)
    if not finished or not all(stage.done(finished) for stage in stages_of(finished.config)):
        subprocess.run([sys.executable, "-m", "pit", "run", "demo", *options], check=True)
    return Run.open(folder)


def trial(run: Run, prompts_wanted: int, held_out: int) -> dict[str, Any]:
    """Choose on held-out prompts, then answer those of the evaluation; quality and tokens by budget and method."""
    answers_wanted = ",".join(map(str, BUDGETS))
    run = run.with_settings([f"evaluate.search_answers={answers_wanted}", f"evaluate.search_prompts={held_out}"])
    searched = search_of(run)
    write_searched(run, searched)
    config, fold, worth = run.config.improve, run.fold("eval"), oracle_of(run)
    prompts = fold.columns(range(min(prompts_wanted, len(fold))))[0]
    everything = replace(config, select="all", rank="both")
    models = Models.load(run, run.config.reward_gap.packing, config=everything)
    models = remembering(replace(models, calibration=searched.calibration))
    seed, budgets = run.seed.of("study search"), {}
    for answers in BUDGETS:
        options, names = splits_of(answers, config), chosen(searched, answers)
        wanted = {name: options[name] for name in names.values()}
        quality, tokens = {}, {}
        for name, values, paths in worths(models, prompts, wanted, worth, seed):
            quality[name] = values
            tokens[name] = sum(len(made.tokens) + 1 for path in paths for made in path.made) / len(paths)
        outputs, spent = recombined(models, prompts, answers, config, seed.of("recombination", answers))
        names["recombination"] = "recombination"
        quality["recombination"], tokens["recombination"] = worth(prompts, outputs), spent / len(prompts)
        budgets[answers] = {
            method: {
                "split": name,
                "quality": quality[name].round(4).tolist(),
                "tokens_per_prompt": round(tokens[name], 2),
            }
            for method, name in names.items()
        }
    return {
        "seed": run.config.seed,
        "prompts": len(prompts),
        "held_out_prompts": searched.prompts,
        "calibration": vars(searched.calibration),
        "tried": searched.tried,
        "budgets": budgets,
    }


def compared(trials: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the search over each rival, in points by seed, with a t-interval over seeds, by budget."""
    result: dict[str, dict[str, Any]] = {}
    for answers in map(str, BUDGETS):
        rows: dict[str, Any] = {}
        for rival in RIVALS:
            sides = [[np.array(trial["budgets"][answers][m]["quality"]) for m in (SEARCH, rival)] for trial in trials]
            per_seed = [delta(ours, theirs) for ours, theirs in sides]
            over = across_seeds([d.value for d in per_seed])._asdict() if len(trials) > 1 else {}
            rows[rival] = {"seeds": [[d.value, d.low, d.high] for d in per_seed], "over_seeds": over}
        result[answers] = rows
    return result


def in_short(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial with the mean quality in the place of that of every prompt."""
    budgets = {
        answers: {
            method: {**entry, "quality": round(float(np.mean(entry["quality"])), 6)}
            for method, entry in methods.items()
        }
        for answers, methods in trial["budgets"].items()
    }
    return {**trial, "budgets": budgets}


def table(results: Mapping[str, Any]) -> str:
    """Return Markdown tables: search over rivals by budget with mean qualities, and what each method chose."""
    lines = [
        "| answers | search over | points by seed [95 % over prompts] | mean [95 % over seeds] | quality of the rival "
        "and of the search |",
        "|---|---|---|---|---|",
    ]
    for answers, rows in results["search_over"].items():
        for rival, row in rows.items():
            seeds = ", ".join("{:+.1f} [{:+.1f}, {:+.1f}]".format(*values) for values in row["seeds"])
            over = row["over_seeds"]
            mean = "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**over) if over else ""
            means = [
                np.mean([trial["budgets"][answers][method]["quality"] for trial in results["trials"]])
                for method in (rival, SEARCH)
            ]
            lines.append(f"| {answers} | {rival} | {seeds} | {mean} | {means[0]:.3f}, {means[1]:.3f} |")
    lines += [
        "",
        "| answers | method | chosen on held-out prompts, by seed | tokens per prompt, by seed |",
        "|---|---|---|---|",
    ]
    for answers in results["search_over"]:
        for method in (*RIVALS, SEARCH):
            of_seed = [trial["budgets"][answers][method] for trial in results["trials"]]
            splits = "; ".join(entry["split"] for entry in of_seed)
            tokens = ", ".join(f"{entry['tokens_per_prompt']:.1f}" for entry in of_seed)
            lines.append(f"| {answers} | {method} | {splits} | {tokens} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[311, 312, 313, 314, 315])
    parser.add_argument("--prompts", type=int, default=1000, help="most prompts of the eval fold")
    parser.add_argument("--held-out", type=int, default=200, help="most prompts of the judge fold, for the choice")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "search", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.command == "run":
        jax.config.update("jax_compilation_cache_dir", str(options.work / "xla"))
        measured, trials = commit(), []
        for seed in options.seeds:
            trials.append(
                json.loads(
                    json.dumps(trial(trained(options.work / str(seed), seed), options.prompts, options.held_out))
                )
            )
            results = {
                "commit": measured,
                "versions": versions(),
                "search_over": compared(trials),
                "trials": [in_short(trial) for trial in trials],
            }
            write_file(options.out, (json.dumps(results, indent=1) + "\n").encode())
    print(table(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
