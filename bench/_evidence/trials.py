"""One trial of the evidence: a variant is trained, with checkpoints shared by a seed's variants, and measured."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from _evidence.variants import MAIN, VARIANTS, stages_for
from pit.atomic import write_file
from pit.config import ImproveConfig, ImproverRlConfig, Passes, RewrittenRlConfig, RlConfig, RunConfig, digest
from pit.data.tokens import Tokens
from pit.evaluate import sensitivity
from pit.evaluate.gold import oracle_of
from pit.evaluate.stats import copy_rate
from pit.improve import Models, improve
from pit.rl.records import Gold
from pit.rollout.score import ModelScorer
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.seeds import Seed
from pit.stages import refresh, rl, sft
from pit.stages.prepare import prepare

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)


def trained(folder: Path, config: RunConfig, variant: str, report: Callable[[str], None]) -> Run:
    """Train all stages that a variant needs and return its run; stages of the seed's other variants are linked."""
    run = Run(folder, config)
    run.save_config()
    others = sorted(path for path in folder.parent.iterdir() if path.is_dir() and path != folder)
    prepared = [path for path in others if (path / "prepared.json").is_file() and not (path / "store").is_symlink()]
    if prepared and not (folder / "store").exists():
        for name in ("data", "tokenizer.json", "store"):
            (folder / name).symlink_to((prepared[0] / name).resolve())
    elif not (folder / "store").is_symlink():
        prepare(run)
    (folder / "stages").mkdir(exist_ok=True)
    for stage in stages_for(config, variant):
        wanted = stage.hash(run)
        for other in others:
            record = other / "stages" / stage.name / "done.json"
            made = record.is_file() and json.loads(record.read_text(encoding="utf-8"))["hash"] == wanted
            if made and not run.stage_folder(stage.name).exists():
                run.stage_folder(stage.name).symlink_to(record.parent.resolve())
        if not stage.done(run):
            report(f"{folder.parent.name}/{variant}: {stage.name}")
            subprocess.run([sys.executable, "-m", "pit", stage.name, "--run", str(folder)], check=True)
    return run


def logged(run: Run, stage: Stage, metric: str) -> list[tuple[int, float]]:
    """Return step and value of a metric of a finished stage, where it was measured."""
    lines = (run.stage_folder(stage.name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["step"], row[metric]) for row in map(json.loads, lines) if metric in row]


def training_costs(run: Run, variant: str) -> dict[str, dict[str, float]]:
    """Return steps, tokens trained on and seconds of each stage; of RL also tokens and references sampled."""
    costs = {}
    for stage in stages_for(run.config, variant):
        record = json.loads((run.stage_folder(stage.name) / "done.json").read_text(encoding="utf-8"))
        cost = {key: record[key] for key in ("steps", "tokens", "seconds")}
        section = stage.settings(run.config)
        if isinstance(section, RlConfig):
            means = logged(run, stage, "completions/mean_length")
            cost["sampled_tokens"] = round(sum(mean for _, mean in means) * section.prompts * section.samples)
        if isinstance(section, ImproverRlConfig):
            passes = section.passes if isinstance(section, RewrittenRlConfig) else Passes()
            share = section.sources.policy / section.sources.total
            cost["references_sampled"] = round(
                section.steps * section.prompts * share * (1 + (passes.least + passes.most) / 2)
            )
        costs[stage.name] = cost
    return costs


@dataclass
class Answered:
    """Answers to the eval prompts by method, with the tokens sampled for each, rejected candidates and y0 included.

    accepted: share of the last pass's candidates that a method with a stop rule accepted.
    """

    prompts: Tokens
    outputs: dict[str, Tokens] = field(default_factory=dict)
    sampled: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, outputs: Tokens, sampled: int) -> None:
        """Add one method's answers."""
        self.outputs[name], self.sampled[name] = outputs, sampled

    def plain(self) -> dict[str, Any]:
        """Return JSON values of all answers."""
        outputs = {name: column.rows() for name, column in self.outputs.items()}
        return {"prompts": self.prompts.rows(), "outputs": outputs, "sampled": self.sampled, "accepted": self.accepted}


