"""Measurements of a finished run: deltas with intervals, quality by iteration, accuracies, copying, examples.

The judge is the synthetic task's oracle where there is one. A reward model of the judge fold, which no other stage
uses, judges in any case; it gives no verdict unless it beats "longer is better".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from pit.data.synthetic import FAMILIES
from pit.data.template import gap as gap_topology
from pit.data.template import quality as quality_topology
from pit.data.template import rollout as rollout_topology
from pit.data.tokens import Tokens
from pit.evaluate.gold import judge_of, oracle_of
from pit.evaluate.schema import Example, ExampleStep, QualityPoint
from pit.evaluate.stats import (
    CopyRate,
    Delta,
    Interval,
    copy_rate,
    delta,
    judge_verdict_allowed,
    length_baseline_accuracy,
    length_controlled_delta,
    mean_interval,
    pair_accuracy,
    perplexity_interval,
    sign_accuracy,
)
from pit.improve import Models, Trajectory, improve
from pit.rl.records import Gold
from pit.rollout.score import LikelihoodScorer, ModelScorer
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages import offline, refresh, reward, rl, rl_again, sft
from pit.stages.graph import improver_of
from pit.train.log import make_reporter
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW

Scores = Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class Answers:
    """Answers to the same eval prompts by each method, as token contents."""

    prompts: Tokens
    methods: dict[str, Tokens]
    improved: list[Trajectory]
    plain: list[Trajectory]


@dataclass(frozen=True)
class Judge:
    """Scores of the methods' answers by one judge, and whether its verdicts count."""

    name: str
    scores: dict[str, Scores]
    verdict: bool


def answer_all(run: Run) -> Answers:
    """Return every method's answers to the eval prompts."""
    config, fold, seed = run.config, run.fold("eval"), run.seed.of("evaluate")
    requests = list(range(min(config.evaluate.prompts, len(fold))))
    prompts = fold.columns(requests)[0]
    models = Models.load(run, config.reward_gap.packing)
    reporter, total = make_reporter("evaluate"), 5 * len(requests)

    def tracked(trajectories: Iterator[Trajectory], base: int, text: str) -> list[Trajectory]:
        result = []
        for trajectory in trajectories:
            result.append(trajectory)
            reporter.update(base + len(result), total, text)
        return result

    accepting = improve(models, prompts, requests, config.improve, seed=seed.of("accepted"))
    improved = tracked(accepting, 0, "iterating, stop rule")
    first = answers_of(improved, 0)
    iterating = improve(
        models, prompts, requests, config.improve.chain(), seed=seed.of("plain"), answers=first, stop_rule=False
    )
    plain = tracked(iterating, len(requests), "iterating, plain")
    once = replace(config.improve.chain(), iterations=1)
    # Another prompt's answer as the reference shows what the improver does without reading its reference.
    foreign = first.take([*requests[1:], *requests[:1]])
    unrelated = improve(
        models, prompts, requests, once, seed=seed.of("wrong reference"), answers=foreign, stop_rule=False
    )
    wrong = answers_of(tracked(unrelated, 2 * len(requests), "another prompt's reference"), 1)
    fine_tuned = replace(models, policy=sft.POLICY.load(run))
    by_sft = fine_tuned.respond(prompts, requests, config.improve, seed.of("fine-tuned"))
    rivals = {}
    if rl_again.POLICY_AGAIN.included(config):
        again = replace(models, policy=rl_again.POLICY_AGAIN.load(run))
        rivals["policy_again"] = again.respond(prompts, requests, config.improve, seed.of("policy again"))
    if offline.POLICY.included(config):
        by_dpo = replace(models, policy=offline.POLICY.load(run))
        rivals["dpo_policy"] = by_dpo.respond(prompts, requests, config.improve, seed.of("dpo policy"))
    if offline.IMPROVER.included(config):
        by_srpo = replace(models, improver=offline.IMPROVER.load(run))
        chain, of_srpo = config.improve.chain(), seed.of("srpo improver")
        passes = list(improve(by_srpo, prompts, requests, chain, seed=of_srpo, answers=first, stop_rule=False))
        rivals |= {_numbered("srpo_improved", k): answers_of(passes, k) for k in range(1, chain.iterations + 1)}
    reporter.update(total, total, "scoring")
    reporter.close()
    wrong_gaps = models.scorer.gap(prompts, first, [wrong], config.improve.gap)[:, 0]
    methods = {
        "sft_policy": by_sft,
        "policy": first,
        **rivals,
        "improved": answers_of(improved, 1),
        "improved_plain": answers_of(plain, 1),
        "wrong_reference": wrong.where(wrong_gaps > config.improve.threshold, first),
        "wrong_reference_plain": wrong,
    }
    for k in range(2, config.improve.rounds + 1):
        methods[_numbered("improved", k)] = answers_of(improved, k)
    for k in range(2, config.improve.iterations + 1):
        methods[_numbered("improved_plain", k)] = answers_of(plain, k)
    return Answers(prompts, methods, improved, plain)


