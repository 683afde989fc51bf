"""The gate before RL: it warns, or stops the run, where a reward model cannot see what RL is to improve."""

from collections.abc import Sequence

from pit import processes
from pit.config import ConfigError, EvaluateConfig
from pit.evaluate import sensitivity
from pit.evaluate.schema import SensitivityRow
from pit.run.folder import Run
from pit.run.stage import Job, Services
from pit.stages import reward
from pit.terminal import Terminal, say


class BlindRewardError(ConfigError):
    """A reward model ranks pairs right less often than the gate asks for."""


def gate_rows(run: Run) -> list[SensitivityRow]:
    """Return what the gate measures: held-out pairs, and for a synthetic task single faults and progress."""
    pairs = sensitivity.held_out_pairs(run)
    if run.config.data.synthetic:
        pairs |= sensitivity.corrupted_pairs(run) | sensitivity.progress_pairs(run)
    return sensitivity.compared(run, pairs)


def floor_of(aspect: str, config: EvaluateConfig) -> tuple[str, float]:
    """Return the floor of an aspect: the name of its setting, and its value."""
    if aspect == sensitivity.HELD_OUT:
        return "pairs_floor", config.pairs_floor
    if aspect.startswith(sensitivity.PROGRESS):
        return "progress_floor", config.progress_floor
    return "sensitivity_floor", config.sensitivity_floor


def failed(rows: Sequence[SensitivityRow], config: EvaluateConfig) -> list[str]:
    """Return a line for each floor that R_P or R_PIT's symmetric gap is below."""
    worst: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        name, floor = floor_of(row.aspect, config)
        if row.model != "R_PIT centred" and row.accuracy < floor:
            worst.setdefault((name, floor), []).append(f"{row.model} {row.aspect} {row.accuracy:.2f}")
    return [f"evaluate.{name} = {floor}: but {', '.join(low)}" for (name, floor), low in worst.items()]


def require_seeing(rows: Sequence[SensitivityRow], config: EvaluateConfig, command: str) -> list[str]:
    """Return the lines to warn of, where the gate only warns.

    Args:
        rows: `gate_rows`.
        config: floors, and the action below them.
        command: command that measures again.

    Raises:
        BlindRewardError: the gate stops the run.
    """
    lines = failed(rows, config)
    if lines and config.gate == "stop":
        raise BlindRewardError(
            f"before RL reward models must rank pairs right at least as often as the floors say: {'; '.join(lines)}; "
            "train them longer (reward_quality.steps, reward_gap.steps), or proceed regardless: the same command with "
            f"--set evaluate.gate=warn (the gate alone: {command})"
        )
    return lines


def _work(run: Run, services: Services) -> None:
    rows = gate_rows(run)
    if processes.first():
        Terminal(width=110).print(sensitivity.sensitivity_table(rows))
    lines = require_seeing(rows, run.config.evaluate, GATE.command(run))
    for line in lines if processes.first() else ():
        say(f"warning: a reward model is below a floor, {line}")


GATE = Job(
    name="gate",
    title="can the reward models see?",
    work=_work,
    after=lambda config: (reward.QUALITY, reward.GAP),
    included=lambda config: config.evaluate.gate != "off",
    option="evaluate.gate=warn",
)
"""Held-out pairs and, for a synthetic task, single faults must be ranked right before any stage maximises a reward."""
