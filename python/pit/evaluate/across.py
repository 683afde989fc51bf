"""Statistics across seeds and across methods: t-intervals over seeds, and Elo ratings. NumPy and SciPy, no JAX.

Intervals over prompts (`stats`) say nothing about another run of the same recipe; a t-interval over a few seeds does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int
from scipy import stats

from pit.evaluate.stats import LEVEL, Interval, Scores

ELO = 400.0 / math.log(10.0)
"""Elo points per unit of log-odds; 400 points are odds of 10 to 1."""

_ROUNDS = 200
_TOLERANCE = 1e-7


class AcrossSeeds(NamedTuple):
    """Mean over seeds with its 95 % t-interval, and the numbers of seeds above and below 0; the others are at 0."""

    value: float
    low: float
    high: float
    seeds: int
    above: int
    below: int


def t_quantile(degrees: int) -> float:
    """Return the t that Student's distribution exceeds in absolute value with probability 1 - `LEVEL`.

    Raises ValueError for less than one degree of freedom.

    >>> round(t_quantile(4), 3)
    2.776
    """
    if degrees < 1:
        raise ValueError(f"degrees = {degrees} must be at least 1; give values of at least two seeds")
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


def across_seeds(values: Sequence[float]) -> AcrossSeeds:
    """Return the mean over seeds with its t-interval, from one value per seed.

    Raises ValueError for fewer than two values and for one that is not finite.

    >>> across_seeds([1.0, 3.0]).value
    2.0
    """
    array = np.asarray(values, np.float64)
    if array.size < 2 or not np.all(np.isfinite(array)):
        raise ValueError(f"values = {list(values)} must be at least two finite numbers; run more seeds")
    mean = float(array.mean())
    half = t_quantile(array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return AcrossSeeds(mean, mean - half, mean + half, array.size, int(np.sum(array > 0)), int(np.sum(array < 0)))


def elo(scores: Mapping[str, Scores], baseline: str, *, seed: int = 0, resamples: int = 200) -> dict[str, Interval]:
    """Return the Elo rating of each method over the baseline, from all pairs of methods on the same prompts.

    Ratings are the maximum-likelihood strengths of Bradley and Terry (1952). A tie is half a win. Every pair of methods
    gets one additional tie, so that a method that always wins has a finite rating. Intervals are percentiles of a
    bootstrap that resamples prompts, for all methods together.

    Args:
        scores: Method name to its scores, one per prompt, prompts in the same order.
        baseline: Name of the method whose rating is 0.
        seed: Seed of the resamples.
        resamples: Number of resamples; with 0 the intervals are the ratings themselves.

    Raises:
        ValueError: The baseline is not a method, or methods have different numbers of scores.

    >>> ratings = elo({"a": np.array([1.0, 1.0]), "b": np.array([0.0, 1.0])}, "b", resamples=0)
    >>> {name: round(rating.value) for name, rating in ratings.items()}  # odds of 2 to 1
    {'a': 120, 'b': 0}
    """
    names = list(scores)
    if baseline not in scores:
        raise ValueError(f"baseline = {baseline!r} must be a method: {', '.join(names)}")
    counts = {name: np.asarray(values).size for name, values in scores.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"scores has {counts} entries; give every method one score per prompt")
    table = np.stack([np.asarray(scores[name], np.float64) for name in names])
    prompts = table.shape[1]
    rng = np.random.default_rng(seed)
    draws = np.stack([np.arange(prompts), *(rng.integers(0, prompts, prompts) for _ in range(resamples))])
    ratings = ELO * _bradley_terry(np.stack([_wins(table, index) for index in draws]))
    ratings -= ratings[:, [names.index(baseline)]]
    ends = np.quantile(ratings[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) if resamples else ratings[[0, 0]]
    return {
        name: Interval(
            float(ratings[0, i]),
            float(min(ends[0, i], ratings[0, i])),
            float(max(ends[1, i], ratings[0, i])),
            prompts,
        )
        for i, name in enumerate(names)
    }


def _wins(table: Float64[np.ndarray, "m n"], index: Int[np.ndarray, " n"]) -> Float64[np.ndarray, "m m"]:
    """Return how often each method beats each other one on the indexed prompts: ties half, and one additional tie."""
    scores = table[:, index]
    wins = np.stack([np.sum(row > scores, axis=1) + 0.5 * np.sum(row == scores, axis=1) for row in scores]) + 0.5
    np.fill_diagonal(wins, 0.0)
    return np.asarray(wins, np.float64)


def _bradley_terry(wins: Float64[np.ndarray, "r m m"]) -> Float64[np.ndarray, "r m"]:
    """Return the maximum-likelihood log-strengths of each table of wins, with mean 0, by Newton's method."""
    methods = wins.shape[1]
    played = wins + wins.swapaxes(1, 2)
    ratings = np.zeros(wins.shape[:2])
    for _ in range(_ROUNDS):
        chance = 0.5 + 0.5 * np.tanh((ratings[:, :, None] - ratings[:, None, :]) / 2)
        slope = np.sum(wins - played * chance, axis=2)
        weight = played * chance * (1.0 - chance)
        # Ratings are determined up to a constant: adding 1 everywhere makes the matrix regular and fixes the mean.
        curve = np.eye(methods) * np.sum(weight, axis=2)[:, :, None] - weight + 1.0
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        ratings = ratings + np.clip(step, -1.0, 1.0)
        if float(np.max(np.abs(step))) < _TOLERANCE:
            return np.asarray(ratings - ratings.mean(axis=1, keepdims=True), np.float64)
    raise ArithmeticError(f"Elo ratings did not converge in {_ROUNDS} Newton steps; leave out methods that always win")
