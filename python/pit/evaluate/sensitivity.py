"""Can a reward model see what reinforcement learning is to improve? One corruption per aspect against the clean answer.

Small reward models miss whole aspects while their pair accuracy looks fine, and a policy trained against such a model
learns nothing, or worse. The check is run before RL and stops a run whose models are blind.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from pit.config import ConfigError
from pit.data.synthetic import clean_answer, corruptions
from pit.evaluate.schema import SensitivityRow
from pit.evaluate.stats import accuracy_interval
from pit.rollout.score import Scorer
from pit.stages.context import Run


def sensitivity(run: Run) -> list[SensitivityRow]:
    """How often R_P and R_PIT rank a clean answer above its corrupted copy, by aspect, on prompts of the eval fold.

    R_P compares its two scores; R_PIT is asked for the symmetric and for the centred gap of the clean answer over the
    corrupted one, which must be above 0.
    """
    pairs = _pairs(run)
    quality = Scorer(*run.trained("reward-quality"), run.layout(run.config.quality.packing))
    gap = Scorer(*run.trained("reward-gap"), run.layout(run.config.gap.packing))
    rows = []
    for aspect, (inputs, clean, corrupted) in sorted(pairs.items()):
        scores = quality.quality(inputs, [clean, corrupted])
        wins = {"R_P": scores[:, 0] > scores[:, 1]}
        for form in ("symmetric", "centred"):
            wins[f"R_PIT {form}"] = gap.gap(inputs, corrupted, [clean], form)[:, 0] > 0
        for model, won in wins.items():
            share = accuracy_interval(float(np.sum(won)), len(won))
            rows.append(SensitivityRow(model, aspect, share.value, share.low, share.high, share.n))
    return rows


def _pairs(run: Run) -> dict[str, tuple[list[list[int]], list[list[int]], list[list[int]]]]:
    """By aspect: inputs, clean answers and corrupted answers, as token contents."""
    template, fold = run.template, run.fold("eval")
    dice = random.Random(run.config.seed)
    result: dict[str, tuple[list[list[int]], list[list[int]], list[list[int]]]] = defaultdict(lambda: ([], [], []))
    for i in range(min(run.config.evaluate.sensitivity_prompts, len(fold))):
        content = [int(t) for t in fold.row(i)[0]]
        prompt = template.decode_prompt(content)[0].content
        clean = clean_answer(prompt)
        for aspect, corrupted in corruptions(prompt, clean, dice).items():
            inputs, cleans, bad = result[aspect]
            inputs.append(content)
            cleans.append(template.encode_answer(clean))
            bad.append(template.encode_answer(corrupted))
    return result


def sensitivity_table(rows: Sequence[SensitivityRow]) -> Table:
    """The rows as a terminal table, aspects down, models across."""
    models = list(dict.fromkeys(row.model for row in rows))
    table = Table("aspect", *models, title="Clean answer ranked above its corrupted copy")
    for aspect in dict.fromkeys(row.aspect for row in rows):
        own = {row.model: row for row in rows if row.aspect == aspect}
        cells = (own[model] for model in models)
        table.add_row(aspect, *(f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in cells))
    return table


def require_sensitive(rows: Sequence[SensitivityRow], floor: float) -> None:
    """Refuse to go on to RL with a blind reward model (R_P, or R_PIT's symmetric gap).

    Raises:
        ConfigError: an aspect is ranked right less often than `floor`.
    """
    blind = [row for row in rows if row.model != "R_PIT centred" and row.accuracy < floor]
    if blind:
        worst = ", ".join(f"{row.model} {row.aspect} {row.accuracy:.2f}" for row in blind)
        raise ConfigError(
            f"evaluate.sensitivity_floor = {floor}: every aspect must be ranked right at least that often before RL, "
            f"but {worst}; train the reward models longer (quality.steps, gap.steps), or set "
            "evaluate.sensitivity_floor=0 to go on regardless"
        )
