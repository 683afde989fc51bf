"""Draws of an RL stage, read from a run or simulated: the material of `pit data curriculum`."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from pit.config import ConfigError, CurriculumConfig, RlConfig, RunConfig
from pit.data.curriculum import Visit, answer_similarity, hidden_difficulty, ranks, read_history, simulate, tree_length
from pit.data.curriculum.history import FILE_NAME
from pit.records import DamagedFileError
from pit.rl.curriculum import examples_of, expected_visits, make_draws
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.seeds import Seed
from pit.stages.graph import STAGES


class Look(NamedTuple):
    """Visits of a stage, and the difficulty that they are shown by: ranks from the easiest (0) to the hardest (1)."""

    title: str
    visits: list[Visit]
    difficulty: Float32[np.ndarray, " examples"]


def look_back(run: Run, name: str) -> Look:
    """Return the draws of a run's stage so far, by the lengths of its trees, or by edit distance if it used that.

    Raises:
        ConfigError: no RL stage has that name.
        CurriculumError: it has drawn nothing yet.
        DamagedFileError: the file of its draws is damaged.
    """
    stage = _rl_stage(name)
    config, fold = stage.settings(run.config), run.fold(stage.fold)
    visits = read_history(run.stage_folder(name))
    examples = examples_of(config, fold)
    drawn = np.concatenate([visit.draws.ids for visit in visits])
    if drawn.size and not 0 <= drawn.min() <= drawn.max() < examples:
        path = run.stage_folder(name) / FILE_NAME
        raise DamagedFileError(
            f"{path}: draws examples {drawn.min()} to {drawn.max()}, but the stage has {examples}; it is damaged: "
            f"delete the lines with others, or the file"
        )
    strategy, difficulty = _strategy(config)
    by_edit = difficulty == "edit"
    values = answer_similarity(fold) if by_edit else tree_length(fold)
    title = f"{name} of {run.folder}: {strategy}; difficulty by {'edit distance' if by_edit else 'length'}"
    return Look(title, visits, ranks(values[:examples]))


def look_ahead(config: RunConfig, name: str, examples: int) -> Look:
    """Return the draws that a stage would make, with a simulated learner and a hidden difficulty.

    Raises:
        ConfigError: no RL stage has that name, or its curriculum would see too few visits.
    """
    stage = _rl_stage(name)
    section = stage.settings(config)
    strategy, prior = _strategy(section)
    difficulty = hidden_difficulty(examples, config.seed)
    loader = make_draws(
        stage.section,
        section,
        examples,
        seed=Seed((config.seed, name)),
        config_hash="",
        data_hash="",
        difficulty=difficulty if prior != "none" else None,
    )
    visits, skill = simulate(loader, difficulty, steps=section.steps, samples=section.samples, seed=config.seed)
    loader.close()
    title = (
        f"{name} of {config.name}, simulated: {strategy}; {expected_visits(section, examples):.1f} visits per example; "
        f"skill {skill[0]:.2f} -> {skill[-1]:.2f}"
    )
    return Look(title, visits, difficulty)


def _strategy(config: RlConfig) -> tuple[str, str]:
    """Return strategy and prior difficulty of a stage; the policy's own stage has neither."""
    curriculum = config.curriculum
    return (
        (curriculum.strategy, curriculum.difficulty)
        if isinstance(curriculum, CurriculumConfig)
        else ("uniform", "none")
    )


def _rl_stage(name: str) -> Stage:
    plain = RunConfig()
    stages = [stage for stage in STAGES if stage.maximises(plain)]
    if name not in (stage.name for stage in stages):
        names = ", ".join(stage.name for stage in stages)
        raise ConfigError(f"--stage = {name!r}: must be one of {names}; for example --stage {stages[0].name}")
    return next(stage for stage in stages if stage.name == name)