def _numbered(stem: str, k: int) -> str:
    """Return the name of the answers after k passes."""
    return stem if k == 1 else f"{stem}_{k}"


def answers_of(trajectories: Sequence[Trajectory], iteration: int) -> Tokens:
    """Return the answers kept after `iteration` rounds; 0 is y0."""
    return Tokens.of([trajectory.answer(iteration) for trajectory in trajectories])


def oracle_judge(run: Run, answers: Answers) -> Judge:
    """Return the scores of the synthetic task's oracle: hidden quality, 0 to 1."""
    return Judge("oracle", _worth(oracle_of(run), answers), True)


def model_judge(run: Run, answers: Answers, accuracies: dict[str, Interval]) -> Judge:
    """Return the scores of the reward model of the judge fold."""
    verdict = judge_verdict_allowed(accuracies["judge"], accuracies["length"])
    return Judge("judge", _worth(judge_of(run), answers), verdict)


def perplexities(run: Run) -> dict[str, Interval]:
    """Return the perplexity, per token with EOS, of the better answers of the eval fold under each decoder.

    The run's base comes first, in both uses: as a policy x -> y_w, and as an improver x, y_l -> y_w.
    """
    config, fold = run.config, run.fold("eval")
    x, better, worse = fold.columns(range(min(config.evaluate.prompts, len(fold))))
    uses: tuple[tuple[str, Sequence[Tokens], Sequence[Stage]], ...] = (
        ("pretrained", (x, better), (sft.POLICY, rl.POLICY)),
        ("pretrained as improver", (x, worse, better), (sft.IMPROVER, improver_of(config))),
    )
    result = {}
    for name, columns, stages in uses:
        layout = run.layout(stages[0].settings(config).packing)
        for label, model in ((name, run.base), *((stage.name, stage.load(run)) for stage in stages)):
            tree = rollout_topology(1, with_reference=len(columns) == 3)
            nll = -LikelihoodScorer(model, layout).leaves(columns, tree)[:, 0].astype(np.float64)
            result[label] = perplexity_interval(nll, better.length + 1)
    return result


def _worth(gold: Gold, answers: Answers) -> dict[str, Float64[np.ndarray, " n"]]:
    return {name: gold(answers.prompts, outputs) for name, outputs in answers.methods.items()}


