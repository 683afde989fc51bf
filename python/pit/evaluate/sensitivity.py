"""Sensitivity of the reward models to what RL is to improve: pairs whose better answer is known, by aspect.

Small reward models miss whole aspects while their pair accuracy looks fine, and a policy trained against such a model
learns nothing, or worse. One fault against none is not enough: a model that sees any fault may see no difference
between many and fewer, and then rewards no improver that mends one at a time.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from rich.table import Table

from pit.data.synthetic import FAMILIES, Family
from pit.data.tokens import Sequences, Tokens
from pit.evaluate.schema import SensitivityRow
from pit.evaluate.stats import accuracy_interval, sign_accuracy
from pit.improve import strategy_of
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rl.records import Gold
from pit.rollout.score import ModelScorer
from pit.run.folder import Run
from pit.seeds import Seed
from pit.stages import reward

HELD_OUT = "held-out pairs"
"""Aspect of the pairs of the eval fold."""
PROGRESS = "progress, "
"""Beginning of the aspects in which the better answer is one step nearer to the clean one than the worse one."""


class Pairs(NamedTuple):
    """Inputs with a better and a worse answer, as token contents."""

    inputs: list[list[int]]
    better: list[list[int]]
    worse: list[list[int]]


def sensitivity(run: Run) -> list[SensitivityRow]:
    """Return how often R_P and R_PIT rank the better of two made answers higher, by aspect, on eval prompts."""
    return compared(run, {**corrupted_pairs(run), **progress_pairs(run)})


def compared(run: Run, pairs: Mapping[str, Pairs]) -> list[SensitivityRow]:
    """Return how often the reward models of the data rank the better answer higher.

    R_P compares its two scores; R_PIT is asked for the symmetric gap of the better answer over the worse one, which
    must be above 0, and for the centred gap both ways, which must be above 0 and below 0.
    """
    quality = ModelScorer(reward.QUALITY.load(run), run.layout(run.config.reward_quality.packing))
    gap = ModelScorer(reward.GAP.load(run), run.layout(run.config.reward_gap.packing))
    rows = []
    for aspect, (inputs, better, worse) in sorted(pairs.items()):
        scores = quality.quality(inputs, [better, worse])
        symmetric = gap.gap(inputs, worse, [better], "symmetric")[:, 0]
        forward = gap.gap(inputs, worse, [better], "centred")[:, 0]
        backward = gap.gap(inputs, better, [worse], "centred")[:, 0]
        shares = {
            "R_P": accuracy_interval(float(np.sum(scores[:, 0] > scores[:, 1])), len(scores)),
            "R_PIT symmetric": accuracy_interval(float(np.sum(symmetric > 0)), len(scores)),
            "R_PIT centred": sign_accuracy(forward, backward),
        }
        for model, share in shares.items():
            rows.append(SensitivityRow(model, aspect, share.value, share.low, share.high, share.n))
    return rows


def held_out_pairs(run: Run) -> dict[str, Pairs]:
    """Return the first pairs of the eval fold."""
    fold = run.fold("eval")
    columns = fold.columns(range(min(run.config.evaluate.sensitivity_prompts, len(fold))))
    return {HELD_OUT: Pairs(*(column.rows() for column in columns))}


def sampled_pairs(run: Run, policy: Model[Decoder], gold: Gold, prompts: Sequences, *, seed: Seed) -> Pairs:
    """Return two samples of a policy for each prompt, as `improve` draws answers, better one first; ties are left out.

    Args:
        run: the run.
        policy: the model that answers.
        gold: true worth of answers.
        prompts: contents of x.
        seed: root of the random numbers.
    """
    config, inputs = run.config.improve, Tokens.of(prompts)
    sampler = run.sampler(config.rollout)
    samples = sampler.samples(policy, range(len(inputs)), inputs, n=2, strategy=strategy_of(config), seed=seed.number)
    first, second = map(run.template.served, samples.answers())
    pairs = Pairs([], [], [])
    lead = gold(inputs, first) - gold(inputs, second)
    for x, one, other, ahead in zip(inputs.rows(), first.rows(), second.rows(), lead.tolist(), strict=True):
        if ahead:
            _append(pairs, x, *((one, other) if ahead > 0 else (other, one)))
    return pairs


def corrupted_pairs(run: Run) -> dict[str, Pairs]:
    """Return clean answers of the synthetic task and copies with one fault, by the fault's aspect."""
    dice, result, family = random.Random(run.config.seed), _empty(), _family(run)
    for content, prompt in _prompts(run):
        clean = family.clean_answer(prompt)
        for aspect, corrupted in family.corruptions(prompt, clean, dice).items():
            _add(run, result[aspect], content, clean, corrupted)
    return dict(result)


def progress_pairs(run: Run) -> dict[str, Pairs]:
    """Return neighbours on the way from an all-wrong answer to the clean one, by how much is wrong."""
    dice, result, family = random.Random(run.config.seed), _empty(), _family(run)
    for content, prompt in _prompts(run):
        ladder = family.progress(prompt, family.clean_answer(prompt), dice)
        for wrong, (better, worse) in enumerate(pairwise(ladder)):
            _add(run, result[f"{PROGRESS}{family.RUNGS} {wrong + 1} to {wrong}"], content, better, worse)
    return dict(result)


def _family(run: Run) -> Family:
    assert run.config.data.task is not None
    return FAMILIES[run.config.data.task]


def _empty() -> dict[str, Pairs]:
    return defaultdict(lambda: Pairs([], [], []))


def _add(run: Run, pairs: Pairs, content: list[int], better: str, worse: str) -> None:
    _append(pairs, content, run.template.encode_answer(better), run.template.encode_answer(worse))


def _append(pairs: Pairs, *contents: list[int]) -> None:
    for column, tokens in zip(pairs, contents, strict=True):
        column.append(tokens)


def _prompts(run: Run) -> Iterator[tuple[list[int], str]]:
    """Yield the first prompts of the eval fold, as contents and as texts."""
    template, fold = run.template, run.fold("eval")
    for content in fold.columns(range(min(run.config.evaluate.sensitivity_prompts, len(fold))))[0].rows():
        yield content, template.decode_prompt(content)[0].content


def sensitivity_table(rows: Sequence[SensitivityRow]) -> Table:
    """Return the rows as a terminal table, aspects down, models across."""
    models = list(dict.fromkeys(row.model for row in rows))
    table = Table("aspect", *models, title="The better answer ranked above the worse one")
    for aspect in dict.fromkeys(row.aspect for row in rows):
        own = {row.model: row for row in rows if row.aspect == aspect}
        cells = (own[model] for model in models)
        table.add_row(aspect, *(f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in cells))
    return table