def cost_of(outputs: Tokens) -> int:
    """Return the tokens sampled for some answers, end tokens included."""
    return int(outputs.length.sum()) + len(outputs)


def iterate(
    answered: Answered, stem: str, models: Models, config: ImproveConfig, seed: Seed, firsts: Tokens, *, stop: bool
) -> None:
    """Add the passes of an improver from given first answers, as methods `stem_k`."""
    requests = list(range(len(firsts)))
    root = seed.of(stem)
    paths = list(improve(models, answered.prompts, requests, config, seed=root, answers=firsts, stop_rule=stop))
    spent = cost_of(firsts)
    for k in range(1, config.iterations + 1):
        steps = [path.steps[k - 1] for path in paths]
        spent += cost_of(Tokens.of([step.candidate for step in steps]))
        answered.add(f"{stem}_{k}", Tokens.of([step.answer for step in steps]), spent)
        if stop:
            answered.accepted[f"{stem}_{k}"] = float(np.mean([step.accepted for step in steps]))


def best_draws(answered: Answered, run: Run, models: Models, config: ImproveConfig, seed: Seed) -> list[Tokens]:
    """Add the best of n by R_P, for as many samples as passes take, and return all draws of the policy, y0 first."""
    prompts, firsts = answered.prompts, answered.outputs["y0"]
    requests, count = list(range(len(prompts))), 1 + config.iterations
    draws = [firsts, *(models.respond(prompts, requests, config, seed.of("draw", k)) for k in range(1, count))]
    ranker = refresh.last_quality(run.config)
    layout = run.layout(ranker.settings(run.config).packing)
    scores = ModelScorer(ranker.load(run), layout).quality(prompts, draws)
    spent = np.cumsum([cost_of(draw) for draw in draws])
    for n in range(2, count + 1):
        best = scores[:, :n].argmax(axis=1)
        answered.add(f"best_of_{n}", Tokens.of([draws[best[g]][g] for g in requests]), int(spent[n - 1]))
    return draws


def resampled(answered: Answered, models: Models, config: ImproveConfig, draws: Sequence[Tokens]) -> None:
    """Add further draws of the policy in place of the improver's passes, accepted by the same gap."""
    current, spent = draws[0], cost_of(draws[0])
    for k, draw in enumerate(draws[1:], start=1):
        gaps = models.scorer.gap(answered.prompts, current, [draw], config.gap)[:, 0]
        current = draw.where(gaps > config.threshold, current)
        spent += cost_of(draw)
        answered.add(f"resample_{k}", current, spent)


def controls(answered: Answered, models: Models, config: ImproveConfig, seed: Seed) -> None:
    """Add one plain pass on another prompt's answer and on an empty one."""
    firsts, once = answered.outputs["y0"], replace(config, iterations=1)
    others, none = firsts.take([*range(1, len(firsts)), 0]), Tokens.of([[] for _ in firsts])
    for name, references in (("other_reference", others), ("empty_reference", none)):
        iterate(answered, name, models, once, seed, references, stop=False)


def sweep(answered: Answered, models: Models, fine_tuned: Models, config: ImproveConfig, seed: Seed) -> None:
    """Add y0 and both improvers at other temperatures; at the config's own temperature they are there already."""
    prompts = answered.prompts
    for temperature in TEMPERATURES:
        stem, warm = f"t{temperature}", replace(config, temperature=temperature)
        if temperature == config.temperature:
            methods = [f"{kind}_{k}" for kind in ("pit_stop", "sft_plain") for k in range(1, config.iterations + 1)]
            for name in ("y0", *methods):
                answered.add(f"{stem}/{name}", answered.outputs[name], answered.sampled[name])
            continue
        first = models.respond(prompts, range(len(prompts)), warm, seed.of(stem))
        answered.add(f"{stem}/y0", first, cost_of(first))
        iterate(answered, f"{stem}/pit_stop", models, warm, seed, first, stop=True)
        iterate(answered, f"{stem}/sft_plain", fine_tuned, warm, seed, first, stop=False)


