"""What held-out prompts favoured, stored with a run: RUN/search.json, which `pit search` writes.

It holds a calibration of acceptance and a split of every budget: how many draws, passes and candidates, and which
rules. It belongs to the models and the sampling that it was chosen for, and is refused for others.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pit.atomic import write_file
from pit.config import ConfigError, ImproveConfig, digest, from_dict, to_dict
from pit.config.improve import SPLIT
from pit.improve.calibration import Calibration
from pit.records import DamagedFileError, read_object
from pit.run.folder import Run
from pit.stages import refresh, rl, sft
from pit.stages.graph import improver_of

FILE = "search.json"
"""Name of the record in the folder of a run."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "accept_by", "gap", "threshold")
"""Fields of it that a choice depends on."""

_FIELDS: Mapping[str, Any] = {
    "identity": str,
    "worth": str,
    "prompts": int,
    "tokens_per_answer": int | float,
    "calibration": dict,
    "splits": dict,
}


@dataclass(frozen=True)
class Searched:
    """The record of `pit search`.

    identity: digest of the models and settings that it belongs to.
    worth: the measure by which splits were compared: "oracle", or "judge".
    prompts: number of held-out prompts.
    tokens_per_answer: mean tokens of an answer there, its end included, over draws and candidates.
    calibration: probability of being better.
    splits: the favoured split of each number of answers, as changes of the section `improve`.
    tried: mean worth of all splits, by number of answers and description.
    """

    identity: str
    worth: str
    prompts: int
    tokens_per_answer: float
    calibration: Calibration
    splits: Mapping[int, Mapping[str, Any]]
    tried: Mapping[int, Mapping[str, float]]


def identity_of(run: Run, config: ImproveConfig) -> str:
    """Return a digest of the models of a run that take part in a search, and of the settings that it depends on."""
    gap = sft.IMPROVER if config.accept_by == "likelihood" else refresh.last_gap(run.config)
    stages = (rl.POLICY, improver_of(run.config), gap, refresh.last_quality(run.config))
    settings = {name: getattr(config, name) for name in _SAMPLING}
    return digest([stage.hash(run) for stage in stages], settings)


def changes_of(config: ImproveConfig) -> dict[str, Any]:
    """Return the fields of a config that a split decides."""
    return {name: getattr(config, name) for name in SPLIT}


def write_searched(run: Run, searched: Searched) -> Path:
    """Write the record into the folder of its run, and return the file."""
    path = run.folder / FILE
    write_file(path, (json.dumps(dataclasses.asdict(searched), indent=2) + "\n").encode())
    return path


def read_searched(run: Run, config: ImproveConfig, reason: str) -> Searched:
    """Return the record of a run.

    Args:
        run: the run.
        config: the section `improve` that it is to serve.
        reason: the option or setting that asks for it, at the beginning of a message.

    Raises:
        ConfigError: there is none, or it belongs to other models or settings.
        DamagedFileError: it is damaged.
    """
    path, command = run.folder / FILE, shlex.join(["pit", "search", "--run", str(run.folder)])
    if not path.is_file():
        raise ConfigError(f"{reason}: needs {path}, which is not there; run `{command}` first")
    remedy = f"delete it and run `{command}`, which writes it again"
    values = read_object(path, remedy, _FIELDS)
    if values["identity"] != identity_of(run, config):
        raise ConfigError(
            f"{reason}: {path} was chosen for other models, or other {', '.join(_SAMPLING)} of the section improve; "
            f"leave such options out, or run `{command}` again"
        )
    try:
        splits = {
            int(answers): changes_of(from_dict(ImproveConfig, {**to_dict(config), **changes}, "splits."))
            for answers, changes in values["splits"].items()
        }
        calibration = Calibration(**values["calibration"])
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: is damaged ({error}); {remedy}") from error
    tried = {int(answers): dict(worths) for answers, worths in values.get("tried", {}).items()}
    return Searched(
        values["identity"],
        values["worth"],
        values["prompts"],
        float(values["tokens_per_answer"]),
        calibration,
        splits,
        tried,
    )


def with_budget(run: Run, config: ImproveConfig, tokens: int) -> ImproveConfig:
    """Return the config whose split of a budget held-out prompts favoured.

    Args:
        run: the run.
        config: its section `improve`, with sampling as it will be.
        tokens: most tokens per prompt, on average, of all answers together; the largest chosen split within it is
            taken.

    Raises:
        ConfigError: nothing was chosen for these models and settings, or for so few tokens.
    """
    searched = read_searched(run, config, f"--budget = {tokens}")
    fitting = [answers for answers in searched.splits if answers * searched.tokens_per_answer <= tokens]
    if not fitting:
        least = min(searched.splits, default=0)
        command = shlex.join(["pit", "search", "--run", str(run.folder)])
        raise ConfigError(
            f"--budget = {tokens}: must hold {least} answers of {searched.tokens_per_answer:.1f} tokens, the fewest "
            f"that a split was chosen for; give at least {least * searched.tokens_per_answer:.0f}, or run "
            f"`{command} --answers N`"
        )
    return dataclasses.replace(config, **searched.splits[max(fitting)])


def config_of(run: Run, changes: Mapping[str, Any], budget: int | None) -> ImproveConfig:
    """Return the section `improve` of a run with changes, and with the split of a budget where one is given.

    Raises:
        ConfigError: as `with_budget`, or a change breaks a rule.
    """
    config = dataclasses.replace(run.config.improve, **changes)
    return config if budget is None else with_budget(run, config, budget)
