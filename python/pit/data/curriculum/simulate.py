"""A learner that exists on paper only, to look at a curriculum before anything is spent on it.

Each example has a hidden difficulty, its rank; the learner has one skill. A sample beats its reference with probability
1 / (1 + exp((difficulty - skill) / SPREAD)), and a step raises the skill by what there was to learn from its draws, the
mean of 4 p (1 - p). Nothing is claimed of real models: it shows how a strategy answers to gaps that grow.
"""

import numpy as np
from jaxtyping import Float32, Float64

from pit.data.curriculum.history import Visit
from pit.data.curriculum.loader import DrawLoader

SPREAD = 0.12
START, END = 0.1, 1.1
"""Skill before the first step, and after the last one if every draw were as instructive as can be."""


def hidden_difficulty(examples: int, seed: int) -> Float32[np.ndarray, " n"]:
    """Ranks from 0 (easiest) to 1, dealt at random."""
    order = np.random.default_rng([seed, 0]).permutation(examples)
    return (order / max(examples - 1, 1)).astype(np.float32)


def simulate(
    loader: DrawLoader, difficulty: Float32[np.ndarray, " n"], *, steps: int, samples: int, seed: int
) -> tuple[list[Visit], Float64[np.ndarray, " steps"]]:
    """Visits of a simulated run, and the learner's skill at each step."""
    random = np.random.default_rng([seed, 1])
    skill = np.empty(steps)
    now, visits = START, []
    for step in range(steps):
        skill[step] = now
        draws = next(loader)
        distance = (now - difficulty[draws.ids]) / SPREAD
        # A logistic sample is above 0 with exactly that probability.
        gaps = (distance[:, None] + random.logistic(size=(len(distance), samples))).astype(np.float32)
        loader.update(draws, gaps)
        visits.append(Visit(draws, gaps.mean(axis=1)))
        rate = 1.0 / (1.0 + np.exp(-distance))
        now += (END - START) * float(np.mean(4.0 * rate * (1.0 - rate))) / steps
    return visits, skill
