"""The curriculum of an RL stage, made from its config: the strategy, what is known before feedback, and the guards."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

from pit.config import ConfigError, CurriculumConfig, RlConfig
from pit.data.curriculum import (
    Adaptive,
    Curriculum,
    DrawLoader,
    GapBand,
    Learnability,
    Staged,
    Strategy,
    edit_distance,
    hand_over,
    ranks,
    tree_length,
)
from pit.data.loader import short_hash
from pit.data.store import Fold

LEAST_VISITS = 2.0
"""Visits an example must expect under a curriculum that learns from them."""


def make_draws(
    name: str,
    config: RlConfig,
    examples: int,
    *,
    run_seed: int,
    config_hash: str,
    data_hash: str,
    difficulty: Float32[np.ndarray, " n"] | None,
) -> DrawLoader:
    """The draws of one stage, from its first step on.

    Args:
        name: of the stage, for its seed and its messages.
        config: its section.
        examples: how many can be drawn.
        run_seed: root of all randomness.
        config_hash: stamped into the state.
        data_hash: the same.
        difficulty: rank of each example from the easiest (0) to the hardest (1), if known.

    Raises:
        ConfigError: a curriculum that learns from visits expects fewer than two of each example.
    """
    curriculum, seed = config.curriculum, short_hash(f"{run_seed} {name}")
    made: Curriculum
    if curriculum.adaptive:
        check_visits(name, config, examples)
        made = Adaptive(
            strategy_of(curriculum),
            shares=(0, *config.sources),
            examples=examples,
            steps=config.steps,
            lag=curriculum.lag,
            memory=curriculum.memory,
            difficulty=difficulty,
            seed=seed,
            config_hash=short_hash(config_hash),
            data_hash=short_hash(data_hash),
        )
    else:
        made = Staged(source_weights(name, config), seed=seed, examples=examples)
    return DrawLoader(made, config.prompts, prefetch=curriculum.prefetch)


def examples_of(config: RlConfig, fold: Fold) -> int:
    """How many examples of the fold a stage draws from."""
    return min(config.curriculum.examples or len(fold), len(fold))


def expected_visits(config: RlConfig, examples: int) -> float:
    """Draws of a run over its examples."""
    return config.steps * config.prompts / examples


def check_visits(name: str, config: RlConfig, examples: int) -> None:
    """Refuse feedback that would hardly be used.

    Raises:
        ConfigError: fewer than two expected visits an example.
    """
    visits = expected_visits(config, examples)
    if visits < LEAST_VISITS:
        section = name.replace("-", "_")
        raise ConfigError(
            f"{section}.curriculum.strategy = {config.curriculum.strategy!r}: {config.steps} steps of {config.prompts} "
            f"prompts visit each of {examples:,} examples {visits:.2g} times, and it learns from visits: at least "
            f"{LEAST_VISITS:g} are needed; raise steps or prompts, lower {section}.curriculum.examples, or use uniform"
        )


def strategy_of(config: CurriculumConfig) -> Strategy:
    """The strategy that a section names."""
    if config.strategy == "learnability":
        return Learnability(floor=config.floor, explore=config.explore)
    start, end = config.band
    return GapBand(start=start, end=end, width=config.band_width, floor=config.floor)


def source_weights(name: str, config: RlConfig) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Source weights by step; the policy's own stage sees no reference."""
    curriculum = config.curriculum
    if name == "rl-policy":
        return [(0, (1, 0, 0, 0))]
    if curriculum.strategy != "staged":
        return [(0, (0, *config.sources))]
    return hand_over(
        (0, *config.sources), (0, *curriculum.sources_after), curriculum.handover_step, curriculum.handover_steps
    )


def difficulty_of(
    config: RlConfig, fold: Fold, margin: Callable[[int], np.ndarray]
) -> Float32[np.ndarray, " n"] | None:
    """Rank of each example from the easiest (0) to the hardest (1) before any feedback; None where none is asked for.

    Args:
        config: the stage's section.
        fold: its examples.
        margin: R_PIT's margin between the answers of the first n examples, float [n]; called only if asked for.
    """
    examples = examples_of(config, fold)
    measures: dict[str, Callable[[], Float64[np.ndarray, " n"]]] = {
        "length": lambda: tree_length(fold)[:examples],
        "edit": lambda: edit_distance(fold)[:examples],
        # A small margin is a pair that is hard to tell apart.
        "margin": lambda: -margin(examples),
        "column": lambda: fold.difficulty()[:examples],
    }
    kind = config.curriculum.difficulty
    return None if kind == "none" else ranks(measures[kind]())
