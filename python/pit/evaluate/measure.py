"""What a finished run achieved: deltas with intervals, quality by iteration, accuracies, copying, examples.

The judge is the synthetic task's oracle where there is one; beside it, always, a reward model trained on the judge
fold, which no other stage has seen and which gives no verdict unless it beats "longer is better".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from pit.data.template import gap as gap_topology
from pit.data.template import quality as quality_topology
from pit.evaluate.gold import judge_of, oracle_of
from pit.evaluate.schema import Example, ExampleStep, QualityPoint
from pit.evaluate.stats import (
    CopyRate,
    Delta,
    Interval,
    accuracy_interval,
    copy_rate,
    delta,
    judge_verdict_allowed,
    length_baseline_accuracy,
    length_controlled_delta,
    mean_interval,
    pair_accuracy,
)
from pit.improve import Models, Tokens, Trajectory, improve
from pit.rollout.score import Scorer
from pit.stages.board import Gold
from pit.stages.context import Run, last_reward
from pit.train.log import make_reporter
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW

Scores = Float64[np.ndarray, " n"]

FIRST_SEED = 7
"""Root of the random numbers of evaluation; training uses others."""


@dataclass(frozen=True)
class Answers:
    """Answers to the same eval prompts by each method, as token contents."""

    prompts: list[Tokens]
    methods: dict[str, list[Tokens]]
    improved: list[Trajectory]
    plain: list[Trajectory]


@dataclass(frozen=True)
class Judge:
    """A named scorer of (prompt, answer), and whether its verdicts count."""

    name: str
    scores: dict[str, Scores]
    verdict: bool


def answer_all(run: Run) -> Answers:
    """Sample every method's answers to the eval prompts."""
    config = run.config
    fold = run.fold("eval")
    count = min(config.evaluate.prompts, len(fold))
    prompts = [[int(t) for t in fold.row(i)[0]] for i in range(count)]
    requests = list(range(count))
    models = Models.load(run, config.gap.packing)
    reporter = make_reporter("evaluate")
    total = 5 * count

    def tracked(trajectories: Iterator[Trajectory], base: int, text: str) -> list[Trajectory]:
        result = []
        for trajectory in trajectories:
            result.append(trajectory)
            reporter.update(base + len(result), total, text)
        return result

    seed = FIRST_SEED + config.seed
    improved = tracked(improve(models, prompts, requests, config.improve, seed=seed), 0, "iterating, stop rule")
    firsts = [t.first for t in improved]
    plain = tracked(
        improve(models, prompts, requests, config.improve, seed=seed, answers=firsts, stop_rule=False),
        count,
        "iterating, plain",
    )
    once = replace(config.improve, iterations=1)
    # Another prompt's answer as the reference: what is left is what the improver does without reading its reference.
    foreign = firsts[1:] + firsts[:1]
    wrong = tracked(
        improve(models, prompts, requests, once, seed=seed, answers=foreign, stop_rule=False),
        2 * count,
        "another prompt's reference",
    )
    wrong_candidates = [t.answer(1) for t in wrong]
    fine_tuned = Models.load(run, config.gap.packing, policy="sft-policy")
    sft = fine_tuned.respond(prompts, requests, config.improve, seed)
    reporter.update(total, total, "scoring")
    reporter.close()
    wrong_gaps = models.gap.gap(prompts, firsts, [wrong_candidates], config.improve.gap)[:, 0]
    methods = {
        "sft_policy": sft,
        "policy": firsts,
        "improved": [t.answer(1) for t in improved],
        "improved_plain": [t.answer(1) for t in plain],
        "wrong_reference": [
            new if gap > config.improve.threshold else old
            for new, old, gap in zip(wrong_candidates, firsts, wrong_gaps, strict=True)
        ],
        "wrong_reference_plain": wrong_candidates,
    }
    for k in range(2, config.improve.iterations + 1):
        methods[f"improved_{k}"] = [t.answer(k) for t in improved]
        methods[f"improved_plain_{k}"] = [t.answer(k) for t in plain]
    return Answers(prompts, methods, improved, plain)


def oracle_judge(run: Run, answers: Answers) -> Judge:
    """The synthetic task's hidden quality, 0 to 1."""
    return Judge("oracle", _worth(oracle_of(run), answers), True)


def model_judge(run: Run, answers: Answers, accuracies: dict[str, Interval]) -> Judge:
    """The reward model of the judge fold."""
    verdict = judge_verdict_allowed(accuracies["judge"], accuracies["length"])
    return Judge("judge", _worth(judge_of(run), answers), verdict)


def _worth(gold: Gold, answers: Answers) -> dict[str, Float64[np.ndarray, " n"]]:
    return {name: gold(answers.prompts, outputs) for name, outputs in answers.methods.items()}