def model_accuracies(run: Run) -> dict[str, Interval]:
    """Return the pair accuracy on the eval fold of R_P, of the forms of R_PIT's gap, of the judge, and of length."""
    fold = run.fold("eval")
    columns = fold.columns(range(len(fold)))
    result = {}
    models = {"R_P": reward.QUALITY, "judge": reward.JUDGE, "R_P refreshed": refresh.last_quality(run.config)}
    for name, stage in models.items():
        if name != "R_P refreshed" or stage is not reward.QUALITY:
            scorer = ModelScorer(stage.load(run), run.layout(stage.settings(run.config).packing))
            leaves = scorer.leaves(columns, quality_topology()).astype(np.float64)
            result[name] = pair_accuracy(leaves[:, 0], leaves[:, 1])
    for model, stage in {"R_PIT": reward.GAP, "R_PIT refreshed": refresh.last_gap(run.config)}.items():
        if model == "R_PIT" or stage is not reward.GAP:
            scorer = ModelScorer(stage.load(run), run.layout(run.config.reward_gap.packing))
            leaves = scorer.leaves(columns, gap_topology()).astype(np.float64)
            result[f"{model} symmetric"] = pair_accuracy(leaves[:, GAP_WL], leaves[:, GAP_LW])
            own = (leaves[:, GAP_WW] + leaves[:, GAP_LL]) / 2
            result[f"{model} centred"] = sign_accuracy(leaves[:, GAP_WL] - own, leaves[:, GAP_LW] - own)
    better, worse = (column.length.astype(np.float64) for column in columns[1:])
    result["length"] = length_baseline_accuracy(better, worse)
    return result


OWN = "own answers"
"""End of the names of accuracies on answers of the models themselves."""


def own_accuracies(run: Run, answers: Answers, judge: Judge) -> dict[str, Interval]:
    """Return the accuracy of the last R_P and R_PIT on labelled pairs of the models' own answers.

    With an oracle: y0 and the improver's first pass over it, where their worth differs. Otherwise the held-out pairs of
    `refresh-pairs`. Nothing where nobody has labelled such answers.
    """
    if judge.name == "oracle":
        worth = [judge.scores[name] for name in ("policy", "improved_plain")]
        differing = np.flatnonzero(worth[0] != worth[1])
        first, second = (answers.methods[name].take(differing) for name in ("policy", "improved_plain"))
        won = worth[1][differing] > worth[0][differing]
        inputs, better, worse = answers.prompts.take(differing), second.where(won, first), first.where(won, second)
    elif refresh.PAIRS.included(run.config):
        pairs = refresh.held_out_of(refresh.read_pairs(run), run.config.refresh)
        inputs, better, worse = (Tokens.of([pair[column] for pair in pairs]) for column in range(3))
    else:
        return {}
    if not len(inputs):
        return {}
    quality, gap = (stage(run.config) for stage in (refresh.last_quality, refresh.last_gap))
    ranker = ModelScorer(quality.load(run), run.layout(quality.settings(run.config).packing))
    scores = ranker.quality(inputs, [better, worse]).astype(np.float64)
    judged = ModelScorer(gap.load(run), run.layout(run.config.reward_gap.packing))
    gaps = judged.gap(inputs, worse, [better], "symmetric")[:, 0].astype(np.float64)
    return {
        f"R_P, {OWN}": pair_accuracy(scores[:, 0], scores[:, 1]),
        f"R_PIT symmetric, {OWN}": pair_accuracy(gaps, -gaps),
    }


def deltas(judge: Judge, answers: Answers, *, seed: int, resamples: int) -> dict[str, Delta]:
    """Return every comparison with the policy's own answer under one judge, and the headline at equal length."""
    if not judge.verdict:
        return {}
    scores = judge.scores
    result = {}
    for name in answers.methods:
        if name != "policy":
            pair = ("policy", "sft_policy") if name == "sft_policy" else (name, "policy")
            key = f"{pair[0]}_over_{pair[1]}/{judge.name}"
            result[key] = delta(scores[pair[0]], scores[pair[1]], seed=seed, resamples=resamples)
    for rival in ("policy_again", "dpo_policy", "srpo_improved"):
        if rival in scores:
            result[f"improved_over_{rival}/{judge.name}"] = delta(
                scores["improved"], scores[rival], seed=seed, resamples=resamples
            )
    lengths = {name: answers.methods[name].length.astype(np.float64) for name in ("improved", "policy")}
    result[f"improved_over_policy/{judge.name}/length_controlled"] = length_controlled_delta(
        scores["improved"], scores["policy"], lengths["improved"], lengths["policy"], seed=seed, resamples=resamples
    )
    return result


