"""Does PIT improve what a real language model writes under verifiable constraints, at equal tokens?

    python bench/study_instruct.py run --model FILE.gguf --seeds 401 402 403   # hours per seed; may be interrupted
    python bench/study_instruct.py tables                                      # from bench/results/instruct.json alone

Each seed is a run of the recipe `instruct` with a second RL stage of the policy, a rival. All methods answer the same
prompts of the eval fold; a hidden checker says which constraints each answer holds. Splits of the search, and the
rankings and chains of its rivals, are chosen on prompts of the judge fold (`study_search`). A study of hours, so
`make bench` does not run it. `--small` runs all code on a model of any size in minutes, and shows nothing.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64

import study_search
from _evidence.trials import Answered, best_draws, controls, cost_of, iterate, resampled
from _measure import commit
from pit.atomic import write_file
from pit.data.synthetic.instruct.constraints import KINDS
from pit.data.synthetic.instruct.grammar import parse_prompt, subset_of
from pit.data.template import rollout as rollout_topology
from pit.data.tokens import Tokens
from pit.evaluate.across import across_seeds
from pit.evaluate.collect import versions
from pit.evaluate.gold import aspects_of
from pit.evaluate.splits import remembering, search_of, splits_of
from pit.evaluate.stats import delta, perplexity_interval
from pit.improve import Models, improve
from pit.improve.record import write_searched
from pit.rollout.score import LikelihoodScorer
from pit.run.folder import Run
from pit.stages import rl_again, sft
from pit.terminal import printable

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "instruct.json"

SEEDS = (401, 402, 403)

ASPECTS = ("held", "all held", "fluent")
"""Aspects that are kept per prompt."""

SETTINGS = ("rlhf=again", "evaluate.gate=warn", "workers=1")

SMALL = (
    "data.synthetic_rows=1000",
    *(f"{name}.steps=2" for name in ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge")),
    *(
        f"{name}.{field}"
        for name in ("rl_policy", "rl_improver_0", "rl_improver_1")
        for field in ("steps=1", "prompts=2", "samples=2", "evaluate_prompts=2")
    ),
    *("refresh.prompts=0", "improve.iterations=2"),
    *("evaluate.prompts=8", "evaluate.search_prompts=8", "evaluate.sensitivity_prompts=2"),
)
"""Settings under which all code runs in minutes."""

COMPARISONS = (
    ("PIT, last pass", "y0"),
    ("PIT, last pass", "best of n"),
    ("PIT, last pass", "resampling"),
    ("PIT, last pass", "SFT-only improver, last pass"),
    ("PIT, last pass", "Self-Refine, last pass"),
    ("PIT, last pass", "more RLHF, best of n"),
    ("search", "best of n"),
    ("search", "best of n, chosen"),
    ("search", "recombination"),
    ("own reference", "wrong reference"),
    ("own reference", "empty reference"),
)
"""Candidate and baseline, by the names of `METHODS`."""


def methods_of(passes: int) -> dict[str, str]:
    """Return the columns of the answers that the comparisons name, by the names there.

    Args:
        passes: passes of the improver; a rival gets as many answers.
    """
    return {
        "y0": "y0",
        "PIT, last pass": f"pit_stop_{passes}",
        "best of n": f"best_of_{passes + 1}",
        "resampling": f"resample_{passes}",
        "SFT-only improver, last pass": f"sft_stop_{passes}",
        "Self-Refine, last pass": f"self_refine_{passes}",
        "more RLHF": "policy_again",
        "more RLHF, best of n": f"again_best_of_{passes + 1}",
        "search": "search",
        "best of n, chosen": "chosen_best_of_n",
        "recombination": "recombination",
        "own reference": "pit_plain_1",
        "wrong reference": "other_reference_1",
        "empty reference": "empty_reference_1",
    }


def trained(folder: Path, model: str, seed: int, settings: Sequence[str]) -> Run:
    """Return the finished run of a seed; what is finished is not made again."""
    options = [word for setting in (f"seed={seed}", *settings) for word in ("--set", setting)]
    command = [sys.executable, "-m", "pit", "run", "instruct", "--model", model, "--out", str(folder), *options]
    subprocess.run(command, check=True)
    return Run.open(folder)


def answers_of(run: Run, prompts: Tokens) -> Answered:
    """Return the answers of every method but the searches, with the tokens that each has sampled."""
    config, packing, seed = run.config.improve, run.config.reward_gap.packing, run.seed.of("instruct study")
    requests, answered = list(range(len(prompts))), Answered(prompts)
    models = remembering(Models.load(run, packing))
    firsts = models.respond(prompts, requests, config, seed)
    answered.add("y0", firsts, cost_of(firsts))
    for stop, word in ((False, "plain"), (True, "stop")):
        iterate(answered, f"pit_{word}", models, config, seed, firsts, stop=stop)
    resampled(answered, models, config, best_draws(answered, run, models, config, seed))
    controls(answered, models, config, seed)
    fine_tuned = replace(models, policy=sft.POLICY.load(run), improver=sft.IMPROVER.load(run))
    iterate(answered, "sft_stop", fine_tuned, config, seed, firsts, stop=True)
    by_sft = fine_tuned.respond(prompts, requests, config, seed.of("fine-tuned"))
    answered.add("sft_policy", by_sft, cost_of(by_sft))
    again = replace(models, policy=rl_again.POLICY_AGAIN.load(run))
    rival = Answered(prompts)
    first_again = again.respond(prompts, requests, config, seed.of("again"))
    rival.add("y0", first_again, cost_of(first_again))
    best_draws(rival, run, again, config, seed.of("again"))
    answered.add("policy_again", first_again, cost_of(first_again))
    for name, outputs in rival.outputs.items():
        if name != "y0":
            answered.add(f"again_{name}", outputs, rival.sampled[name])
    # The untrained model answers, and is asked for a better answer in a second turn; its last answer counts.
    untrained = replace(models, policy=run.base, improver=run.base)
    raw = untrained.respond(prompts, requests, config, seed.of("untrained"))
    answered.add("untrained", raw, cost_of(raw))
    iterate(answered, "untrained_refine", untrained, config, seed, raw, stop=False)
    iterate(answered, "self_refine", untrained, config, seed, firsts, stop=False)
    return answered


def add_searches(run: Run, answered: Answered) -> dict[str, str]:
    """Add the answers of the search and of its rivals, chosen on held-out prompts; return the chosen splits."""
    answers, prompts = run.config.improve.iterations + 1, answered.prompts
    run = run.with_settings([f"evaluate.search_answers={answers}"])
    searched = search_of(run)
    write_searched(run, searched)
    config, seed = run.config.improve, run.seed.of("instruct search")
    everything = replace(config, select="all", rank="both")
    models = Models.load(run, run.config.reward_gap.packing, config=everything)
    models = remembering(replace(models, calibration=searched.calibration))
    options, names = splits_of(answers, config), study_search.chosen(searched, answers)
    for method, column in ((study_search.SEARCH, "search"), ("best of n", "chosen_best_of_n")):
        split = options[names[method]]
        paths = list(improve(models, prompts, range(len(prompts)), split, seed=seed))
        spent = sum(len(made.tokens) + 1 for path in paths for made in path.made)
        answered.add(column, Tokens.of([path.answer(split.rounds) for path in paths]), spent)
    if answers in study_search.RSA_STEPS:
        outputs, spent = study_search.recombined(models, prompts, answers, config, seed.of("recombination"))
        answered.add("recombination", outputs, spent)
    return names


def drift(run: Run, answered: Answered, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the perplexity of answers under the untrained model, per token with the EOS: a guard against drift."""
    scorer = LikelihoodScorer(run.base, run.layout(run.config.sft_policy.packing))
    result = {}
    for name in columns:
        outputs = answered.outputs[name]
        nll = -scorer.leaves((answered.prompts, outputs), rollout_topology(1, with_reference=False))[:, 0].astype(
            np.float64
        )
        result[name] = perplexity_interval(nll, outputs.length + 1)._asdict()
    return result


