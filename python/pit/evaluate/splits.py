"""`pit search`: the split of a budget into draws, passes and candidates, and the rules, that held-out prompts favour.

No split is best everywhere: passes compound on one task and get stuck on another. So a run chooses for itself, on
prompts of the judge fold, which trained neither policy nor improver nor their reward models, and which no evaluation
uses. Their answers are compared by the oracle of a synthetic task, which stands for people who label a few hundred
answers, and otherwise by the judge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from pit.config import ConfigError, ImproveConfig, Rank
from pit.data.tokens import Tokens
from pit.evaluate.gold import best_gold
from pit.evaluate.remembered import RememberedGap, RememberedQuality, RememberedSampler
from pit.improve import Models, Trajectory, improve
from pit.improve.calibration import Calibration, fit
from pit.improve.record import Searched, changes_of, identity_of, write_searched
from pit.rl.records import Gold
from pit.run.copies import made_by_first
from pit.run.folder import Run
from pit.run.stage import Job, Services
from pit.seeds import Seed
from pit.stages import refresh, reward, rl
from pit.stages.graph import improver_of
from pit.terminal import say
from pit.train.log import make_reporter

FOLD = "judge"
"""Fold of the prompts on which splits are chosen."""

RANKS: tuple[Rank, ...] = ("quality", "gap", "both")

CALIBRATION_PASSES = 4
"""Passes, and draws, whose candidates a calibration is fitted to."""


def splits_of(answers: int, config: ImproveConfig) -> dict[str, ImproveConfig]:
    """Return the splits of a budget that are compared, by description; the simplest come first, so that they win ties.

    Args:
        answers: answers per prompt, 2 or more.
        config: section `improve`, whose sampling, gap and threshold all of them have.

    >>> list(splits_of(2, ImproveConfig()))[:4]
    ['best of 2, quality', 'best of 2, gap', 'best of 2, both', 'chain of 1']
    """
    plain, result = replace(config.chain(), iterations=answers - 1), dict[str, ImproveConfig]()

    def ranked(name: str, split: ImproveConfig) -> None:
        result.update({f"{name}, {rank}": replace(split, rank=rank) for rank in RANKS})

    ranked(f"best of {answers}", replace(plain, draws=answers, iterations=0))
    result[f"chain of {answers - 1}"] = plain
    result[f"chain of {answers - 1}, calibrated"] = replace(plain, accept="calibrated")
    result[f"resampled {answers - 1} times"] = replace(plain, restart=0)
    every = replace(plain, select="all")
    ranked(f"chain of {answers - 1}, best of all", every)
    if answers > 2:
        ranked(f"chain of {answers - 1}, restarts, best of all", replace(every, restart=1))
    for draws in (count for count in range(answers // 2, 1, -1) if answers % count == 0):
        passes = answers // draws - 1
        ranked(f"{draws} x (draw + {passes})", replace(every, draws=draws, iterations=passes, chains="each"))
    draws, left = answers // 2, answers - answers // 2
    for width in (1, left) if draws > 1 else ():
        name = f"best of {draws}, then {left // width} x {width}"
        ranked(name, replace(every, draws=draws, iterations=left // width, width=width))
    return result


def calibration_of(models: Models, prompts: Tokens, config: ImproveConfig, worth: Gold, seed: Seed) -> Calibration:
    """Return the calibration of acceptance, fitted to candidates of the improver and draws of the policy.

    Raises:
        ConfigError: all answers are of equal worth.
    """
    assert models.quality is not None
    scorer, quality, requests = models.scorer, models.quality, range(len(prompts))
    columns: tuple[list[np.ndarray], ...] = ([], [], [])
    for restart in (None, 0):
        chain = replace(config.chain(), iterations=CALIBRATION_PASSES, restart=restart)
        paths = list(improve(models, prompts, requests, chain, seed=seed))
        for number in range(CALIBRATION_PASSES):
            before = Tokens.of([path.answer(number) for path in paths])
            after = Tokens.of([path.steps[number].candidate for path in paths])
            scores = quality.quality(prompts, [before, after])
            columns[0].append(scorer.gap(prompts, before, [after], config.gap)[:, 0])
            columns[1].append(scores[:, 1] - scores[:, 0])
            columns[2].append(worth(prompts, after) - worth(prompts, before))
    try:
        return fit(*map(np.concatenate, columns))
    except ValueError as error:
        raise ConfigError(f"pit search: {error}") from error


def worths(
    models: Models,
    prompts: Tokens,
    splits: Mapping[str, ImproveConfig],
    worth: Gold,
    seed: Seed,
) -> Iterator[tuple[str, Float64[np.ndarray, " n"], list[Trajectory]]]:
    """Yield each split with the worth of its last answers and its trajectories; all draw with the same numbers."""
    for name, split in splits.items():
        paths = list(improve(models, prompts, range(len(prompts)), split, seed=seed))
        yield name, worth(prompts, Tokens.of([path.answer(split.rounds) for path in paths])), paths


def remembering(models: Models) -> Models:
    """Return models that make and score every answer once."""
    quality = None if models.quality is None else RememberedQuality(models.quality)
    return replace(
        models, sampler=RememberedSampler(models.sampler), scorer=RememberedGap(models.scorer), quality=quality
    )


def tokens_per_answer(paths: Sequence[Trajectory]) -> float:
    """Return the mean tokens of all answers that were made, each with its end."""
    return float(np.mean([len(made.tokens) + 1 for path in paths for made in path.made]))


def held_out_prompts(run: Run) -> Tokens:
    """Return the prompts on which a run chooses."""
    fold = run.fold(FOLD)
    return fold.columns(range(min(run.config.evaluate.search_prompts, len(fold))))[0]


def search_of(run: Run) -> Searched:
    """Return the splits of all budgets that held-out prompts favour, and the calibration of acceptance.

    Raises:
        CheckpointError: a model has not finished.
        ConfigError: all held-out answers are of equal worth.
    """
    config, seed, prompts = run.config.improve, run.seed.of("search"), held_out_prompts(run)
    worth, measure = best_gold(run)
    everything = replace(config, select="all", rank="both", accept="threshold")
    models = remembering(Models.load(run, run.config.reward_gap.packing, config=everything))
    calibration = calibration_of(models, prompts, config, worth, seed)
    models = replace(models, calibration=calibration)
    chosen, tried, lengths = dict[int, dict[str, object]](), dict[int, dict[str, float]](), 0.0
    reporter, budgets = make_reporter("search"), run.config.evaluate.search_budgets
    for number, answers in enumerate(budgets):
        splits = splits_of(answers, config)
        means = tried[answers] = {}
        for done, (name, values, paths) in enumerate(worths(models, prompts, splits, worth, seed), start=1):
            means[name] = round(float(values.mean()), 6)
            lengths = max(lengths, tokens_per_answer(paths))
            reporter.update(number * len(splits) + done, len(budgets) * len(splits), f"{answers} answers")
        chosen[answers] = changes_of(splits[max(means, key=lambda name: means[name])])
    reporter.close()
    return Searched(identity_of(run, config), measure, len(prompts), lengths, calibration, chosen, tried)


def _work(run: Run, services: Services) -> None:
    searched = search_of(run)

    def publish() -> None:
        path = write_searched(run, searched)
        say(f"mean worth by the {searched.worth} on {searched.prompts} prompts of the {FOLD} fold")
        for answers, means in searched.tried.items():
            tokens = answers * searched.tokens_per_answer
            say(f"{answers} answers, about {tokens:.0f} tokens per prompt")
            for name in sorted(means, key=lambda name: -means[name]):
                say(f"  {name:<44} {means[name]:.4f}")
        say(str(path))

    made_by_first(run, publish, "search")


SEARCH = Job(
    name="search",
    title="choose splits of token budgets on held-out prompts",
    work=_work,
    after=lambda config: (
        rl.POLICY,
        improver_of(config),
        refresh.last_gap(config),
        refresh.last_quality(config),
        *(() if config.data.synthetic else (reward.JUDGE,)),
    ),
    flags=(("--answers", "evaluate.search_answers", "Budgets, in answers per prompt, such as 2,6,12."),),
)
"""Chooses how `pit improve --budget` spends tokens, and writes RUN/search.json."""