# Five parameters: whose scores of what, under which rule, and of which prompts.
def quality_series(
    judge: Judge, answers: Answers, *, stop_rule: bool, seed: int, rows: Sequence[int] | None = None
) -> tuple[QualityPoint, ...]:
    """Return the mean quality of the answer after each pass, with bootstrap intervals over prompts.

    Args:
        judge: the scores.
        answers: the answers.
        stop_rule: take the answers that the stop rule kept, otherwise every candidate.
        seed: seed of the bootstrap.
        rows: numbers of the prompts; None for all.
    """
    trajectories = answers.improved if stop_rule else answers.plain
    places = list(range(len(trajectories))) if rows is None else list(rows)
    trajectories = [trajectories[place] for place in places]
    points = []
    for k in range(len(trajectories[0].steps) + 1):
        name = _numbered("improved" if stop_rule else "improved_plain", k) if k else "policy"
        mean = mean_interval(judge.scores[name][places], seed=seed)
        accepted = float(np.mean([t.steps[k - 1].accepted for t in trajectories])) if k and stop_rule else None
        tokens = float(np.mean([len(t.answer(k)) for t in trajectories]))
        points.append(QualityPoint(k, mean.value, mean.low, mean.high, accepted, tokens))
    return tuple(points)


def subset_series(run: Run, judge: Judge, answers: Answers, *, seed: int) -> dict[str, tuple[QualityPoint, ...]]:
    """Return the quality by pass with the stop rule on each evaluation subset of a synthetic task, if it has several.

    A family may hold out kinds of prompts from training, so that one sees what carries over to them.
    """
    assert run.config.data.task is not None
    prompts = [run.template.decode_prompt(x)[0].content for x in answers.prompts]
    return {
        f"{name}, stop rule": quality_series(judge, answers, stop_rule=True, seed=seed, rows=rows)
        for name, rows in subsets(run.config.data.task, prompts).items()
    }


def subsets(task: str, prompts: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each evaluation subset of a synthetic task by its name; nothing where there is one subset."""
    names = [FAMILIES[task].subset_of(prompt) for prompt in prompts]
    kinds = sorted(set(names))
    return {kind: [row for row, name in enumerate(names) if name == kind] for kind in kinds} if len(kinds) > 1 else {}


def copy_rates(answers: Answers) -> dict[str, CopyRate]:
    """Return how much of its reference the improver's first candidate repeats, its own and another prompt's."""
    references = answers.methods["policy"].rows()
    foreign = references[1:] + references[:1]
    return {
        "own reference": copy_rate(answers.methods["improved_plain"].rows(), references),
        "another prompt's": copy_rate(answers.methods["wrong_reference_plain"].rows(), foreign),
    }


def examples(run: Run, answers: Answers, judge: Judge) -> tuple[Example, ...]:
    """Return a few prompts: the first of each outcome of the first pass, in turn, so that failures are shown too."""
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
    """Return the outcome of the first pass per prompt: 0 improved, 1 harmed, 2 kept the answer, 3 changed nothing."""
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
    """Return the first `count` places, taking the next one of each kind in turn.

    >>> in_turn([3, 3, 3, 0, 1, 0, 3, 0], 5)
    [3, 4, 0, 5, 1]
    """
    queues = [[i for i, kind in enumerate(kinds) if kind == each] for each in sorted(set(kinds))]
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:count]


def _quality(run: Run, judge: Judge, answers: Answers, i: int, candidate: list[int] | None) -> float | None:
    """Return the oracle's quality of one text; None for a judge model, whose score of a single text means nothing."""
    if judge.name != "oracle":
        return None
    if candidate is None:
        return float(judge.scores["policy"][i])
    return float(oracle_of(run)([answers.prompts[i]], [candidate])[0])
