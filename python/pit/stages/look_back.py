"""What an RL stage drew when, read from a run or simulated: the material of `pit data curriculum`."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from pit.config import ConfigError, RlConfig, RunConfig
from pit.data.curriculum import Visit, edit_distance, hidden_difficulty, ranks, read_history, simulate, tree_length
from pit.stages.context import STAGES, Run
from pit.stages.curriculum import examples_of, expected_visits, make_draws


class Look(NamedTuple):
    """Visits of a stage, and the difficulty that they are shown by: ranks from the easiest (0) to the hardest (1)."""

    title: str
    visits: list[Visit]
    difficulty: Float32[np.ndarray, " examples"]


def look_back(run: Run, stage: str) -> Look:
    """What a stage of a run has drawn so far, by the lengths of its trees, or by edit distance if it used that.

    Raises:
        ConfigError: no RL stage has that name.
        CurriculumError: it has drawn nothing yet.
    """
    config, fold = _section(run.config, stage), run.fold("rl")
    visits = read_history(run.stage_folder(stage))
    by_edit = config.curriculum.difficulty == "edit"
    values = edit_distance(fold) if by_edit else tree_length(fold)
    measure = "edit distance" if by_edit else "length"
    title = f"{stage} of {run.folder}: {config.curriculum.strategy}; difficulty by {measure}"
    return Look(title, visits, ranks(values[: examples_of(config, fold)]))


def look_ahead(config: RunConfig, stage: str, examples: int) -> Look:
    """What a stage would draw, with a simulated learner and a hidden difficulty.

    Raises:
        ConfigError: no RL stage has that name, or its curriculum would see too few visits.
    """
    section = _section(config, stage)
    difficulty = hidden_difficulty(examples, config.seed)
    known = difficulty if section.curriculum.difficulty != "none" else None
    loader = make_draws(stage, section, examples, run_seed=config.seed, config_hash="", data_hash="", difficulty=known)
    visits, skill = simulate(loader, difficulty, steps=section.steps, samples=section.samples, seed=config.seed)
    loader.close()
    title = (
        f"{stage} of {config.name}, simulated: {section.curriculum.strategy}; {expected_visits(section, examples):.1f} "
        f"visits an example; skill {skill[0]:.2f} -> {skill[-1]:.2f}"
    )
    return Look(title, visits, difficulty)


def _section(config: RunConfig, stage: str) -> RlConfig:
    names = [name for name in STAGES if name.startswith("rl-")]
    if stage not in names:
        raise ConfigError(f"--stage = {stage!r}: must be one of {', '.join(names)}; choose one")
    section: RlConfig = getattr(config, STAGES[stage].section)
    return section