def model_accuracies(run: Run) -> dict[str, Interval]:
    """Pair accuracy of R_P, of the forms of R_PIT's gap, and of the judge, on the eval fold, beside length's."""
    fold = run.fold("eval")
    rows = [fold.row(i) for i in range(len(fold))]
    prompts, better, worse = ([[int(t) for t in row[c]] for row in rows] for c in range(3))
    columns = [prompts, better, worse]
    result = {}
    models = [("R_P", "reward-quality", "quality"), ("judge", "reward-judge", "judge")]
    if run.config.refresh.prompts:
        models.append(("R_P refreshed", "refresh-quality", "refresh"))
    for name, stage, section in models:
        scorer = Scorer(*run.trained(stage), run.layout(getattr(run.config, section).packing))
        leaves = scorer.leaves(columns, quality_topology()).astype(np.float64)
        result[name] = pair_accuracy(leaves[:, 0], leaves[:, 1])
    for name in dict.fromkeys(("reward-gap", last_reward("gap", run.config))):
        scorer = Scorer(*run.trained(name), run.layout(run.config.gap.packing))
        leaves = scorer.leaves(columns, gap_topology()).astype(np.float64)
        model = "R_PIT" if name == "reward-gap" else "R_PIT refreshed"
        result[f"{model} symmetric"] = pair_accuracy(leaves[:, GAP_WL], leaves[:, GAP_LW])
        centred = leaves[:, GAP_WL] - (leaves[:, GAP_WW] + leaves[:, GAP_LL]) / 2
        result[f"{model} centred"] = accuracy_interval(float(np.sum(centred > 0)), len(centred))
    length = [np.array([len(y) for y in side], np.float64) for side in (better, worse)]
    result["length"] = length_baseline_accuracy(length[0], length[1])
    return result


def deltas(judge: Judge, answers: Answers, *, seed: int, resamples: int) -> dict[str, Delta]:
    """Every comparison with the policy's own answer under one judge, and the headline at equal length."""
    if not judge.verdict:
        return {}
    scores = judge.scores
    result = {}
    for name in answers.methods:
        if name != "policy":
            pair = ("policy", "sft_policy") if name == "sft_policy" else (name, "policy")
            key = f"{pair[0]}_over_{pair[1]}/{judge.name}"
            result[key] = delta(scores[pair[0]], scores[pair[1]], seed=seed, resamples=resamples)
    lengths = {name: np.array([len(y) for y in answers.methods[name]], np.float64) for name in ("improved", "policy")}
    result[f"improved_over_policy/{judge.name}/length_controlled"] = length_controlled_delta(
        scores["improved"], scores["policy"], lengths["improved"], lengths["policy"], seed=seed, resamples=resamples
    )
    return result


def quality_series(judge: Judge, answers: Answers, *, stop_rule: bool, seed: int) -> tuple[QualityPoint, ...]:
    """Mean quality of the answer after each pass, with bootstrap intervals over prompts."""
    trajectories = answers.improved if stop_rule else answers.plain
    points = []
    for k in range(len(trajectories[0].steps) + 1):
        stem = "improved" if stop_rule else "improved_plain"
        name = "policy" if k == 0 else stem if k == 1 else f"{stem}_{k}"
        mean = mean_interval(judge.scores[name], seed=seed)
        accepted = float(np.mean([t.steps[k - 1].accepted for t in trajectories])) if k and stop_rule else None
        tokens = float(np.mean([len(t.answer(k)) for t in trajectories]))
        points.append(QualityPoint(k, mean.value, mean.low, mean.high, accepted, tokens))
    return tuple(points)


def copy_rates(answers: Answers) -> dict[str, CopyRate]:
    """How much of its reference the improver's first candidate repeats, for its own and for a foreign reference."""
    own = copy_rate(answers.methods["improved_plain"], answers.methods["policy"])
    foreign = answers.methods["policy"][1:] + answers.methods["policy"][:1]
    return {"own reference": own, "another prompt's": copy_rate(answers.methods["wrong_reference_plain"], foreign)}


def examples(run: Run, answers: Answers, judge: Judge) -> tuple[Example, ...]:
    """A few prompts: the first of each outcome of the first pass, in turn, so that failures are seen too."""
    template, result = run.template, []
    for i in in_turn(_outcomes(answers, judge), run.config.evaluate.examples):
        trajectory = answers.improved[i]
        steps = [ExampleStep(template.decode_answer(trajectory.first), quality=_quality(run, judge, answers, i, None))]
        standing = 0
        for number, step in enumerate(trajectory.steps, start=1):
            steps.append(
                ExampleStep(
                    text=template.decode_answer(step.candidate),
                    gap=step.gap,
                    accepted=step.accepted,
                    quality=_quality(run, judge, answers, i, step.candidate),
                    reference=standing,
                )
            )
            standing = number if step.accepted else standing
        messages = template.decode_prompt(answers.prompts[i])
        prompt = "\n\n".join(m.content if len(messages) == 1 else f"{m.role}: {m.content}" for m in messages)
        result.append(Example(prompt, tuple(steps)))
    return tuple(result)


def _outcomes(answers: Answers, judge: Judge) -> list[int]:
    """What the first pass did to each prompt's answer: 0 improved it, 1 harmed it, 2 kept it, 3 changed nothing."""
    change = (
        np.sign(judge.scores["improved"] - judge.scores["policy"]) if judge.verdict else np.zeros(len(answers.prompts))
    )
    outcomes = []
    for trajectory, sign in zip(answers.improved, change, strict=True):
        step = trajectory.steps[0]
        if step.accepted:
            outcomes.append(1 if sign < 0 else 0)
        else:
            outcomes.append(3 if step.candidate == trajectory.first else 2)
    return outcomes


def in_turn(kinds: Sequence[int], count: int) -> list[int]:
    """The first `count` places, taking the next one of each kind in turn.

    >>> in_turn([3, 3, 3, 0, 1, 0, 3, 0], 5)
    [3, 4, 0, 5, 1]
    """
    queues = [[i for i, kind in enumerate(kinds) if kind == each] for each in sorted(set(kinds))]
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:count]


def _quality(run: Run, judge: Judge, answers: Answers, i: int, candidate: Tokens | None) -> float | None:
    """The oracle's word on one shown text; a judge model's score of a single text means nothing to a reader."""
    if judge.name != "oracle":
        return None
    if candidate is None:
        return float(judge.scores["policy"][i])
    return float(oracle_of(run)([answers.prompts[i]], [candidate])[0])
