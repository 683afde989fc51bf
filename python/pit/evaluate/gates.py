"""Gates before RL: a reward model that cannot see what is to be improved is told of, or stops the run."""

from collections.abc import Sequence

from pit.config import ConfigError, EvaluateConfig
from pit.evaluate import sensitivity
from pit.evaluate.schema import SensitivityRow
from pit.stages.context import Run


class Blind(ConfigError):
    """A reward model ranks pairs right less often than a gate asks for."""


def gate_rows(run: Run) -> list[SensitivityRow]:
    """What the gates look at: held-out pairs, and for the synthetic task single faults and progress."""
    pairs = sensitivity.held_out_pairs(run)
    if run.config.data.path is None:
        pairs |= sensitivity.corrupted_pairs(run) | sensitivity.progress_pairs(run)
    return sensitivity.compared(run, pairs)


def floor_of(aspect: str, config: EvaluateConfig) -> tuple[str, float]:
    """The setting that an aspect must reach, and its value."""
    if aspect == sensitivity.HELD_OUT:
        return "pairs_floor", config.pairs_floor
    if aspect.startswith(sensitivity.PROGRESS):
        return "progress_floor", config.progress_floor
    return "sensitivity_floor", config.sensitivity_floor


def failed(rows: Sequence[SensitivityRow], config: EvaluateConfig) -> list[str]:
    """A line for each gate that is not passed by R_P or by R_PIT's symmetric gap."""
    worst: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        name, floor = floor_of(row.aspect, config)
        if row.model != "R_PIT centred" and row.accuracy < floor:
            worst.setdefault((name, floor), []).append(f"{row.model} {row.aspect} {row.accuracy:.2f}")
    return [f"evaluate.{name} = {floor}: but {', '.join(low)}" for (name, floor), low in worst.items()]


def require_seeing(rows: Sequence[SensitivityRow], config: EvaluateConfig, command: str) -> list[str]:
    """What to warn of, where the gates only warn.

    Args:
        rows: `gate_rows`.
        config: floors, and what happens below them.
        command: that checks again.

    Raises:
        Blind: a gate that stops is not passed.
    """
    lines = failed(rows, config)
    if lines and config.gate == "stop":
        raise Blind(
            f"before RL reward models must rank pairs right at least as often as the floors say: {'; '.join(lines)}; "
            "train the reward models longer (quality.steps, gap.steps), or go on regardless: the same command with "
            f"--set evaluate.gate=warn (the gates alone: {command})"
        )
    return lines
