"""The curriculum of an RL stage, made from its config: strategy, prior difficulty, and the rule on visits."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

from pit.config import CurriculumConfig, FieldError, ImproverRlConfig, RlConfig
from pit.data.curriculum import (
    Adaptive,
    DrawLoader,
    GapBand,
    Learnability,
    Staged,
    Strategy,
    answer_similarity,
    hand_over,
    ranks,
    tree_length,
)
from pit.data.loader import short_hash
from pit.data.store import Fold
from pit.seeds import Seed

LEAST_VISITS = 2.0
"""Least expected visits per example under a curriculum that learns from them."""


# Seven parameters: the stage, its seed, two stamps, and what is known of the examples.
def make_draws(
    section: str,
    config: RlConfig,
    examples: int,
    *,
    seed: Seed,
    config_hash: str,
    data_hash: str,
    difficulty: Float32[np.ndarray, " n"] | None,
) -> DrawLoader:
    """Return the draws of a stage, from its first step on.

    Args:
        section: path of its config section, for messages.
        config: the section.
        examples: number of examples that can be drawn.
        seed: root of its random numbers.
        config_hash: stamped into the state.
        data_hash: the same.
        difficulty: rank of each example from the easiest (0) to the hardest (1), if known.

    Raises:
        ConfigError: a curriculum that learns from visits expects fewer than two per example.
    """
    number, made = seed.of("draws").number, None
    if isinstance(config, ImproverRlConfig):
        check_visits(section, config, examples)
        if config.curriculum.adaptive:
            made = Adaptive(
                strategy_of(config.curriculum),
                shares=config.sources.by_source,
                examples=examples,
                steps=config.steps,
                lag=config.curriculum.lag,
                memory=config.curriculum.memory,
                difficulty=difficulty,
                seed=number,
                config_hash=short_hash(config_hash),
                data_hash=short_hash(data_hash),
            )
    prefetch = config.curriculum.prefetch if isinstance(config.curriculum, CurriculumConfig) else 0
    fixed = Staged(source_weights(config), seed=number, examples=examples)
    return DrawLoader(made or fixed, config.prompts, prefetch=prefetch)


def examples_of(config: RlConfig, fold: Fold) -> int:
    """Return the number of examples of the fold that a stage draws from."""
    return min(config.curriculum.examples or len(fold), len(fold))


def expected_visits(config: RlConfig, examples: int) -> float:
    """Return the draws of a stage per example."""
    return config.steps * config.prompts / examples


def check_visits(section: str, config: ImproverRlConfig, examples: int) -> None:
    """Raise where feedback would hardly be used.

    Raises:
        ConfigError: the curriculum learns from visits and expects fewer than two per example.
    """
    visits = expected_visits(config, examples)
    if config.curriculum.adaptive and visits < LEAST_VISITS:
        raise FieldError(
            f"{section}.curriculum.strategy",
            config.curriculum.strategy,
            f"learns from visits and needs at least {LEAST_VISITS:g} per example, but {config.steps} steps of "
            f"{config.prompts} prompts visit each of {examples:,} examples {visits:.2g} times",
            f"raise {section}.steps or .prompts, lower {section}.curriculum.examples, or set {{path}}=uniform",
        )


def strategy_of(config: CurriculumConfig) -> Strategy:
    """Return the strategy that a section names."""
    if config.strategy == "learnability":
        return Learnability(floor=config.floor, explore=config.explore)
    return GapBand(start=config.band_start, end=config.band_end, width=config.band_width, floor=config.floor)


def source_weights(config: RlConfig) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Return the source weights by step; the policy's own stage sees no reference."""
    if not isinstance(config, ImproverRlConfig):
        return [(0, (1, 0, 0, 0))]
    curriculum = config.curriculum
    if curriculum.strategy != "staged":
        return [(0, config.sources.by_source)]
    after = curriculum.sources_after.by_source
    return hand_over(config.sources.by_source, after, curriculum.handover_step, curriculum.handover_steps)


def difficulty_of(
    config: RlConfig, fold: Fold, margin: Callable[[int], np.ndarray]
) -> Float32[np.ndarray, " n"] | None:
    """Return the rank of each example from the easiest (0) to the hardest (1) before feedback; None if not asked for.

    Args:
        config: the stage's section.
        fold: its examples.
        margin: returns the reward model's margin between the answers of the first n examples, float [n].
    """
    if not isinstance(config, ImproverRlConfig):
        return None
    examples = examples_of(config, fold)
    measures: dict[str, Callable[[], Float64[np.ndarray, " n"]]] = {
        "length": lambda: tree_length(fold)[:examples],
        "edit": lambda: answer_similarity(fold)[:examples],
        # A small margin is a pair whose order is hard to see.
        "margin": lambda: -margin(examples),
        "column": lambda: fold.difficulty()[:examples],
    }
    kind = config.curriculum.difficulty
    return None if kind == "none" else ranks(measures[kind]())
