"""A simulated learner, with which a curriculum can be inspected before any training.

Each example has a hidden difficulty, its rank, and the learner has one skill. A sample beats its reference with
probability p = 1 / (1 + exp((difficulty - skill) / SPREAD)), and a step raises the skill in proportion to the mean of
4 p (1 - p) over its draws. The simulation shows how a strategy responds to growing gaps; it makes no claim about real
models.
"""

import numpy as np
from jaxtyping import Float32, Float64

from pit.data.curriculum.history import Visit
from pit.data.curriculum.loader import DrawLoader

SPREAD = 0.12
START, END = 0.1, 1.1
"""Skill before the first step, and after the last one if every draw had p = 1/2."""


def hidden_difficulty(examples: int, seed: int) -> Float32[np.ndarray, " n"]:
    """Return ranks from 0 (easiest) to 1 (hardest) in random order."""
    order = np.random.default_rng([seed, 0]).permutation(examples)
    return (order / max(examples - 1, 1)).astype(np.float32)


def simulate(
    loader: DrawLoader, difficulty: Float32[np.ndarray, " n"], *, steps: int, samples: int, seed: int
) -> tuple[list[Visit], Float64[np.ndarray, " steps"]]:
    """Return the visits of a simulated run, and the learner's skill at each step.

    Args:
        loader: draws of the curriculum.
        difficulty: hidden difficulty of each example.
        steps: length of the run.
        samples: samples per draw.
        seed: seed of the samples.
    """
    random = np.random.default_rng([seed, 1])
    skill = np.empty(steps)
    now, visits = START, []
    for step in range(steps):
        skill[step] = now
        draws = next(loader)
        distance = (now - difficulty[draws.ids]) / SPREAD
        # distance + a logistic sample is above 0 with exactly the probability p.
        gaps = (distance[:, None] + random.logistic(size=(len(distance), samples))).astype(np.float32)
        loader.update(draws, gaps)
        visits.append(Visit(draws, gaps.mean(axis=1)))
        rate = 1.0 / (1.0 + np.exp(-distance))
        now += (END - START) * float(np.mean(4.0 * rate * (1.0 - rate))) / steps
    return visits, skill