def answers_of(run: Run, variant: str, prompts: Tokens, *, main: bool) -> Answered:
    """Return the answers of a variant by method.

    A policy alone has its best draws; the main variant has rivals, controls and other temperatures as well.
    """
    config, packing, seed = run.config.improve, run.config.reward_gap.packing, run.seed.of("evidence")
    requests, answered = list(range(len(prompts))), Answered(prompts)
    improver = VARIANTS[variant].improver
    models = Models.load(run, packing, improver=improver or sft.IMPROVER)
    firsts = models.respond(prompts, requests, config, seed)
    answered.add("y0", firsts, cost_of(firsts))
    if improver is None:
        best_draws(answered, run, models, config, seed)
        return answered
    for stop, word in ((False, "plain"), (True, "stop")):
        iterate(answered, f"pit_{word}", models, config, seed, firsts, stop=stop)
    if not main:
        return answered
    resampled(answered, models, config, best_draws(answered, run, models, config, seed))
    controls(answered, models, config, seed)
    fine_tuned = Models.load(run, packing, policy=sft.POLICY, improver=sft.IMPROVER)
    for stop, word in ((False, "plain"), (True, "stop")):
        iterate(answered, f"sft_{word}", fine_tuned, config, seed, firsts, stop=stop)
    by_sft = fine_tuned.respond(prompts, requests, config, seed.of("fine-tuned"))
    answered.add("sft_policy", by_sft, cost_of(by_sft))
    sweep(answered, models, fine_tuned, config, seed)
    return answered


def accuracies(run: Run, prompts: Tokens, worth: Gold) -> list[dict[str, Any]]:
    """Return how often reward models rank pairs like the oracle: held-out, faults, progress, both policies' samples."""
    pairs = sensitivity.held_out_pairs(run) | sensitivity.corrupted_pairs(run) | sensitivity.progress_pairs(run)
    for name, policy in (("samples of M_P", sft.POLICY), ("samples of M_P^RL", rl.POLICY)):
        sampled = sensitivity.sampled_pairs(run, policy.load(run), worth, prompts, seed=run.seed.of(name))
        if sampled.inputs:
            pairs[name] = sampled
    return [vars(row) for row in sensitivity.compared(run, pairs)]


def trial(folder: Path, family: str, variant: str, config: RunConfig, report: Callable[[str], None]) -> dict[str, Any]:
    """Train and measure one variant of one seed; return scores and lengths of every prompt, for paired comparisons.

    The answers themselves, token by token, stay in the trial's folder, so that another question needs no other run.
    """
    run = trained(folder, config, variant, report)
    begin = time.perf_counter()
    fold, worth = run.fold("eval"), oracle_of(run)
    prompts = fold.columns(range(min(config.evaluate.prompts, len(fold))))[0]
    main = variant == MAIN[family]
    answered = answers_of(run, variant, prompts, main=main)
    write_file(folder / "answers.json", (json.dumps(answered.plain()) + "\n").encode())
    firsts = answered.outputs["y0"]
    own_rewards = any(setting.startswith("reward_gap.") for setting in VARIANTS[variant].settings)
    ranked = accuracies(run, prompts, worth) if main or own_rewards else []
    seconds = time.perf_counter() - begin
    report(f"{folder.parent.name}/{variant}: {len(answered.outputs)} sets of answers in {seconds:.0f} s")
    return {
        "family": family,
        "seed": config.seed,
        "variant": variant,
        "config": digest(config),
        "quality": {name: worth(prompts, outputs).round(4).tolist() for name, outputs in answered.outputs.items()},
        "length": {name: outputs.length.tolist() for name, outputs in answered.outputs.items()},
        "sampled_tokens": answered.sampled,
        "accepted": answered.accepted,
        "training": training_costs(run, variant),
        "copy_rate": {
            name: copy_rate(answered.outputs[name].rows(), firsts.rows())._asdict()
            for name in ("pit_plain_1", "sft_plain_1")
            if name in answered.outputs
        },
        "accuracies": ranked,
        "answer_seconds": round(seconds, 1),
    }