def examples(run: Run, answered: Answered, columns: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return the answers of some methods to the first prompts, side by side: by place, so none is chosen."""
    template = run.template
    return [
        {
            "prompt": template.decode_prompt(answered.prompts[row])[0].content,
            "answers": {name: template.decode_answer(answered.outputs[name][row]) for name in columns},
        }
        for row in range(min(count, len(answered.prompts)))
    ]


def trial(run: Run) -> dict[str, Any]:
    """Answer the eval prompts by every method; aspects of every answer, tokens, drift and examples."""
    fold, passes = run.fold("eval"), run.config.improve.iterations
    prompts = fold.columns(range(min(run.config.evaluate.prompts, len(fold))))[0]
    answered = answers_of(run, prompts)
    chosen, judged = add_searches(run, answered), aspects_of(run)
    texts = [run.template.decode_prompt(x)[0].content for x in prompts]
    shown = [name for name in dict.fromkeys(("untrained", *methods_of(passes).values())) if name in answered.outputs]
    values = {name: judged(prompts, outputs) for name, outputs in answered.outputs.items()}
    return {
        "seed": run.config.seed,
        "passes": passes,
        "subsets": [subset_of(text) for text in texts],
        "kinds": [[each.kind for each in parse_prompt(text).constraints] for text in texts],
        "aspects": {
            name: {aspect: [round(row[aspect], 4) for row in rows] for aspect in ASPECTS}
            for name, rows in values.items()
        },
        "kinds_held": {name: _by_kind(rows) for name, rows in values.items() if name in shown},
        "sampled_tokens": answered.sampled,
        "accepted": answered.accepted,
        "chosen": chosen,
        "perplexity": drift(run, answered, shown),
        "examples": examples(run, answered, shown, 12),
    }


def _by_kind(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the share of answers that hold a constraint of each kind, and their number."""
    values = {kind: [row[f"holds {kind}"] for row in rows if f"holds {kind}" in row] for kind in KINDS}
    return {kind: [round(float(np.mean(held)), 4), len(held)] for kind, held in values.items() if held}


def worth(trial: Mapping[str, Any], column: str) -> Float64[np.ndarray, " n"]:
    """Return the hidden quality of a method's answers: the share held, 0 where an answer is not fluent."""
    aspects = trial["aspects"][column]
    return np.array(aspects["held"], np.float64) * np.array(aspects["fluent"], np.float64)


def compared(trials: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each comparison: win rate less lose rate in points by seed, and with a t-interval over seeds."""
    names, result = methods_of(trials[0]["passes"]), dict[str, dict[str, Any]]()
    for candidate, baseline in COMPARISONS:
        columns = names[candidate], names[baseline]
        if all(column in trial["aspects"] for column in columns for trial in trials):
            per_seed = [delta(worth(trial, columns[0]), worth(trial, columns[1])) for trial in trials]
            over = across_seeds([d.value for d in per_seed])._asdict() if len(trials) > 1 else {}
            seeds = [[d.value, d.low, d.high] for d in per_seed]
            result[f"{candidate} over {baseline}"] = {"seeds": seeds, "over_seeds": over}
    return result


def interval(values: Sequence[float]) -> str:
    """Return the mean over seeds with its t-interval; of one seed the value alone."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    over = across_seeds(values)
    return f"{over.value:.3f} [{over.low:.3f}, {over.high:.3f}]"


def share(trial: Mapping[str, Any], column: str, aspect: str, subset: str | None) -> float:
    """Return the mean of an aspect of a method's answers; `subset` None takes the prompts of all subsets."""
    values = zip(trial["aspects"][column][aspect], trial["subsets"], strict=True)
    return float(np.mean([value for value, name in values if subset in (None, name)]))


def table(results: Mapping[str, Any]) -> str:
    """Return Markdown: shares by method and pass, comparisons, subsets, drift, and examples side by side."""
    trials = results["trials"]
    passes, subsets = trials[0]["passes"], sorted({name for trial in trials for name in trial["subsets"]})
    series = ["untrained", "sft_policy", "y0", *(f"pit_stop_{k}" for k in range(1, passes + 1))]
    named = [name for name in dict.fromkeys((*series, *methods_of(passes).values())) if name in trials[0]["aspects"]]

    def mean(name: str, aspect: str, subset: str | None = None) -> str:
        return interval([share(trial, name, aspect, subset) for trial in trials])

    lines = ["| answers | share held | all held | fluent | tokens per prompt |", "|---|---|---|---|---|"]
    for name in named:
        tokens = np.mean([trial["sampled_tokens"][name] / len(trial["subsets"]) for trial in trials])
        lines.append(f"| {name} | {' | '.join(mean(name, aspect) for aspect in ASPECTS)} | {tokens:.0f} |")
    lines += ["", "| comparison | points by seed [95 % over prompts] | mean [95 % over seeds] |", "|---|---|---|"]
    for name, row in results["compared"].items():
        seeds = ", ".join("{:+.1f} [{:+.1f}, {:+.1f}]".format(*values) for values in row["seeds"])
        over = "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**row["over_seeds"]) if row["over_seeds"] else ""
        lines.append(f"| {name} | {seeds} | {over} |")
    lines += ["", f"| share held | {' | '.join(subsets)} |", f"|---{'|---' * len(subsets)}|"]
    lines += [f"| {name} | {' | '.join(mean(name, 'held', subset) for subset in subsets)} |" for name in named]
    lines += ["", "| answers | perplexity under the untrained model, by seed |", "|---|---|"]
    for name in trials[0]["perplexity"]:
        values = ", ".join("{value:.1f} [{low:.1f}, {high:.1f}]".format(**t["perplexity"][name]) for t in trials)
        lines.append(f"| {name} | {values} |")
    for example in trials[0]["examples"]:
        lines += ["", f"**{example['prompt']}**", "", "| answers | text |", "|---|---|"]
        cells = {
            name: printable(text).replace("\n", "<br>").replace("|", "\\|") for name, text in example["answers"].items()
        }
        lines += [f"| {name} | {text} |" for name, text in cells.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    parser.add_argument("--model", help="pretrained model that every run starts from")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--small", action="store_true", help="run all code in minutes; nothing is learned")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "instruct", help="folder of the runs")
    parser.add_argument("--out", type=Path, help=f"file of results [{RESULTS.relative_to(ROOT)}; WORK with --small]")
    options = parser.parse_args(arguments)
    out = options.out or (options.work / "instruct.json" if options.small else RESULTS)
    if options.command == "run":
        if options.model is None:
            parser.error("--model: name the folder or file of a pretrained model")
        jax.config.update("jax_compilation_cache_dir", str(options.work / "xla"))
        settings = [*SETTINGS, *(SMALL if options.small else ()), *options.settings]
        measured, trials = commit(), list[dict[str, Any]]()
        for seed in options.seeds:
            trials.append(trial(trained(options.work / str(seed), options.model, seed, settings)))
            results = {
                "commit": measured,
                "versions": versions(),
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "settings": settings,
                "compared": compared(trials),
                "trials": trials,
            }
            write_file(out, (json.dumps(results) + "\n").encode())
    print(table(json.loads(out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
