"""Can a reward model see what reinforcement learning is to improve? Pairs whose better answer is known, by aspect.

Small reward models miss whole aspects while their pair accuracy looks fine, and a policy trained against such a model
learns nothing, or worse. One fault against none is not enough either: a model that sees any fault may see no difference
between many and fewer, and an improver that mends one at a time is then paid nothing for it.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from rich.table import Table

from pit.data.synthetic import FAMILIES
from pit.evaluate.schema import SensitivityRow
from pit.evaluate.stats import accuracy_interval
from pit.improve import strategy_of
from pit.rollout.sample import sample
from pit.rollout.score import Scorer
from pit.stages.board import Gold
from pit.stages.context import Run

Tokens = list[list[int]]

HELD_OUT = "held-out pairs"
"""Aspect of the eval fold's own pairs."""
PROGRESS = "progress, "
"""Beginning of the aspects in which the better answer is one step nearer to the clean one than the worse one."""


class Pairs(NamedTuple):
    """Inputs with a better and a worse answer, as token contents."""

    inputs: Tokens
    better: Tokens
    worse: Tokens


def sensitivity(run: Run) -> list[SensitivityRow]:
    """How often R_P and R_PIT rank the better of two made answers higher, by aspect, on prompts of the eval fold."""
    return compared(run, {**corrupted_pairs(run), **progress_pairs(run)})


def compared(run: Run, pairs: Mapping[str, Pairs]) -> list[SensitivityRow]:
    """How often the reward models of the data rank the better answer higher.

    R_P compares its two scores; R_PIT is asked for the symmetric and for the centred gap of the better answer over the
    worse one, which must be above 0.
    """
    quality = Scorer(*run.trained("reward-quality"), run.layout(run.config.quality.packing))
    gap = Scorer(*run.trained("reward-gap"), run.layout(run.config.gap.packing))
    rows = []
    for aspect, (inputs, better, worse) in sorted(pairs.items()):
        scores = quality.quality(inputs, [better, worse])
        wins = {"R_P": scores[:, 0] > scores[:, 1]}
        for form in ("symmetric", "centred"):
            wins[f"R_PIT {form}"] = gap.gap(inputs, worse, [better], form)[:, 0] > 0
        for model, won in wins.items():
            share = accuracy_interval(float(np.sum(won)), len(won))
            rows.append(SensitivityRow(model, aspect, share.value, share.low, share.high, share.n))
    return rows


def held_out_pairs(run: Run) -> dict[str, Pairs]:
    """The first pairs of the eval fold."""
    fold = run.fold("eval")
    rows = [fold.row(i) for i in range(min(run.config.evaluate.sensitivity_prompts, len(fold)))]
    prompts, better, worse = ([[int(t) for t in row[column]] for row in rows] for column in range(3))
    return {HELD_OUT: Pairs(prompts, better, worse)}


def sampled_pairs(run: Run, policy: str, gold: Gold, prompts: Tokens, *, seed: int) -> Pairs:
    """Two samples of a policy for each prompt, as `improve` draws answers, by what the gold says; ties are left out.

    Args:
        run: the run.
        policy: its finished stage that answers.
        gold: what answers are worth.
        prompts: contents of x.
        seed: root of the random numbers.
    """
    config, closings = run.config.improve, run.template.closings
    drawn = sample(
        *run.trained(policy),
        [[*x, closings[0]] for x in prompts],
        list(range(len(prompts))),
        n=2,
        capacity=run.config.windows.output - 1,
        strategy=strategy_of(config),
        eos_ids=(closings[2],),
        seed=seed,
        config=config.rollout,
    )
    first, second = ([drawn.answer(g, k) for g in range(len(prompts))] for k in range(2))
    pairs = Pairs([], [], [])
    for x, one, other, lead in zip(prompts, first, second, gold(prompts, first) - gold(prompts, second), strict=True):
        if lead:
            _append(pairs, x, *((one, other) if lead > 0 else (other, one)))
    return pairs


def corrupted_pairs(run: Run) -> dict[str, Pairs]:
    """Synthetic task: a clean answer and a copy with one fault, by the fault's aspect."""
    dice, result, family = random.Random(run.config.seed), _empty(), FAMILIES[run.config.data.task]
    for content, prompt in _prompts(run):
        clean = family.clean_answer(prompt)
        for aspect, corrupted in family.corruptions(prompt, clean, dice).items():
            _add(run, result[aspect], content, clean, corrupted)
    return dict(result)


def progress_pairs(run: Run) -> dict[str, Pairs]:
    """Synthetic task: neighbours on the way from an answer with all wrong to the clean one, by how much is wrong."""
    dice, result, family = random.Random(run.config.seed), _empty(), FAMILIES[run.config.data.task]
    for content, prompt in _prompts(run):
        ladder = family.progress(prompt, family.clean_answer(prompt), dice)
        for wrong, (better, worse) in enumerate(pairwise(ladder)):
            _add(run, result[f"{PROGRESS}{family.RUNGS} {wrong + 1} to {wrong}"], content, better, worse)
    return dict(result)


def _empty() -> dict[str, Pairs]:
    return defaultdict(lambda: Pairs([], [], []))


def _add(run: Run, pairs: Pairs, content: list[int], better: str, worse: str) -> None:
    _append(pairs, content, run.template.encode_answer(better), run.template.encode_answer(worse))


def _append(pairs: Pairs, *contents: list[int]) -> None:
    for column, tokens in zip(pairs, contents, strict=True):
        column.append(tokens)


def _prompts(run: Run) -> Iterator[tuple[list[int], str]]:
    """The first prompts of the eval fold, as contents and as texts."""
    template, fold = run.template, run.fold("eval")
    for i in range(min(run.config.evaluate.sensitivity_prompts, len(fold))):
        content = [int(t) for t in fold.row(i)[0]]
        yield content, template.decode_prompt(content)[0].content


def sensitivity_table(rows: Sequence[SensitivityRow]) -> Table:
    """The rows as a terminal table, aspects down, models across."""
    models = list(dict.fromkeys(row.model for row in rows))
    table = Table("aspect", *models, title="The better answer ranked above the worse one")
    for aspect in dict.fromkeys(row.aspect for row in rows):
        own = {row.model: row for row in rows if row.aspect == aspect}
        cells = (own[model] for model in models)
        table.add_row(aspect, *(f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in cells))
    return table
